// MappedFile: a whole file as read-only memory; a page is read when it is touched, so opening a checkpoint is free.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

namespace engine {

class MappedFile {
 public:
  /// Maps `path`. Throws BadInput if it is no readable regular file. The file must not shrink while it is mapped.
  explicit MappedFile(const std::filesystem::path& path);

  /// Valid as long as this object or one moved from it lives.
  std::span<const std::byte> bytes() const { return {data_.get(), data_.get_deleter().size}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes().data()), bytes().size()}; }

 private:
  struct Unmap {
    std::size_t size;
    void operator()(std::byte* data) const { ::munmap(data, size); }
  };
  std::unique_ptr<std::byte, Unmap> data_{nullptr, Unmap{0}};
};

}  // namespace engine
