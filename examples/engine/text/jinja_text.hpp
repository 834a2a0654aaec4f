// JinjaText: what can be read out of a Jinja template without running it: the code of its tags, one spelling for each.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace engine {

/// `text` as a string literal of JinjaText's code.
inline std::string jinja_literal(std::string_view text) { return '\2' + std::string(text) + '\3'; }

/// Code is rewritten so that equal things look equal: no spaces, literals unescaped between bytes 2 and 3, literals
/// that are added joined, message["role"] as message.role.
class JinjaText {
 public:
  /// `source` must hold neither byte 2 nor byte 3.
  explicit JinjaText(std::string_view source) {
    if (source.ends_with('\n')) source.remove_suffix(1);
    std::size_t at = 0;
    char before = '%';  // the kind of the tag before: { prints, % and # do not
    while (true) {
      const std::size_t open = std::min({source.find("{{", at), source.find("{%", at), source.find("{#", at)});
      const bool is_last = open == std::string_view::npos;
      std::string_view between = source.substr(at, is_last ? open : open - at);
      const char kind = is_last ? '{' : source[open + 1];
      if (at > 2 && source[at - 3] == '-')
        between.remove_prefix(std::min(between.find_first_not_of(" \n\t\r"), between.size()));
      else if (before != '{' && between.starts_with('\n'))  // trim_blocks, which chat templates are run with
        between.remove_prefix(1);
      if (!is_last && source.substr(open + 2).starts_with('-'))
        between = between.substr(0, between.find_last_not_of(" \n\t\r") + 1);
      else if (kind != '{')  // lstrip_blocks
        while (between.ends_with(' ') || between.ends_with('\t')) between.remove_suffix(1);
      if (!between.empty()) prints_between_tags_ = true;
      if (is_last) return;
      at = read_tag(source, open);
      before = kind;
    }
  }

  /// Text stands between the tags, so the template prints more than its code shows.
  bool prints_between_tags() const { return prints_between_tags_; }

  bool has(std::string_view code) const {
    return std::ranges::any_of(tags_, [&](const std::string& tag) { return tag.find(code) != std::string::npos; });
  }

  /// In order.
  const std::vector<std::string>& tags() const { return tags_; }

 private:
  /// Returns the end of the tag that begins at `open`.
  std::size_t read_tag(std::string_view source, std::size_t open) {
    if (source[open + 1] == '#') {
      const std::size_t end = source.find("#}", open);
      return end == std::string_view::npos ? source.size() : end + 2;
    }
    const std::string_view close = source[open + 1] == '{' ? "}}" : "%}";
    std::string code;
    std::size_t at = open + (source.substr(open + 2).starts_with('-') ? 3 : 2);
    while (at < source.size() && !source.substr(at).starts_with(close)) {
      if (source[at] == '\'' || source[at] == '"')
        at = read_literal(source, at, code);
      else if (const char c = source[at++]; c != ' ' && c != '\n' && c != '\t' && c != '\r')
        code += c;
    }
    if (code.ends_with('-')) code.pop_back();
    for (const char* member : {"role", "content"}) {
      const std::string subscript = '[' + jinja_literal(member) + ']';
      for (std::size_t i = code.find(subscript); i != std::string::npos; i = code.find(subscript))
        code.replace(i, subscript.size(), std::string(".") + member);
    }
    tags_.push_back(std::move(code));
    return std::min(source.size(), at + 2);
  }

  std::size_t read_literal(std::string_view source, std::size_t open, std::string& code) {
    std::string text;
    std::size_t at = open + 1;
    for (; at < source.size() && source[at] != source[open]; ++at) {
      if (source[at] == '\\' && at + 1 < source.size()) {
        const char escaped = source[++at];
        text += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped;
      } else {
        text += source[at];
      }
    }
    if (code.ends_with("\3+"))
      code.replace(code.size() - 2, 2, text + '\3');
    else
      code += jinja_literal(text);
    return at + 1;
  }

  std::vector<std::string> tags_;
  bool prints_between_tags_ = false;
};

}  // namespace engine
