// LfuEviction: evicts what was used least often, the least recently used first among equals.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pagedkv/cache/block_lists.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// Least frequently used first. A block counts its hits up to 15; blocks of one count form a list in order of use.
///
/// Counts age, or what was popular once would stay for ever: each `accesses_per_aging`-th access (published or touched)
/// halves the count of one block, all blocks taking turns. So all counts are halved once in 8 num_blocks accesses,
/// which is the reset of TinyLFU (Einziger, Friedman, Manes, ACM ToS 2017, section 3.3: a sample of some multiple of
/// the cache's size) spread out, for no call may be O(num_blocks). The turn goes from high ids to low ones because
/// continuations tend to have higher ids than what they continue, and should not outlive it.
class LfuEviction {
 public:
  static constexpr int max_count = 15;
  static constexpr int accesses_per_aging = 8;

  explicit LfuEviction(std::int32_t num_blocks) : idle_(num_blocks) {}

  void published([[maybe_unused]] BlockId block, std::uint64_t /*key*/, Retention) {
    PAGEDKV_ASSERT(!contains(block) && idle_.tag(block) == 0);
    age();
  }

  void touched(BlockId block, Retention) {
    idle_.set_tag(block, std::min(idle_.tag(block) + 1, max_count));
    age();
  }

  void insert(BlockId block) { idle_.push_hot(idle_.tag(block), block); }
  void remove(BlockId block) { idle_.unlink(block); }

  void forgotten(BlockId block, std::uint64_t /*key*/, bool /*evicted*/) {
    PAGEDKV_ASSERT(!contains(block));
    idle_.set_tag(block, 0);
  }

  void advance(std::int64_t /*now*/) {}
  void prefetch(BlockId block) const { idle_.prefetch(block); }

  BlockId coldest() const {
    const int list = idle_.first_occupied();
    return list <= max_count ? idle_.coldest(list) : BlockId::none;
  }

  bool contains(BlockId block) const { return idle_.is_linked(block); }
  int size() const { return idle_.size(); }
  std::uint64_t state_hash() const {
    return detail::hash_mix(detail::hash_mix(idle_.state_hash(), num_accesses_), last_aged_);
  }

 private:
  void age() {
    num_accesses_ = (num_accesses_ + 1) % accesses_per_aging;
    if (num_accesses_ != 0) return;
    last_aged_ = (last_aged_ == 0 ? idle_.num_blocks() : last_aged_) - 1;
    const BlockId block{last_aged_};
    const int count = idle_.tag(block);
    if (count == 0) return;
    idle_.set_tag(block, count / 2);
    if (!contains(block)) return;
    remove(block);
    insert(block);
  }

  detail::BlockLists<max_count + 1> idle_;
  std::int32_t num_accesses_ = 0;  // since a block was aged
  std::int32_t last_aged_ = 0;
};

static_assert(EvictionPolicy<LfuEviction>);

}  // namespace v0
}  // namespace pagedkv
