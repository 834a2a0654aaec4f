// The one file that calls PCRE2.
#include "engine/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/bad_input.hpp"
#include "engine/utf8.hpp"

namespace engine {
namespace {

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Regex::Regex(const std::string& pattern, const std::string& thing) : thing_(thing) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* const code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr)
    throw BadInput(thing, "a regular expression", message_of(error) + " at offset " + std::to_string(offset));
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, matching interprets: slower, the same matches
  code_ = {code, [](const pcre2_code* owned) { pcre2_code_free(const_cast<pcre2_code*>(owned)); }};
}

void Regex::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  std::size_t done = 0;  // all before it is in pieces
  std::size_t from = 0;  // where the next match may begin
  while (from < text.size()) {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         options | PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    };
    int result = run(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);  // the interpreter's stack is on the heap
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) throw BadInput(thing_, "a pattern that matches in bounded work", message_of(result));
    const PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(match.get());
    if (bounds[1] == bounds[0]) {  // an empty match cuts nothing; look again one character on
      if (bounds[0] == text.size()) break;
      from = bounds[0] + utf8::first_character(text.substr(bounds[0])).length;
      continue;
    }
    if (bounds[0] > done) pieces.push_back(text.substr(done, bounds[0] - done));
    pieces.push_back(text.substr(bounds[0], bounds[1] - bounds[0]));
    done = from = bounds[1];
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
}

}  // namespace engine
