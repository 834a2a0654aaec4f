// Regex: cuts text into pieces with PCRE2, in Unicode mode; std::regex knows neither \p{L} nor speed.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// PCRE2's types without its header, whose macros would reach every includer.
struct pcre2_real_code_8;

namespace engine {

/// For patterns as tokenizer files write them: for Oniguruma, in its Ruby syntax. What both libraries read alike, or
/// what can be respelt, is understood; what PCRE2 would take for something else is refused. One difference stays:
/// letters that Unicode has got since the older library's version are letters to the newer one only.
class Regex {
 public:
  /// Throws BadInput, naming `thing`, if `pattern` does not compile or uses what is not understood here.
  Regex(const std::string& pattern, const std::string& thing);

  /// Appends to `pieces` each match in each of `texts` and each stretch between matches, in order; none is empty. Each
  /// text ends where it ends, whatever follows it in memory, and must be valid UTF-8. Throws BadInput if the pattern
  /// needs more work than PCRE2 allows.
  void split(std::span<const std::string_view> texts, std::vector<std::string_view>& pieces) const;

 private:
  std::shared_ptr<const pcre2_real_code_8> code_;
  std::string thing_;
};

}  // namespace engine
