// UTF-8: telling whole characters from broken and unfinished ones, so that output never splits a character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace engine::utf8 {

enum class Status { whole, broken, unfinished };

/// The first character of a text: for `broken` and `unfinished`, length counts the bytes that could have begun one (the
/// "maximal subpart" that Unicode replaces by one U+FFFD), at least 1.
struct Character {
  Status status;
  std::size_t length;
};

/// `text` must not be empty. Overlong forms, surrogates and values above U+10FFFF are broken (Unicode 15, table 3-7).
inline Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Status::whole, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Status::broken, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Only the second byte's range depends on the lead.
  const unsigned char lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Status::unfinished, i};
    if (byte(i) < (i == 1 ? lowest : 0x80) || byte(i) > (i == 1 ? highest : 0xbf)) return {Status::broken, i};
  }
  return {Status::whole, length};
}

/// Offset of the first byte that is not part of a whole character; npos if the text is valid.
inline std::size_t find_invalid(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const Character character = first_character(text.substr(i));
    if (character.status != Status::whole) return i;
    i += character.length;
  }
  return std::string_view::npos;
}

/// Takes from the front of `pending` all that later bytes cannot change, with U+FFFD for what is broken. What stays, at
/// most 3 bytes, is an unfinished character.
inline std::string take_whole(std::string& pending) {
  std::string text;
  std::size_t i = 0;
  while (i < pending.size()) {
    const Character character = first_character(std::string_view(pending).substr(i));
    if (character.status == Status::unfinished) break;
    if (character.status == Status::whole)
      text.append(pending, i, character.length);
    else
      text += "\uFFFD";
    i += character.length;
  }
  pending.erase(0, i);
  return text;
}

}  // namespace engine::utf8
