// Regex: cuts text into pieces with PCRE2, in Unicode mode; std::regex knows neither \p{L} nor speed.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

// PCRE2's types without its header, whose macros would reach every includer.
struct pcre2_real_code_8;

namespace engine {

/// Meant for patterns written for Oniguruma. One known difference: PCRE2 takes U+180E for a space, Unicode no longer
/// does.
class Regex {
 public:
  /// Throws BadInput, naming `thing`, if `pattern` does not compile.
  Regex(const std::string& pattern, const std::string& thing);

  /// Appends to `pieces` each match in `text` and each stretch between matches, in order; none is empty. `text` must be
  /// valid UTF-8. Throws BadInput if the pattern needs more work on this text than PCRE2 allows.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  std::shared_ptr<const pcre2_real_code_8> code_;
  std::string thing_;
};

}  // namespace engine
