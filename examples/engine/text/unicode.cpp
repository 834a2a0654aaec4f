// The one file that calls utf8proc.
#include "engine/text/unicode.hpp"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "engine/bad_input.hpp"
#include "engine/text/utf8.hpp"

namespace engine::unicode {
namespace {

utf8proc_int32_t code_point(std::string_view character) {
  utf8proc_int32_t code = 0;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(character.data()),
                   static_cast<utf8proc_ssize_t>(character.size()), &code);
  return code;
}

void refuse_long_runs_of_marks(std::string_view text) {
  constexpr int max_marks = 256;  // "stream-safe" text (UAX 15) has at most 30
  int num_marks = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8::first_character(text.substr(i)).length;
    const bool is_mark = length > 1 && utf8proc_get_property(code_point(text.substr(i, length)))->combining_class != 0;
    num_marks = is_mark ? num_marks + 1 : 0;
    if (num_marks > max_marks)
      throw BadInput("text", "at most " + std::to_string(max_marks) + " combining marks in a row", "more");
    i += length;
  }
}

bool is_space(utf8proc_int32_t code) {
  return (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f ||
         code == 0x205f || code == 0x3000;
}

}  // namespace

std::optional<std::string> to_nfc(std::string_view text) {
  // Every character below U+0300, whose first byte is below 0xcc, is its own normal form and combines with nothing.
  bool is_plain = true;
  for (const char byte : text) is_plain = is_plain && static_cast<unsigned char>(byte) < 0xcc;
  if (is_plain) return std::nullopt;
  refuse_long_runs_of_marks(text);
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(result, &std::free);
  if (length < 0) throw std::bad_alloc();  // of valid UTF-8 nothing else can fail
  const std::string_view normal(reinterpret_cast<const char*>(result), static_cast<std::size_t>(length));
  if (normal == text) return std::nullopt;
  return std::string(normal);
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8::first_character(text).length;
    if (!is_space(code_point(text.substr(0, length)))) break;
    text.remove_prefix(length);
  }
  while (!text.empty()) {
    std::size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0u) == 0x80u) --begin;
    if (!is_space(code_point(text.substr(begin)))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

}  // namespace engine::unicode
