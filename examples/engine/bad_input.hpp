// BadInput: thrown when a file, a field or a flag is not what it must be; main prints it and exits with 2.
#pragma once

#include <string>
#include <string_view>

#include "pagedkv/core/error.hpp"

namespace engine {

/// `text`, cut between characters to what a one-line message can hold.
inline std::string shortened(std::string_view text) {
  constexpr std::size_t max_bytes = 64;
  if (text.size() <= max_bytes) return std::string(text);
  std::size_t length = max_bytes;
  while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0u) == 0x80u) --length;
  return std::string(text.substr(0, length)) + "...";
}

inline std::string in_quotes(std::string_view text) { return '"' + shortened(text) + '"'; }

/// The user gave something the engine cannot use; nothing has changed.
class BadInput : public pagedkv::Error {
 public:
  /// what() is "<thing>: <expected> expected, <found> found", always one line, whatever the file put into a name.
  BadInput(std::string_view thing, std::string_view expected, std::string_view found)
      : Error(one_line(std::string(thing) + ": " + std::string(expected) + " expected, " + std::string(found) +
                       " found")) {}

 private:
  static std::string one_line(std::string message) {
    for (char& c : message)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return message;
  }
};

}  // namespace engine
