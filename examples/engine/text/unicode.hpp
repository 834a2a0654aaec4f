// Unicode beyond UTF-8: normal form C, which some tokenizers want, and white space, which chat templates trim.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace engine::unicode {

/// `text` in normal form C (UAX 15); nothing if it is in it already, as almost all text is. `text` must be valid UTF-8.
/// Throws BadInput on more than 256 combining marks in a row, whose ordering would take quadratic time.
std::optional<std::string> to_nfc(std::string_view text);

/// `text` without the white space at its ends, which is what Python's str.strip takes for it. `text` must be valid
/// UTF-8.
std::string_view trimmed(std::string_view text);

}  // namespace engine::unicode
