// The one file that calls PCRE2.
#include "engine/text/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/bad_input.hpp"
#include "engine/text/utf8.hpp"

namespace engine {
namespace {

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

bool is_alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

/// Respells an Oniguruma pattern for PCRE2.
class Respelling {
 public:
  Respelling(std::string_view pattern, const std::string& thing) : pattern_(pattern), thing_(thing) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const std::string_view rest = pattern_.substr(at_);
      if (rest[0] == '\\')
        escape(rest);
      else if (in_class_)
        class_member(rest);
      else
        other(rest);
    }
    return result_;
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw BadInput(thing_, "a pattern that PCRE2 reads as Oniguruma does", in_quotes(what));
  }

  void take(std::size_t length) {
    result_ += pattern_.substr(at_, length);
    at_ += length;
  }

  void escape(std::string_view rest) {
    const std::string_view what = rest.substr(0, 2);
    const char kind = rest.size() > 1 ? rest[1] : '\\';
    if (kind == 'p' || kind == 'P') return property(rest);
    if (kind == 's' || kind == 'S') {
      // Unicode's White_Space. PCRE2's own \s also holds U+180E, which no longer is one.
      constexpr std::string_view spaces = R"(\t-\r\x{85}\p{Z})";
      if (in_class_ && kind == 'S') refuse(what);
      if (in_class_)
        result_ += spaces;
      else
        result_ += (kind == 's' ? "[" : "[^") + std::string(spaces) + "]";
      at_ += 2;
      return;
    }
    const bool is_known = std::string_view("dDrntf").find(kind) != std::string_view::npos || rest.starts_with("\\x{");
    if (is_alphanumeric(kind) && !is_known) refuse(what);
    take(what.size());
  }

  void property(std::string_view rest) {
    const std::size_t end = rest.find('}');
    if (rest.size() < 3 || rest[2] != '{' || end == std::string_view::npos) refuse(rest.substr(0, 3));
    const bool is_category = end - 3 <= 2;  // longer names are scripts, which PCRE2 would widen by their extensions
    if (is_category) return take(end + 1);
    result_ += std::string(rest.substr(0, 3)) + "sc:" + std::string(rest.substr(3, end - 2));
    at_ += end + 1;
  }

  void class_member(std::string_view rest) {
    if (rest[0] == '[' || rest.starts_with("&&")) refuse(rest.substr(0, 2));  // sets within sets
    if (rest[0] == ']') in_class_ = false;
    take(1);
  }

  void other(std::string_view rest) {
    if (rest.starts_with("}+") || rest.starts_with("{,")) refuse(rest.substr(0, 2));
    if (rest.starts_with("(?")) {
      for (const std::string_view group : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"})
        if (rest.starts_with(group)) return take(group.size());
      refuse(rest.substr(0, 4));
    }
    if (rest[0] != '[') return take(1);
    in_class_ = true;
    take(rest.starts_with("[^") ? 2 : 1);
    if (at_ < pattern_.size() && pattern_[at_] == ']') refuse("[]");
  }

  std::string_view pattern_;
  const std::string& thing_;
  std::string result_;
  std::size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

Regex::Regex(const std::string& pattern, const std::string& thing) : thing_(thing) {
  const std::string respelt = Respelling(pattern, thing).run();
  int error = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: to Oniguruma ^ and $ are always a line's ends.
  pcre2_code* const code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(respelt.data()), respelt.size(),
                                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
  if (code == nullptr) throw BadInput(thing, "a regular expression", message_of(error));
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, matching interprets: slower, the same matches
  code_ = {code, [](const pcre2_code* owned) { pcre2_code_free(const_cast<pcre2_code*>(owned)); }};
}

void Regex::split(std::span<const std::string_view> texts, std::vector<std::string_view>& pieces) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  for (const std::string_view text : texts) {
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
}

}  // namespace engine
