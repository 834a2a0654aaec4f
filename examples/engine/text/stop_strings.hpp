// StopStrings: ends a text where a stop string begins, while it streams.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/text/utf8.hpp"

namespace engine {

/// Takes the pieces of a StreamDecoder and gives on what may be shown: all but the end that could still become a stop
/// string. The first stop string to be complete ends the text, before its first byte; of several that are complete with
/// the same byte, the longest. How the text was cut into pieces changes nothing. O(text x stops): each stop string is
/// followed as in Knuth, Morris and Pratt 1977.
class StopStrings {
 public:
  /// Throws BadInput if a stop string is empty or not valid UTF-8.
  explicit StopStrings(std::vector<std::string> texts) {
    for (std::string& text : texts) {
      if (text.empty()) throw BadInput("stop", "no empty string", "one");
      if (utf8::find_invalid(text) != std::string_view::npos) throw BadInput("stop", "valid UTF-8", "other bytes");
      stops_.emplace_back(std::move(text));
    }
  }

  /// Returns what may be shown; nothing once a stop string was found. `text` must be whole characters; the result is.
  std::string push(std::string_view text) {
    if (found_) return {};
    const std::size_t before = held_.size();
    held_ += text;
    for (std::size_t i = before; i < held_.size(); ++i) {
      std::size_t longest = 0;
      for (Stop& stop : stops_)
        if (stop.push(held_[i])) longest = std::max(longest, stop.text.size());
      if (longest == 0) continue;
      found_ = true;
      held_.resize(i + 1 - longest);
      return std::exchange(held_, {});
    }
    std::size_t begun = 0;  // bytes at the end that could be the first of a stop string
    for (const Stop& stop : stops_) begun = std::max(begun, stop.num_matched);
    std::string shown = held_.substr(0, held_.size() - begun);
    held_.erase(0, shown.size());
    return shown;
  }

  /// A stop string is complete: generation can end.
  bool found() const { return found_; }

  /// Returns what was held back, for the text has ended.
  std::string flush() {
    for (Stop& stop : stops_) stop.num_matched = 0;
    return std::exchange(held_, {});
  }

 private:
  struct Stop {
    explicit Stop(std::string stop_text) : text(std::move(stop_text)), border(text.size(), 0) {
      for (std::size_t i = 1; i < text.size(); ++i) border[i] = advance(border[i - 1], text[i]);
    }

    /// Bytes matched after `byte`, where `matched` were before it.
    std::size_t advance(std::size_t matched, char byte) const {
      while (matched > 0 && text[matched] != byte) matched = border[matched - 1];
      return text[matched] == byte ? matched + 1 : matched;
    }

    bool push(char byte) {
      num_matched = advance(num_matched, byte);
      return num_matched == text.size();
    }

    std::string text;
    std::vector<std::size_t> border;  // of each beginning of text: how much of its end is also its beginning
    std::size_t num_matched = 0;
  };

  std::vector<Stop> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace engine
