// BlockLists: doubly linked lists over block ids, one 64-bit word a block.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/prefetch.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Zeros that cost nothing until they are written: calloc takes a large array from the system, whose pages are zero and
/// come one by one, so records of 10^7 blocks exist at once and every one of them may be read at any time.
template <class T>
class LazyZeros {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  explicit LazyZeros(std::size_t count) : items_(static_cast<T*>(std::calloc(count, sizeof(T)))) {
    if (items_ == nullptr) raise_bad_alloc();
  }

  T& operator[](std::size_t index) { return items_[index]; }
  const T& operator[](std::size_t index) const { return items_[index]; }

 private:
  struct Free {
    void operator()(T* items) const { std::free(items); }
  };

  std::unique_ptr<T[], Free> items_;
};

/// NumLists lists that share the blocks 0 .. num_blocks - 1: a block is in one list or in none. Each block also has a
/// tag of four bits, zero at first, that linking and unlinking leave alone. Every operation is O(1) and allocates
/// nothing.
///
/// A word is `colder` (30 bits), `hotter` (30 bits), tag (4 bits). Links are places in the array of words: place 0 is
/// no place, then come the heads of the lists, then the blocks. A head closes its list to a ring, so that no operation
/// asks whether it is at an end, and a word of zeros is an unlinked block.
template <int NumLists>
class BlockLists {
 public:
  static constexpr std::int32_t max_num_blocks = (1 << 30) - 1 - NumLists;

  explicit BlockLists(std::int32_t num_blocks) : num_blocks_(checked(num_blocks)), words_(place(num_blocks)) {
    for (std::uint64_t head = 1; head <= NumLists; ++head) words_[head] = head | head << hotter_shift;
  }

  int num_blocks() const { return num_blocks_; }

  /// Blocks in all lists.
  int size() const { return size_; }

  bool is_linked(BlockId block) const { return colder(word(block)) != 0; }

  /// 0 .. 15.
  int tag(BlockId block) const { return static_cast<int>(word(block) >> tag_shift); }
  void set_tag(BlockId block, int tag) {
    PAGEDKV_ASSERT(0 <= tag && tag < 16);
    word(block) = (word(block) & ~tag_mask) | static_cast<std::uint64_t>(tag) << tag_shift;
  }

  void push_hot(int list, BlockId block) {
    PAGEDKV_ASSERT(0 <= list && list < NumLists);
    PAGEDKV_ASSERT(!is_linked(block));
    const std::uint64_t head = head_of(list);
    const std::uint64_t self = place(block);
    const std::uint64_t hottest = colder(words_[head]);
    words_[self] |= hottest | head << hotter_shift;
    words_[hottest] ^= (head ^ self) << hotter_shift;  // a link that is known changes by one xor
    words_[head] ^= hottest ^ self;
    occupied_[bits_of(list)] |= bit_of(list);
    ++size_;
  }

  void unlink(BlockId block) {
    PAGEDKV_ASSERT(is_linked(block));
    const std::uint64_t self = place(block);
    const std::uint64_t before = colder(words_[self]);
    const std::uint64_t behind = hotter(words_[self]);
    words_[self] &= tag_mask;
    words_[before] ^= (self ^ behind) << hotter_shift;
    words_[behind] ^= self ^ before;
    if (before == behind) {  // only the head is left
      const int list = static_cast<int>(before) - 1;
      occupied_[bits_of(list)] &= ~bit_of(list);
    }
    --size_;
  }

  /// BlockId::none if the list is empty.
  BlockId coldest(int list) const { return block_at(hotter(words_[head_of(list)])); }

  /// The next block towards the hot end of the same list, or BlockId::none.
  BlockId next_hotter(BlockId block) const { return block_at(hotter(word(block))); }

  /// The first list that is not empty, or NumLists.
  int first_occupied() const {
    for (std::size_t i = 0; i < occupied_.size(); ++i)
      if (occupied_[i] != 0) return static_cast<int>(i) * 64 + std::countr_zero(occupied_[i]);
    return NumLists;
  }

  void prefetch(BlockId block) const { detail::prefetch(&words_[place(block)]); }

  /// Of the lists' order and of all tags. O(num_blocks).
  std::uint64_t state_hash() const {
    std::uint64_t h = 0;
    for (int list = 0; list < NumLists; ++list) {
      for (BlockId block = coldest(list); block != BlockId::none; block = next_hotter(block))
        h = hash_mix(hash_mix(h, list), to_index(block));
    }
    for (int i = 0; i < num_blocks_; ++i)
      if (const int t = tag(BlockId{i}); t != 0) h = hash_mix(hash_mix(h, i), t);
    return h;
  }

 private:
  static constexpr int hotter_shift = 30;
  static constexpr int tag_shift = 60;
  static constexpr std::uint64_t link_mask = (std::uint64_t{1} << 30) - 1;
  static constexpr std::uint64_t tag_mask = ~std::uint64_t{0} << tag_shift;

  static std::int32_t checked(std::int32_t num_blocks) {
    require(num_blocks >= 1, "EvictionPolicy: num_blocks at least", 1, num_blocks);
    require(num_blocks <= max_num_blocks, "EvictionPolicy: num_blocks at most", max_num_blocks, num_blocks);
    return num_blocks;
  }

  static constexpr std::uint64_t place(std::int32_t index) { return static_cast<std::uint64_t>(index) + NumLists + 1; }
  std::uint64_t place(BlockId block) const {
    PAGEDKV_ASSERT(0 <= to_index(block) && to_index(block) < num_blocks_);
    return place(to_index(block));
  }
  static constexpr std::uint64_t head_of(int list) { return static_cast<std::uint64_t>(list) + 1; }
  static constexpr BlockId block_at(std::uint64_t at) {
    return at <= NumLists ? BlockId::none : BlockId{static_cast<std::int32_t>(at - NumLists - 1)};
  }
  static constexpr std::uint64_t colder(std::uint64_t word) { return word & link_mask; }
  static constexpr std::uint64_t hotter(std::uint64_t word) { return word >> hotter_shift & link_mask; }
  static constexpr std::size_t bits_of(int list) { return static_cast<std::size_t>(list) / 64; }
  static constexpr std::uint64_t bit_of(int list) { return std::uint64_t{1} << (list % 64); }

  std::uint64_t& word(BlockId block) { return words_[place(block)]; }
  const std::uint64_t& word(BlockId block) const { return words_[place(block)]; }

  std::int32_t num_blocks_;
  int size_ = 0;
  std::array<std::uint64_t, bits_of(NumLists - 1) + 1> occupied_{};
  LazyZeros<std::uint64_t> words_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
