// Eviction policies: in which order idle blocks are given up. The prefix cache takes one as a template parameter.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>

#include "pagedkv/cache/block_lists.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// What the request that publishes or hits a block asks for. Policies that know no priorities or no deadlines ignore
/// them. Time is whatever the caller gives to advance().
struct Retention {
  static constexpr std::uint8_t max_priority = 15;
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

  std::uint8_t priority = 0;        // higher stays longer
  std::int64_t expires_at = never;  // from this time on the block is among the first to go

  /// Throws InvalidArgument. Policies take a retention as it is: whoever receives it from a user checks it.
  void validate() const {
    require(priority <= max_priority, "Retention: priority at most", int{max_priority}, int{priority});
  }

  bool operator==(const Retention&) const = default;
};

/// An order over idle blocks, made for a number of blocks. The life of a block, as the cache tells it:
///
///     published  {insert  touched? remove  | touched}*  forgotten
///
/// published: it has an owner and becomes findable; `key` is a 64-bit hash of its content and all that comes before it.
/// This may throw, before any change; nothing else may, since sequences die and steps are committed by way of the rest.
/// insert: its last owner let go, deepest block of a sequence first. touched: a request hit it; a block that is touched
/// while idle is removed next, so a policy may leave it where it is. remove: it has an owner again, or is about to be
/// forgotten. forgotten: it is no longer findable, `evicted` if to make room.
///
/// coldest() proposes, BlockId::none if there is no idle block. The cache never evicts a prefix before its continuation
/// and walks from the proposal to a leaf, so a good policy proposes leaves: parents are inserted after their children
/// and are touched whenever those are. advance() tells the time; a time before an earlier one is ignored. prefetch() is
/// a hint that insert() or remove() of that block comes soon. contains() may be asked of any block. Each call is O(1),
/// advance() O(deadlines that passed), state_hash() O(blocks).
template <class Policy>
concept EvictionPolicy = std::constructible_from<Policy, std::int32_t> &&
    requires(Policy policy, const Policy view, BlockId block, std::uint64_t key, Retention retention, bool evicted,
             std::int64_t now) {
  policy.published(block, key, retention);
  policy.touched(block, retention);
  policy.insert(block);
  policy.remove(block);
  policy.forgotten(block, key, evicted);
  policy.advance(now);
  policy.prefetch(block);
  { view.coldest() } -> std::same_as<BlockId>;
  { view.contains(block) } -> std::same_as<bool>;
  { view.size() } -> std::same_as<int>;
  { view.state_hash() } -> std::same_as<std::uint64_t>;
};

/// Least recently used first, where use ends when the last owner lets go.
class LruEviction {
 public:
  explicit LruEviction(std::int32_t num_blocks) : idle_(num_blocks) {}

  void published([[maybe_unused]] BlockId block, std::uint64_t /*key*/, Retention) { PAGEDKV_ASSERT(!contains(block)); }
  void touched(BlockId, Retention) {}
  void insert(BlockId block) { idle_.push_hot(0, block); }
  void remove(BlockId block) { idle_.unlink(block); }
  void forgotten([[maybe_unused]] BlockId block, std::uint64_t /*key*/, bool /*evicted*/) {
    PAGEDKV_ASSERT(!contains(block));
  }
  void advance(std::int64_t /*now*/) {}
  void prefetch(BlockId block) const { idle_.prefetch(block); }

  BlockId coldest() const { return idle_.coldest(0); }
  bool contains(BlockId block) const { return idle_.is_linked(block); }
  int size() const { return idle_.size(); }
  std::uint64_t state_hash() const { return idle_.state_hash(); }

 private:
  detail::BlockLists<1> idle_;
};

static_assert(EvictionPolicy<LruEviction>);

}  // namespace v0
}  // namespace pagedkv
