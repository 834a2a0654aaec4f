// BlockRecords: what the allocator remembers of each block, packed: users, flags and pins; 12 bytes a block.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/prefetch.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Where the allocator finds a block. A quarantined one has guards, but neither owners nor holds.
enum class Place : std::uint8_t { free, used, idle, quarantined };

/// Users of a block are its owners (chunks of block tables that name it), holds (pending copies that read it) and
/// guards (work on other streams). The arrays are allocated in full and written on first use, so that memory follows
/// the blocks that were ever handed out and nothing here can fail later.
class BlockRecords {
 public:
  static constexpr std::uint32_t max_users = (1u << 27) - 1;
  static constexpr std::uint32_t max_pins = (1u << 16) - 1;  // holds, and guards, of one block

  /// Rare, hence apart: valid while the block's word says so.
  struct Pins {
    std::uint16_t guards;
    std::uint16_t holds;
    std::int32_t held_rows;  // the most rows that any of the holds reads
  };

  explicit BlockRecords(std::int32_t num_blocks)
      : words_(std::make_unique_for_overwrite<Word[]>(static_cast<std::size_t>(num_blocks))),
        pins_(std::make_unique_for_overwrite<Pins[]>(static_cast<std::size_t>(num_blocks))) {}

  /// One owner each, nothing else.
  void start(std::span<const BlockId> ids) {
    for (; ids.size() >= run; ids = ids.subspan(run)) {
      if (is_run(ids.data())) {
        std::fill_n(&words_[index(ids[0])], run, Word{1});
      } else {
        for (std::size_t i = 0; i < run; ++i) words_[index(ids[i])] = Word{1};
      }
    }
    for (const BlockId id : ids) words_[index(id)] = Word{1};
  }

  /// Exactly one user, and that is an owner; not published. Such a block becomes free with its owner.
  bool is_plain(BlockId id) const { return (word(id) & plain_mask) == 1; }

  /// Takes the one user off each of the last blocks of `ids` that are plain and below `end`, last to first, and writes
  /// them to `freed` in that order; stops at the first other one. Returns their number.
  std::size_t drop_plain(std::span<const BlockId> ids, std::int32_t end, BlockId* freed) {
    BlockId* const first_freed = freed;
    std::size_t left = ids.size();
    while (left >= run && is_run(&ids[left - run]) && is_plain_run(ids[left - run], end)) {
      left -= run;
      drop_run(ids[left]);
      freed = std::reverse_copy(&ids[left], &ids[left] + run, freed);
    }
    for (; left > 0; --left) {
      const BlockId id = ids[left - 1];
      if (!is_below(id, end) || !is_plain(id)) break;
      drop_user(id);
      *freed++ = id;
    }
    return static_cast<std::size_t>(freed - first_freed);
  }

  static bool is_below(BlockId id, std::int32_t end) {
    return static_cast<std::uint32_t>(to_index(id)) < static_cast<std::uint32_t>(end);
  }

  void prefetch(BlockId id) const { detail::prefetch(&words_[index(id)]); }

  std::uint32_t users(BlockId id) const { return word(id) & users_mask; }
  void add_user(BlockId id) { words_[index(id)] = Word{word(id) + 1}; }
  void drop_user(BlockId id) { words_[index(id)] = Word{word(id) - 1}; }

  bool is_published(BlockId id) const { return (word(id) & published) != 0; }
  bool is_sealed(BlockId id) const { return (word(id) & sealed) != 0; }
  void set_published(BlockId id, bool on) { set(id, published, on); }
  void set_sealed(BlockId id, bool on) { set(id, sealed, on); }

  bool is_pinned(BlockId id) const { return (word(id) & pinned) != 0; }
  Pins pins(BlockId id) const { return is_pinned(id) ? pins_[index(id)] : Pins{}; }
  void set_pins(BlockId id, const Pins& pins) {
    pins_[index(id)] = pins;
    set(id, pinned, pins.guards > 0 || pins.holds > 0);
  }

  std::uint32_t owners(BlockId id) const {
    const Pins p = pins(id);
    return users(id) - p.guards - p.holds;
  }

  Place place(BlockId id) const {
    if (users(id) == 0) return is_published(id) ? Place::idle : Place::free;
    return is_pinned(id) && users(id) == pins_[index(id)].guards ? Place::quarantined : Place::used;
  }

 private:
  static constexpr std::uint32_t users_mask = max_users;
  static constexpr std::uint32_t sealed = 1u << 29;
  static constexpr std::uint32_t published = 1u << 30;
  static constexpr std::uint32_t pinned = 1u << 31;
  static constexpr std::uint32_t plain_mask = users_mask | published | pinned;

  // Users and flags. A type of its own: a compiler that sees one written need not read the allocator's counters again.
  enum class Word : std::uint32_t {};

  // Blocks that were handed out together have ids in a row, and words side by side: eight are handled as four pairs in
  // 64 bits each, which halves the instructions (and in a loop of eight separate ones no compiler saw it).
  static constexpr std::size_t run = 8;
  using Pairs = std::array<std::uint64_t, run / 2>;

  static constexpr std::uint64_t pair_of(std::uint32_t value) { return value * 0x1'0000'0001u; }

  template <class T>
  static Pairs load(const T* eight) {
    Pairs pairs;
    std::memcpy(pairs.data(), eight, sizeof pairs);
    return pairs;
  }

  static bool is_run(const BlockId* ids) {
    const Pairs p = load(ids);
    const std::uint64_t step = pair_of(2);
    return (((p[1] - p[0]) ^ step) | ((p[2] - p[0]) ^ (2 * step)) | ((p[3] - p[0]) ^ (3 * step))) == 0 &&
           to_index(ids[1]) - to_index(ids[0]) == 1;
  }

  bool is_plain_run(BlockId first, std::int32_t end) const {
    if (!is_below(first, end) || end - to_index(first) < static_cast<std::int32_t>(run)) return false;
    std::uint64_t differ = 0;
    for (const std::uint64_t pair : load(&words_[index(first)])) differ |= (pair & pair_of(plain_mask)) ^ pair_of(1);
    return differ == 0;
  }

  void drop_run(BlockId first) {
    Pairs pairs = load(&words_[index(first)]);
    for (std::uint64_t& pair : pairs) pair -= pair_of(1);
    std::memcpy(&words_[index(first)], pairs.data(), sizeof pairs);
  }

  static std::size_t index(BlockId id) { return static_cast<std::size_t>(to_index(id)); }
  std::uint32_t word(BlockId id) const { return static_cast<std::uint32_t>(words_[index(id)]); }
  void set(BlockId id, std::uint32_t flag, bool on) {
    words_[index(id)] = Word{on ? word(id) | flag : word(id) & ~flag};
  }

  std::unique_ptr<Word[]> words_;
  std::unique_ptr<Pins[]> pins_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
