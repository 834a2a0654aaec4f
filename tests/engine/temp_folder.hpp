// What the loader tests share: a folder made for one test, the complaint of a call, and damaged copies of bytes.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <random>
#include <string>
#include <string_view>

#include "engine/bad_input.hpp"

namespace engine_test {

/// A folder of its own, removed with everything in it.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "pagedkv_test_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

  void write(const std::string& name, std::string_view bytes) const {
    std::filesystem::remove(path_ / name);  // some file systems flush to disk when a file is overwritten in place
    std::ofstream(path_ / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The message of the BadInput that `call` throws; "" if it throws none.
template <class Call>
std::string complaint(Call&& call) {
  try {
    call();
  } catch (const engine::BadInput& error) {
    return error.what();
  }
  return "";
}

/// Checks that `message` is one line that holds each of `parts`.
inline void check_message(const std::string& message, std::initializer_list<const char*> parts) {
  CAPTURE(message);
  CHECK(message.find('\n') == std::string::npos);
  CHECK(message.size() < 500);
  for (const std::string part : parts) {
    CAPTURE(part);
    CHECK(message.find(part) != std::string::npos);
  }
}

/// `bytes` cut short, or with 1 to 4 bytes replaced: by any value or by one that JSON cares about.
inline std::string damaged(std::string bytes, std::mt19937& random) {
  constexpr std::string_view telling = "\"[]{},:0123456789-\\ \xff";
  if (random() % 8 == 0) return bytes.substr(0, random() % bytes.size());
  for (unsigned i = 0, n = 1 + random() % 4; i < n; ++i)
    bytes[random() % bytes.size()] =
        random() % 2 == 0 ? static_cast<char>(random() & 0xffu) : telling[random() % telling.size()];
  return bytes;
}

}  // namespace engine_test
