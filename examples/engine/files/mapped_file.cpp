// Mapping a file with POSIX calls.
#include "engine/files/mapped_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "engine/bad_input.hpp"

namespace engine {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

[[noreturn]] void fail(const std::filesystem::path& path) {
  throw BadInput(path.string(), "a readable file", "none (" + std::generic_category().message(errno) + ")");
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe must be an error, not a wait.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status{};
  if (file.fd < 0 || ::fstat(file.fd, &status) != 0) fail(path);
  if (!S_ISREG(status.st_mode)) throw BadInput(path.string(), "a regular file", "something else");
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // mmap refuses length 0; an empty span says the same
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) fail(path);
  data_ = {static_cast<std::byte*>(data), Unmap{size}};
}

}  // namespace engine
