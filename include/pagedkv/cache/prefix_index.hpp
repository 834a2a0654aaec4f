// PrefixIndex: finds entries of the prefix tree by 32 bits of their hash; an open-addressed table, 8 bytes a slot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_lists.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Names an entry of a PrefixTree; `none` is the parent of the roots.
enum class EntryId : std::int32_t { none = -1 };

/// Linear probing at a load of at most 1/2; erasing shifts back what follows, so no search passes a tombstone. A slot
/// holds all that growing and shifting need: the entries themselves are not looked at.
class PrefixIndex {
 public:
  PrefixIndex() : slots_(16) {}

  /// The first entry with this fingerprint of which `is_wanted(entry)` holds, or EntryId::none.
  template <class IsWanted>
  EntryId find(std::uint32_t fingerprint, IsWanted is_wanted) const {
    for (std::size_t at = home(fingerprint); slots_[at].entry != EntryId::none; at = next(at))
      if (slots_[at].fingerprint == fingerprint && is_wanted(slots_[at].entry)) return slots_[at].entry;
    return EntryId::none;
  }

  void prefetch(std::uint32_t fingerprint) const { detail::prefetch(&slots_[home(fingerprint)]); }

  /// Makes room for `count` entries in all: insert() does not throw then, and nothing else has changed.
  void reserve(std::size_t count) {
    if (2 * count <= slots_.size()) return;
    std::size_t size = slots_.size();
    while (2 * count > size) size *= 2;
    std::vector<Slot> old(size);
    std::swap(slots_, old);
    for (const Slot& slot : old)
      if (slot.entry != EntryId::none) insert(slot.fingerprint, slot.entry);
  }

  void insert(std::uint32_t fingerprint, EntryId entry) {
    std::size_t at = home(fingerprint);
    while (slots_[at].entry != EntryId::none) at = next(at);
    slots_[at] = {.fingerprint = fingerprint, .entry = entry};
  }

  /// The entry is there, under this fingerprint.
  void erase(std::uint32_t fingerprint, EntryId entry) {
    std::size_t hole = home(fingerprint);
    while (slots_[hole].entry != entry) hole = next(hole);
    for (std::size_t at = next(hole); slots_[at].entry != EntryId::none; at = next(at)) {
      // A search for this slot's entry starts at its home; it passes the hole if the hole lies between the two.
      if (distance(home(slots_[at].fingerprint), at) < distance(hole, at)) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = {};
  }

  void clear() { std::fill(slots_.begin(), slots_.end(), Slot{}); }

 private:
  struct Slot {
    std::uint32_t fingerprint = 0;
    EntryId entry = EntryId::none;
  };

  std::size_t home(std::uint32_t fingerprint) const { return fingerprint & (slots_.size() - 1); }
  std::size_t next(std::size_t at) const { return (at + 1) & (slots_.size() - 1); }
  std::size_t distance(std::size_t from, std::size_t to) const { return (to - from) & (slots_.size() - 1); }

  std::vector<Slot> slots_;  // a power of two
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
