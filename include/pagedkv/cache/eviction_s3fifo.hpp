// S3FifoEviction: a small queue keeps what is used once from driving out what is used again.
#pragma once

#include <algorithm>
#include <array>
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

/// The last about `num_keys` keys, as fingerprints of 32 bits: a hash picks a bucket, and a bucket forgets its oldest
/// key when it takes a ninth. It may take one key for another, once in 2^28 look-ups or so.
class GhostKeys {
 public:
  explicit GhostKeys(std::int32_t num_keys)
      : num_buckets_((static_cast<std::uint64_t>(num_keys) + bucket_size - 1) / bucket_size), buckets_(num_buckets_) {}

  void add(std::uint64_t key) {
    const std::uint64_t h = hash_mix(0, key);
    Bucket& bucket = buckets_[bucket_of(h)];
    std::copy_backward(bucket.begin(), bucket.end() - 1, bucket.end());
    bucket.front() = fingerprint(h);
  }

  /// Whether the key was there; it no longer is.
  bool take(std::uint64_t key) {
    const std::uint64_t h = hash_mix(0, key);
    Bucket& bucket = buckets_[bucket_of(h)];
    const auto found = std::find(bucket.begin(), bucket.end(), fingerprint(h));
    if (found == bucket.end()) return false;
    std::copy(found + 1, bucket.end(), found);
    bucket.back() = 0;
    return true;
  }

  std::uint64_t state_hash() const {
    std::uint64_t h = 0;
    for (std::size_t i = 0; i < num_buckets_; ++i)
      for (const std::uint32_t key : buckets_[i])
        if (key != 0) h = hash_mix(hash_mix(h, std::uint64_t{i}), std::uint64_t{key});
    return h;
  }

 private:
  static constexpr std::size_t bucket_size = 8;
  using Bucket = std::array<std::uint32_t, bucket_size>;  // newest first; 0: no key

  // The high half of the hash picks the bucket (times their number, over 2^32), the low half is kept.
  std::size_t bucket_of(std::uint64_t h) const { return (h >> 32) * num_buckets_ >> 32; }
  static std::uint32_t fingerprint(std::uint64_t h) { return static_cast<std::uint32_t>(h) | 1; }

  std::size_t num_buckets_;
  LazyZeros<Bucket> buckets_;
};

}  // namespace detail

/// S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023, section 4). A
/// block starts in the small queue. Who is hit belongs to the main queue, and so does who comes back soon after it was
/// evicted from the small one: its key was a ghost. A victim is the oldest of the small queue while that has a tenth of
/// all idle blocks, else the oldest of the main queue that has no chance left; a block has a chance for each hit in the
/// main queue, at most three, and gives one up each time it is passed over, which takes it to the young end.
///
/// What differs from the paper, and why:
/// - A block in use is in no queue and joins the young end when it is idle again: it could be no victim in between.
/// - One hit, not two, leads to the main queue. A request hits a block and all that come before it, so whatever is in
///   the main queue has its prefix there too and the small queue's victims are leaves.
/// - At most `max_passed` blocks are passed over for one victim, then the oldest goes: no call walks a queue.
/// - Ghosts are as many as blocks, 4 bytes each, in buckets; the paper's are as many as the main queue holds.
class S3FifoEviction {
 public:
  static constexpr int max_chances = 3;
  static constexpr int max_passed = 8;

  explicit S3FifoEviction(std::int32_t num_blocks) : idle_(num_blocks), ghosts_(num_blocks) {}

  void published(BlockId block, std::uint64_t key, Retention) {
    PAGEDKV_ASSERT(!contains(block) && idle_.tag(block) == 0);
    if (ghosts_.take(key)) idle_.set_tag(block, no_chance);
  }

  void touched(BlockId block, Retention) {
    const int tag = idle_.tag(block);
    if ((tag & rank_mask) < no_chance + max_chances) idle_.set_tag(block, tag + 1);
  }

  void insert(BlockId block) {
    const int tag = idle_.tag(block);
    if (tag == small_rank) {
      idle_.set_tag(block, small_rank | in_small);
      ++num_small_;
    }
    idle_.push_hot(tag == small_rank ? small_queue : main_queue, block);
  }

  void remove(BlockId block) {
    if (const int tag = idle_.tag(block); (tag & in_small) != 0) {
      idle_.set_tag(block, tag & rank_mask);
      --num_small_;
    }
    idle_.unlink(block);
  }

  void forgotten(BlockId block, std::uint64_t key, bool evicted) {
    PAGEDKV_ASSERT(!contains(block));
    const int rank = idle_.tag(block);
    idle_.set_tag(block, 0);
    if (!evicted) return;
    if (rank == small_rank) return ghosts_.add(key);
    pass_over();
  }

  void advance(std::int64_t /*now*/) {}
  void prefetch(BlockId block) const { idle_.prefetch(block); }

  BlockId coldest() const {
    const int num_main = idle_.size() - num_small_;
    if (num_main == 0 || num_small_ * std::int64_t{10} >= idle_.size()) return idle_.coldest(small_queue);
    BlockId block = idle_.coldest(main_queue);
    for (int passed = 0; passed < max_passed && block != BlockId::none; ++passed) {
      if (idle_.tag(block) <= no_chance) return block;
      block = idle_.next_hotter(block);
    }
    return idle_.coldest(main_queue);
  }

  bool contains(BlockId block) const { return idle_.is_linked(block); }
  int size() const { return idle_.size(); }
  std::uint64_t state_hash() const { return detail::hash_mix(idle_.state_hash(), ghosts_.state_hash()); }

 private:
  enum Queue : int { small_queue, main_queue, num_queues };

  // A tag is a rank: 0 belongs to the small queue, 1 .. 4 to the main queue with 0 .. 3 chances. The fourth bit says
  // which queue the block is in, because a hit changes the rank first and then takes the block out.
  static constexpr int small_rank = 0;
  static constexpr int no_chance = 1;
  static constexpr int rank_mask = 7;
  static constexpr int in_small = 8;

  // After a victim of the main queue: those that it was preferred to, and are older, lose a chance.
  void pass_over() {
    for (int passed = 0; passed < max_passed; ++passed) {
      const BlockId oldest = idle_.coldest(main_queue);
      if (oldest == BlockId::none || idle_.tag(oldest) <= no_chance) return;
      idle_.set_tag(oldest, idle_.tag(oldest) - 1);
      idle_.unlink(oldest);
      idle_.push_hot(main_queue, oldest);
    }
  }

  detail::BlockLists<num_queues> idle_;
  detail::GhostKeys ghosts_;
  int num_small_ = 0;
};

static_assert(EvictionPolicy<S3FifoEviction>);

}  // namespace v0
}  // namespace pagedkv
