// BlockAllocator: who owns which block of KV memory; ids and reference counts only, no bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

class StepPlan;

struct BlockAllocatorOptions {
  std::int32_t num_blocks;  // 1 .. 2^31 - 2
  std::int32_t block_size;  // token slots of one block, >= 1
};

/// What a prefix cache installs so that the blocks it publishes outlive their owners. An IDLE block is published and
/// has no owner; the order in which idle blocks are given up belongs to the cache.
struct Reclaimer {
  void* context = nullptr;
  void (*became_idle)(void* context, BlockId block) = nullptr;
  void (*left_idle)(void* context, BlockId block) = nullptr;
  void (*evict)(void* context) = nullptr;  // must unpublish exactly one idle block
};

/// Hands out blocks and counts their owners. A block is FREE, USED (has owners or holds) or IDLE. Ids are handed out in
/// a fixed order: last freed first, then ids never used before. Records are made on first use, so a large pool costs
/// nothing until it fills. Not thread-safe.
class BlockAllocator {
 public:
  explicit BlockAllocator(const BlockAllocatorOptions& options)
      : num_blocks_(options.num_blocks), block_size_(options.block_size) {
    require(options.num_blocks >= 1 && options.num_blocks <= max_blocks, "BlockAllocator: num_blocks",
            "1 .. 2147483646", options.num_blocks);
    require(options.block_size >= 1, "BlockAllocator: block_size", "at least 1", options.block_size);
  }
  BlockAllocator(const BlockAllocator&) = delete;  // sequences, step plans and the prefix cache hold its address
  BlockAllocator& operator=(const BlockAllocator&) = delete;
  ~BlockAllocator() {
    PAGEDKV_ASSERT(num_free() == num_blocks_ && "a sequence or a step plan outlives its allocator");
    PAGEDKV_ASSERT(open_steps_.empty() && "a step plan outlives its allocator");
    PAGEDKV_ASSERT(reclaimer_.evict == nullptr && "a prefix cache outlives its allocator");
  }

  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }
  int num_free() const { return num_blocks_ - num_used_ - num_idle_; }
  int num_idle() const { return num_idle_; }
  int num_available() const { return num_blocks_ - num_used_; }
  int num_used() const { return num_used_; }

  /// Fills `out` with distinct blocks, each with one owner, and returns true; or returns false and changes nothing.
  /// Evicts idle blocks only when free ones run out. O(out.size()).
  [[nodiscard]] bool allocate(std::span<BlockId> out) {
    const auto wanted = static_cast<std::int64_t>(out.size());
    if (wanted > num_available()) return false;
    const auto first_fresh = records_.size();  // records first: making them may throw, an eviction cannot be undone
    const auto num_unused = num_blocks_ - static_cast<std::int64_t>(first_fresh);
    const auto num_fresh = clamp(wanted - num_recycled_, std::int64_t{0}, num_unused);
    records_.resize(first_fresh + static_cast<std::size_t>(num_fresh));
    while (wanted > num_free()) {
      [[maybe_unused]] const int before = num_free();
      reclaimer_.evict(reclaimer_.context);
      PAGEDKV_ASSERT(num_free() == before + 1 && "evict must free exactly one block");
    }
    auto fresh = static_cast<std::int32_t>(first_fresh);
    for (BlockId& id : out) id = num_recycled_ > 0 ? pop_recycled() : BlockId{fresh++};
    for (const BlockId id : out) record(id) = {.owners = 1, .state = State::used};
    num_used_ += static_cast<std::int32_t>(wanted);
    return true;
  }

  /// Adds one owner to each block. The blocks must be used or idle.
  void retain(std::span<const BlockId> ids) {
    for (const BlockId id : ids) {
      check_live(id, "retain");
      if (static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max() - record(id).owners) < ids.size())
        fail(id, "retain", "fewer than 2^31 owners", record(id).owners);
    }
    for (const BlockId id : ids) {
      revive(id);
      ++record(id).owners;
    }
  }

  /// Takes one owner from each block, the last first, so that a prefix becomes idle after its continuation and outlives
  /// it. Throws InvalidArgument before any change when a block has fewer owners than it is named here.
  void release(std::span<const BlockId> ids) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const bool known = is_known(ids[i]);
      if (known && record(ids[i]).owners > 0) {
        --record(ids[i]).owners;
        continue;
      }
      for (std::size_t undone = 0; undone < i; ++undone) ++record(ids[undone]).owners;
      fail(ids[i], "release", "an owner", known ? "none left" : "a foreign id");
    }
    for (auto id = ids.rbegin(); id != ids.rend(); ++id) settle(*id);
  }

  /// Number of owners: table entries that name the block. Holds are not owners.
  std::int32_t ref_count(BlockId id) const { return is_known(id) ? record(id).owners : 0; }

  /// Keeps the first `num_rows` rows of a block from being reused or overwritten until drop_hold(): a copy that is
  /// still to be made reads them. Holds nest; the largest number of rows counts until the last one is dropped.
  void hold(BlockId id, std::int32_t num_rows) {
    check_live(id, "hold");
    revive(id);
    ++record(id).holds;
    record(id).held_rows = std::max(record(id).held_rows, num_rows);
  }

  void drop_hold(BlockId id) {
    if (!is_known(id) || record(id).holds == 0) fail(id, "drop_hold", "a hold", "none");
    if (--record(id).holds == 0) record(id).held_rows = 0;
    settle(id);
  }

  /// Rows at the start of the block that nobody may write: all of a published block's, or those under a hold.
  std::int32_t num_frozen_rows(BlockId id) const {
    check_live(id, "num_frozen_rows");
    return record(id).published ? block_size_ : record(id).held_rows;
  }

  bool is_idle(BlockId id) const { return is_known(id) && record(id).state == State::idle; }
  bool is_published(BlockId id) const { return is_known(id) && record(id).published; }

  /// For the prefix cache: from now on the block's content is frozen and, without owners, it is idle instead of free.
  void publish(BlockId id) {
    check_live(id, "publish");
    require(reclaimer_.evict != nullptr, "BlockAllocator::publish: reclaimer", "installed", "none");
    record(id).published = true;
  }

  /// For the prefix cache: nobody can find the block any more; an idle one becomes free.
  void unpublish(BlockId id) {
    if (!is_published(id)) fail(id, "unpublish", "published", "not");
    revive(id);
    record(id).published = false;
    settle(id);
  }

  void install(const Reclaimer& reclaimer) {
    require(reclaimer_.evict == nullptr, "BlockAllocator::install: prefix caches of one allocator", 1, 2);
    reclaimer_ = reclaimer;
  }

  /// Takes the reclaimer away again; no block may be published any more.
  void uninstall() {
    PAGEDKV_ASSERT(num_idle_ == 0);
    reclaimer_ = {};
  }

  /// Asserts that every block is in exactly one place and that the counts say so. O(blocks ever used).
  void check_invariants() const {
    [[maybe_unused]] std::int32_t used = 0, idle = 0, free = 0;
    for (const Record& r : records_) {
      used += r.state == State::used;
      idle += r.state == State::idle;
      free += r.state == State::free;
      PAGEDKV_ASSERT(r.owners >= 0 && r.holds >= 0);
      PAGEDKV_ASSERT((r.owners > 0 || r.holds > 0) == (r.state == State::used));
      PAGEDKV_ASSERT(r.state != State::idle || r.published);
      PAGEDKV_ASSERT(r.state != State::free || !r.published);
      PAGEDKV_ASSERT(r.holds > 0 || r.held_rows == 0);
    }
    PAGEDKV_ASSERT(used == num_used_ && idle == num_idle_ && free == num_recycled_);
    [[maybe_unused]] std::int32_t listed = 0;
    for (std::int32_t id = recycled_; id != -1; id = records_[static_cast<std::size_t>(id)].next_recycled) {
      PAGEDKV_ASSERT(records_[static_cast<std::size_t>(id)].state == State::free);
      ++listed;
      PAGEDKV_ASSERT(listed <= free && "the free list is a chain without a cycle");
    }
    PAGEDKV_ASSERT(listed == free);
  }

  /// One number for everything that can influence a later call; equal before and after every failed operation.
  std::uint64_t state_hash() const {
    std::uint64_t h = detail::hash_mix(static_cast<std::uint64_t>(num_blocks_), block_size_);
    for (const Record& r : records_) {
      h = detail::hash_mix(h, r.owners);
      h = detail::hash_mix(h, r.holds);
      h = detail::hash_mix(h, r.held_rows);
      h = detail::hash_mix(h, static_cast<std::int32_t>(r.state) * 2 + (r.published ? 1 : 0));
    }
    for (std::int32_t id = recycled_; id != -1; id = records_[static_cast<std::size_t>(id)].next_recycled)
      h = detail::hash_mix(h, id);
    return h;
  }

 private:
  friend class Sequence;  // finds the plan that holds its uncommitted rows
  friend class StepPlan;  // opens and closes steps

  static constexpr std::int32_t max_blocks = std::numeric_limits<std::int32_t>::max() - 1;

  enum class State : std::uint8_t { free, used, idle };

  struct Record {
    std::int32_t owners = 0;
    std::int32_t holds = 0;
    std::int32_t held_rows = 0;
    std::int32_t next_recycled = -1;
    State state = State::free;
    bool published = false;
  };

  Record& record(BlockId id) { return records_[static_cast<std::size_t>(to_index(id))]; }
  const Record& record(BlockId id) const { return records_[static_cast<std::size_t>(to_index(id))]; }

  bool is_known(BlockId id) const {
    return to_index(id) >= 0 && static_cast<std::size_t>(to_index(id)) < records_.size();
  }

  void check_live(BlockId id, const char* operation) const {
    if (!is_known(id) || record(id).state == State::free) fail(id, operation, "a block in use", "a free one");
  }

  template <class Got>
  static void fail(BlockId id, const char* operation, const char* expected, const Got& got) {
    require(false, "BlockAllocator::" + std::string(operation) + ": block " + std::to_string(to_index(id)) + ":",
            expected, got);
  }

  BlockId pop_recycled() {
    const BlockId id{recycled_};
    recycled_ = record(id).next_recycled;
    --num_recycled_;
    return id;
  }

  // An idle block gets an owner, a hold, or is unpublished: it is used until settle() says otherwise.
  void revive(BlockId id) {
    if (record(id).state != State::idle) return;
    reclaimer_.left_idle(reclaimer_.context, id);
    record(id).state = State::used;
    --num_idle_;
    ++num_used_;
  }

  // Sends a used block without owners and holds where it belongs. Calling it twice is harmless.
  void settle(BlockId id) {
    Record& r = record(id);
    if (r.state != State::used || r.owners > 0 || r.holds > 0) return;
    --num_used_;
    if (r.published) {
      r.state = State::idle;
      ++num_idle_;
      reclaimer_.became_idle(reclaimer_.context, id);
    } else {
      r.state = State::free;
      r.next_recycled = recycled_;
      recycled_ = to_index(id);
      ++num_recycled_;
    }
  }

  // Steps that are filled but not committed. Few at a time, so a list; a sequence names its step by serial and so
  // learns of the commit without the plan knowing any sequence.
  struct OpenStep {
    std::uint64_t serial;
    StepPlan* plan;
  };

  // Makes room, so that open_step() cannot throw.
  void reserve_step() {
    if (open_steps_.size() == open_steps_.capacity()) open_steps_.reserve(2 * open_steps_.size() + 1);
  }

  std::uint64_t open_step(StepPlan& plan) {
    open_steps_.push_back({next_serial_, &plan});
    return next_serial_++;
  }

  void close_step(std::uint64_t serial) {
    std::erase_if(open_steps_, [serial](const OpenStep& step) { return step.serial == serial; });
  }

  StepPlan* find_step(std::uint64_t serial) const {
    for (const OpenStep& step : open_steps_)
      if (step.serial == serial) return step.plan;
    return nullptr;
  }

  std::int32_t num_blocks_;
  std::int32_t block_size_;
  std::int32_t num_used_ = 0;
  std::int32_t num_idle_ = 0;
  std::vector<Record> records_;  // of the ids 0 .. records_.size() - 1, which have been used at least once
  std::int32_t recycled_ = -1;   // head of the chain of free ids among them
  std::int32_t num_recycled_ = 0;
  Reclaimer reclaimer_;
  std::vector<OpenStep> open_steps_;
  std::uint64_t next_serial_ = 1;  // 0 means "no step"
};

}  // namespace v0
}  // namespace pagedkv
