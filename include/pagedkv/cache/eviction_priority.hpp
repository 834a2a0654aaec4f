// PriorityEviction: evicts by priority and deadline, the least recently used first among equals.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "pagedkv/cache/block_lists.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Idle blocks by deadline: a hierarchical timing wheel (Varghese and Lauck, SOSP 1987, scheme 7). A time is eleven
/// digits of six bits. A block waits in the slot (highest digit in which its deadline differs from now, that digit's
/// value); when now reaches the slot's first moment, the block moves to a lower digit, at most ten times in all. Blocks
/// with equal deadlines are always in one slot and keep the order in which they were added.
class DeadlineWheel {
 public:
  explicit DeadlineWheel(std::int32_t num_blocks) : slots_(num_blocks) {}

  std::int64_t now() const { return time_of(now_); }

  /// Without a cache miss when nobody waits.
  bool contains(BlockId block) const { return slots_.size() != 0 && slots_.is_linked(block); }
  void remove(BlockId block) { slots_.unlink(block); }

  /// The deadline is after now().
  void add(BlockId block, std::int64_t deadline) {
    const std::uint64_t ticks = ticks_of(deadline);
    PAGEDKV_ASSERT(ticks > now_);
    const int digit = (63 - std::countl_zero(ticks ^ now_)) / digit_bits;
    const std::uint64_t value = ticks >> (digit * digit_bits) & (num_values - 1);
    slots_.push_hot(digit * num_values + static_cast<int>(value), block);
  }

  /// Makes it `time` (nothing if that is not after now()). Takes out the blocks whose deadlines have passed and hands
  /// them to expire(block), earliest deadline first, in the order of add() among equals.
  template <class DeadlineOf, class Expire>
  void advance(std::int64_t time, const DeadlineOf& deadline_of, const Expire& expire) {
    const std::uint64_t target = ticks_of(time);
    if (target <= now_) return;
    // No slot in use lies before now, and lower digits are nearer: the first one in use is reached next.
    for (int slot; (slot = slots_.first_occupied()) < num_slots;) {
      const std::uint64_t start = start_of(slot);
      if (start > target) break;
      now_ = start;
      for (BlockId block; (block = slots_.coldest(slot)) != BlockId::none;) {
        slots_.unlink(block);
        const std::int64_t deadline = deadline_of(block);
        if (ticks_of(deadline) <= now_)
          expire(block);
        else
          add(block, deadline);
      }
    }
    now_ = target;
  }

  void prefetch(BlockId block) const { slots_.prefetch(block); }
  std::uint64_t state_hash() const { return hash_mix(slots_.state_hash(), now_); }

 private:
  static constexpr int digit_bits = 6;
  static constexpr int num_values = 1 << digit_bits;
  static constexpr int num_slots = (64 + digit_bits - 1) / digit_bits * num_values;
  static constexpr std::uint64_t sign = std::uint64_t{1} << 63;

  // Unsigned and in the same order.
  static constexpr std::uint64_t ticks_of(std::int64_t time) { return static_cast<std::uint64_t>(time) ^ sign; }
  static constexpr std::int64_t time_of(std::uint64_t ticks) { return static_cast<std::int64_t>(ticks ^ sign); }

  // Now's digits above the slot's, the slot's, zeros.
  std::uint64_t start_of(int slot) const {
    const int shift = slot / num_values * digit_bits;
    const int above = shift + digit_bits;
    const std::uint64_t kept = above < 64 ? now_ >> above << above : 0;
    return kept | static_cast<std::uint64_t>(slot % num_values) << shift;
  }

  BlockLists<num_slots> slots_;
  std::uint64_t now_ = 0;
};

}  // namespace detail

/// Lowest priority first, least recently used first within one. A block whose deadline has passed goes before all that
/// are in time, in order of deadline, then of becoming idle; a block that is in use when it expires goes behind those
/// that have expired already. Time starts at the smallest std::int64_t.
///
/// What a block is kept for is one Retention. A hit with a higher priority replaces it; with the same priority the
/// later deadline holds; with a lower one it stays as it is; of an expired block any hit replaces it. So a passer-by
/// neither shortens nor prolongs what a more important request asked for. Two retentions are not kept side by side: a
/// high priority with a near deadline takes the place of a low one with a far deadline. 16 bytes a block beside the
/// order's 8 for deadlines, in memory that is not touched where there are none.
class PriorityEviction {
 public:
  explicit PriorityEviction(std::int32_t num_blocks)
      : idle_(num_blocks), wheel_(num_blocks), deadlines_(static_cast<std::size_t>(num_blocks)) {}

  void published(BlockId block, std::uint64_t /*key*/, Retention retention) {
    PAGEDKV_ASSERT(!contains(block));
    keep(block, retention);
  }

  void touched(BlockId block, Retention retention) {
    const int priority = idle_.tag(block);
    const bool is_stronger = is_expired(block) || retention.priority > priority ||
                             (retention.priority == priority && retention.expires_at > deadline(block));
    if (is_stronger) keep(block, retention);
  }

  void insert(BlockId block) {
    if (is_expired(block)) return idle_.push_hot(expired, block);
    idle_.push_hot(first_level + idle_.tag(block), block);
    if (deadline(block) != Retention::never) wheel_.add(block, deadline(block));
  }

  void remove(BlockId block) {
    idle_.unlink(block);
    if (wheel_.contains(block)) wheel_.remove(block);
  }

  void forgotten(BlockId block, std::uint64_t /*key*/, bool /*evicted*/) {
    PAGEDKV_ASSERT(!contains(block));
    keep(block, {});
  }

  void advance(std::int64_t now) {
    wheel_.advance(
        now, [this](BlockId block) { return deadline(block); },
        [this](BlockId block) {
          idle_.unlink(block);
          idle_.push_hot(expired, block);
        });
  }

  void prefetch(BlockId block) const {
    idle_.prefetch(block);
    wheel_.prefetch(block);
    detail::prefetch(&deadlines_[index(block)]);
  }

  BlockId coldest() const {
    const int list = idle_.first_occupied();
    return list < num_lists ? idle_.coldest(list) : BlockId::none;
  }

  bool contains(BlockId block) const { return idle_.is_linked(block); }
  int size() const { return idle_.size(); }

  std::uint64_t state_hash() const {
    std::uint64_t h = detail::hash_mix(idle_.state_hash(), wheel_.state_hash());
    for (int i = 0; i < idle_.num_blocks(); ++i)
      h = detail::hash_mix(h, static_cast<std::uint64_t>(deadline(BlockId{i})));
    return h;
  }

 private:
  static constexpr int expired = 0;
  static constexpr int first_level = 1;
  static constexpr int num_lists = first_level + Retention::max_priority + 1;

  std::size_t index(BlockId block) const {
    PAGEDKV_ASSERT(0 <= to_index(block) && to_index(block) < idle_.num_blocks());
    return static_cast<std::size_t>(to_index(block));
  }
  std::int64_t deadline(BlockId block) const { return deadlines_[index(block)] ^ Retention::never; }
  bool is_expired(BlockId block) const { return deadline(block) <= wheel_.now(); }

  void keep(BlockId block, Retention retention) {
    idle_.set_tag(block, retention.priority);
    std::int64_t& stored = deadlines_[index(block)];
    if (const std::int64_t wanted = retention.expires_at ^ Retention::never; stored != wanted) stored = wanted;
  }

  detail::BlockLists<num_lists> idle_;  // a block's tag is its priority
  detail::DeadlineWheel wheel_;
  detail::LazyZeros<std::int64_t> deadlines_;  // xor never: what was not written has none
};

static_assert(EvictionPolicy<PriorityEviction>);

}  // namespace v0
}  // namespace pagedkv
