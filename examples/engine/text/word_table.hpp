// WordTable: from bytes to a token; open addressing, because it is asked once for every word of a text.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace engine {

/// One probe and one comparison a word, on average; 12 to 24 bytes a word and the words themselves.
class WordTable {
 public:
  /// A word added twice keeps the first id.
  void add(std::string_view word, std::int32_t id) {
    if (2 * (num_words_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[place_of(word)];
    if (slot.id >= 0) return;
    slot = {.begin = static_cast<std::uint32_t>(bytes_.size()),
            .length = static_cast<std::uint32_t>(word.size()),
            .id = id};
    bytes_ += word;
    ++num_words_;
  }

  std::optional<std::int32_t> find(std::string_view word) const {
    if (num_words_ == 0) return std::nullopt;
    const std::int32_t id = slots_[place_of(word)].id;
    return id < 0 ? std::nullopt : std::optional(id);
  }

 private:
  struct Slot {
    std::uint32_t begin = 0;  // in bytes_
    std::uint32_t length = 0;
    std::int32_t id = -1;  // -1: free
  };

  /// Where `word` is, or the free slot where it would be.
  std::size_t place_of(std::string_view word) const {
    std::size_t place = std::hash<std::string_view>{}(word) & (slots_.size() - 1);
    while (slots_[place].id >= 0 && std::string_view(bytes_).substr(slots_[place].begin, slots_[place].length) != word)
      place = (place + 1) & (slots_.size() - 1);
    return place;
  }

  void grow() {
    const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.empty() ? 16 : 2 * slots_.size()));
    for (const Slot& slot : old)
      if (slot.id >= 0) slots_[place_of(std::string_view(bytes_).substr(slot.begin, slot.length))] = slot;
  }

  std::vector<Slot> slots_;  // a power of two of them, at most half in use
  std::string bytes_;        // of all words, one behind the other
  std::size_t num_words_ = 0;
};

}  // namespace engine
