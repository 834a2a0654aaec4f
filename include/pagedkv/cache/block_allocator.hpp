// BlockAllocator: who owns which block of KV memory; ids and reference counts only, no bytes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_records.hpp"
#include "pagedkv/cache/open_steps.hpp"
#include "pagedkv/cache/reclaimer.hpp"
#include "pagedkv/cache/table_nodes.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

class Reservation;

struct BlockAllocatorOptions {
  std::int32_t num_blocks;  // 1 .. 2^31 - 2
  std::int32_t block_size;  // token slots of one block, >= 1
};

/// The life of a block; docs/cache.md draws it.
enum class BlockState : std::uint8_t {
  free,         // nobody's
  writing,      // owned; not full, or not committed
  sealed,       // owned, full and committed; not published
  active,       // published and owned: nobody may write it
  idle,         // published, without an owner: evictable, so it counts as available
  quarantined,  // without an owner, but guarded until a step of another stream retires: not available
};

/// Names a point in other streams' time: the caller's own step numbers, growing.
using Fence = std::uint64_t;

/// Hands out blocks and counts their owners. Ids are handed out in a fixed order: last freed first, then ids never used
/// before. Per-block arrays are written on first use, so a large pool costs nothing until it fills; 16 bytes a block,
/// the list of free ids included. Single-owner: one thread at a time, with its sequences, step plans and prefix cache.
class BlockAllocator {
 public:
  explicit BlockAllocator(const BlockAllocatorOptions& options)
      : num_blocks_(checked(options).num_blocks),
        block_size_(options.block_size),
        records_(num_blocks_),
        recycled_(std::make_unique_for_overwrite<BlockId[]>(static_cast<std::size_t>(num_blocks_))) {}
  BlockAllocator(const BlockAllocator&) = delete;  // sequences, step plans and the prefix cache hold its address
  BlockAllocator& operator=(const BlockAllocator&) = delete;
  ~BlockAllocator() {
    walk(std::numeric_limits<std::int64_t>::max());
    PAGEDKV_ASSERT(num_free() == num_blocks_ && "a sequence or a step plan outlives its allocator");
    PAGEDKV_ASSERT(open_steps_.empty() && "a step plan outlives its allocator");
    PAGEDKV_ASSERT(num_reserved_ == 0 && "a reservation outlives its allocator");
    PAGEDKV_ASSERT(reclaimer_.evict == nullptr && "a prefix cache outlives its allocator");
  }

  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }
  int num_free() const { return num_recycled_ + (num_blocks_ - num_fresh_); }
  int num_idle() const { return num_idle_; }
  int num_used() const { return num_blocks_ - num_free() - num_idle_ - num_quarantined_; }  // owned or held
  int num_quarantined() const { return num_quarantined_; }
  int num_reserved() const { return num_reserved_; }

  /// What allocate() can give at once: free and idle blocks that are not reserved. Chunks of dead tables that are still
  /// to be walked, if any, are not in it.
  int num_available() const { return num_free() + num_idle_ - num_reserved_; }

  /// Fills `out` with distinct blocks, each with one owner, and returns true; or returns false and changes nothing.
  /// Evicts idle blocks only when free ones run out, and walks all dead tables before it says no. O(out.size()).
  [[nodiscard]] bool allocate(std::span<BlockId> out) {
    trace({.op = TraceOp::outside});
    if (out.size() == 1 && take_free(out[0])) return true;
    if (!make_available(std::ssize(out))) [[unlikely]]
      return false;
    take(out);
    return true;
  }

  /// The same, with what `reservation` holds counted as available to this call; what is taken leaves it.
  [[nodiscard]] bool allocate(std::span<BlockId> out, Reservation& reservation);

  /// Keeps `num_blocks` of the available blocks for later, no matter which; nullopt, and no change, if there are not so
  /// many.
  [[nodiscard]] std::optional<Reservation> reserve(int num_blocks);

  /// Adds one owner to each block. The blocks must be in use, idle or quarantined; idle ones must not be reserved.
  void retain(std::span<const BlockId> ids) {
    std::int64_t num_revived = 0;
    for (const BlockId id : ids) {
      check_live(id, "retain");
      if (records_.users(id) + ids.size() > detail::BlockRecords::max_users) [[unlikely]]
        fail(id, "retain", "fewer than 2^27 users", records_.users(id));
      num_revived += records_.users(id) == 0;
    }
    if (num_revived > num_available()) [[unlikely]]
      require(false, "BlockAllocator::retain: idle blocks at most", num_available(), num_revived);
    detail::ReclaimerBatch revived{reclaimer_.context, reclaimer_.left_idle};
    for (const BlockId id : ids) {
      const detail::Place before = records_.place(id);
      records_.add_user(id);
      if (before == detail::Place::used) [[likely]]
        continue;
      count(before, -1);
      if (before == detail::Place::idle) revived.add(id);
    }
  }

  /// Takes one owner from each block, the last first, so that a prefix becomes idle after its continuation and outlives
  /// it. Throws InvalidArgument and changes nothing when a block has fewer owners than it is named here.
  void release(std::span<const BlockId> ids) {
    const std::size_t num_freed = records_.drop_plain(ids, num_fresh_, recycled_.get() + num_recycled_);
    num_recycled_ += static_cast<std::int32_t>(num_freed);
    if (num_freed < ids.size()) release_others(ids, ids.size() - num_freed);
  }

  /// Number of owners: chunks of block tables that name the block, and callers of allocate() and retain().
  std::int32_t ref_count(BlockId id) const { return is_known(id) ? static_cast<std::int32_t>(records_.owners(id)) : 0; }

  BlockState state(BlockId id) const {
    if (!is_known(id)) return BlockState::free;
    switch (records_.place(id)) {
      case detail::Place::free:
        return BlockState::free;
      case detail::Place::idle:
        return BlockState::idle;
      case detail::Place::quarantined:
        return BlockState::quarantined;
      case detail::Place::used:
        break;
    }
    if (records_.is_published(id)) return BlockState::active;
    return records_.is_sealed(id) ? BlockState::sealed : BlockState::writing;
  }
  bool is_idle(BlockId id) const { return is_known(id) && records_.place(id) == detail::Place::idle; }
  bool is_published(BlockId id) const { return is_known(id) && records_.is_published(id); }

  /// Keeps the first `num_rows` rows of a block from being reused or overwritten until drop_hold(): a copy that is
  /// still to be made reads them. A hold is no owner. Holds nest, at most 65,535 of one block; the largest number of
  /// rows counts until the last one is dropped.
  void hold(BlockId id, std::int32_t num_rows) {
    check_hold(id);
    detail::BlockRecords::Pins pins = records_.pins(id);
    ++pins.holds;
    pins.held_rows = max(pins.held_rows, num_rows);
    pin(id, pins, +1);
  }

  void drop_hold(BlockId id) {
    detail::BlockRecords::Pins pins = is_known(id) ? records_.pins(id) : detail::BlockRecords::Pins{};
    if (pins.holds == 0) fail(id, "drop_hold", "a hold", "none");
    if (--pins.holds == 0) pins.held_rows = 0;
    pin(id, pins, -1);
  }

  /// Rows at the start of the block that nobody may write: all of a published block's, or those under a hold.
  std::int32_t num_frozen_rows(BlockId id) const {
    check_live(id, "num_frozen_rows");
    return records_.is_published(id) ? block_size_ : records_.pins(id).held_rows;
  }

  /// Another stream or a host copy uses these blocks until `fence`: without owners they are quarantined instead of free
  /// or evictable, until retire(). Work on the stream that also writes the blocks needs no guard: its order protects
  /// it. The guarded blocks must have an owner or be idle, and idle ones not be reserved.
  void guard(std::span<const BlockId> ids, Fence fence) {
    std::int64_t num_taken = 0;
    for (const BlockId id : ids) {
      check_live(id, "guard");
      check_guard(id);
      num_taken += records_.place(id) == detail::Place::idle;
    }
    require(num_taken <= num_available(), "BlockAllocator::guard: idle blocks at most", num_available(), num_taken);
    const std::size_t wanted = guards_.size() + ids.size();
    if (wanted > guards_.capacity()) guards_.reserve(std::max(wanted, 2 * guards_.capacity()));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (records_.pins(ids[i]).guards == detail::BlockRecords::max_pins) [[unlikely]] {  // it is named twice
        const BlockId full = ids[i];
        for (; i > 0; --i) drop_guard(ids[i - 1]), guards_.pop_back();
        fail(full, "guard", "fewer than 65,536 guards", "more");
      }
      detail::BlockRecords::Pins pins = records_.pins(ids[i]);
      ++pins.guards;
      pin(ids[i], pins, +1);
      guards_.push_back({fence, ids[i]});
    }
    for (const BlockId id : ids)
      trace(TraceRecord::with(TraceOp::guard, fence, static_cast<std::uint32_t>(to_index(id))));
  }

  /// All work up to and including `fence` has finished; of blocks that were guarded together the last comes back first.
  /// O(guards).
  void retire(Fence fence) {
    for (auto guard = guards_.rbegin(); guard != guards_.rend(); ++guard)
      if (guard->fence <= fence) drop_guard(guard->block);
    std::erase_if(guards_, [fence](const Guard& guard) { return guard.fence <= fence; });
    trace(TraceRecord::with(TraceOp::retire, fence));
  }

  /// The block is full and its rows are committed. Done by StepPlan::commit(); by hand for blocks filled otherwise.
  void seal(BlockId id) {
    check_live(id, "seal");
    records_.set_sealed(id, true);
  }

  /// For the prefix cache: from now on the block's content is frozen and, without owners, it is idle instead of free.
  void publish(BlockId id) {
    check_live(id, "publish");
    require(reclaimer_.evict != nullptr, "BlockAllocator::publish: reclaimer", "installed", "none");
    if (!records_.is_sealed(id)) fail(id, "publish", "full and committed", "not");
    records_.set_published(id, true);
  }

  /// For the prefix cache: nobody can find the block any more; an idle one becomes free.
  void unpublish(BlockId id) {
    if (!is_published(id)) fail(id, "unpublish", "published", "not");
    move(id, [&] { records_.set_published(id, false); });
  }

  /// A hint before calls about that block.
  void prefetch(BlockId id) const { records_.prefetch(id); }

  void install(const Reclaimer& reclaimer) {
    require(reclaimer_.evict == nullptr, "BlockAllocator::install: prefix caches of one allocator", 1, 2);
    reclaimer_ = reclaimer;
  }

  /// Takes the reclaimer away again; no block may be published any more.
  void uninstall() {
    PAGEDKV_ASSERT(num_idle() == 0);
    reclaimer_ = {};
  }

  /// Of a StepPlan's serial number: is that step filled and not committed?
  bool is_open(std::uint64_t serial) const { return open_steps_.find(serial) != nullptr; }

  /// Different for every allocator of the process, unlike its address.
  std::uint64_t id() const { return id_; }

  /// A long table is walked in pieces when it dies: 1,024 entries in each call that lets go of a table or commits a
  /// step. True while chunks are left.
  bool has_dead_tables() const { return nodes_.has_dead(); }

  /// Walks dead tables now: up to `max_entries` of their entries.
  void drain(std::int64_t max_entries = std::numeric_limits<std::int64_t>::max()) {
    walk(max_entries);
    trace(TraceRecord::with(TraceOp::drain, static_cast<std::uint64_t>(max_entries)));
  }

  /// From now on everything that is asked of this allocator's sequences, steps and prefix cache is written to `trace`,
  /// which must live until nullptr is passed here or the allocator dies. For a replay, begin before the first block.
  void record_to(Trace* trace) { trace_ = trace; }
  Trace* recorder() const { return trace_; }

  /// Asserts that every block is in exactly one place and that the counts say so. O(blocks ever used).
  void check_invariants() const;

  /// One number for everything that can influence a later call; equal before and after every failed operation.
  std::uint64_t state_hash() const;

 private:
  friend class BlockTable;   // shares and copies chunks
  friend class Reservation;  // gives its blocks back
  friend class Sequence;     // finds the plan that holds its uncommitted rows
  friend class StepPlan;     // opens and closes steps

  static constexpr std::int32_t max_blocks = std::numeric_limits<std::int32_t>::max() - 1;
  static constexpr std::int64_t walk_step = 1024;

  static std::uint64_t next_id() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }

  static const BlockAllocatorOptions& checked(const BlockAllocatorOptions& options) {
    require(options.num_blocks >= 1 && options.num_blocks <= max_blocks, "BlockAllocator: num_blocks",
            "1 .. 2147483646", options.num_blocks);
    require(options.block_size >= 1, "BlockAllocator: block_size", "at least 1", options.block_size);
    return options;
  }

  bool is_known(BlockId id) const { return detail::BlockRecords::is_below(id, num_fresh_); }

  void check_live(BlockId id, const char* operation) const {
    if (!is_known(id) || records_.place(id) == detail::Place::free) [[unlikely]]
      fail(id, operation, "a block in use", "a free one");
  }

  void drop_guard(BlockId id) {
    detail::BlockRecords::Pins pins = records_.pins(id);
    --pins.guards;
    pin(id, pins, -1);
  }

  void check_guard(BlockId id) const {
    if (records_.pins(id).guards == detail::BlockRecords::max_pins)
      fail(id, "guard", "fewer than 65,536 guards", 65535);
  }

  void check_hold(BlockId id) const {
    check_live(id, "hold");
    if (is_idle(id) && num_available() == 0) fail(id, "hold", "one that is not reserved", "a reserved idle one");
    if (records_.pins(id).holds == detail::BlockRecords::max_pins) fail(id, "hold", "fewer than 65,536 holds", 65535);
  }

  template <class Got>
  [[gnu::cold]] static void fail(BlockId id, const char* operation, const char* expected, const Got& got) {
    require(false, "BlockAllocator::" + std::string(operation) + ": block " + std::to_string(to_index(id)) + ":",
            expected, got);
  }

  // Free blocks are counted by the lists they are on, used ones by what is left.
  void count(detail::Place place, int change) {
    if (place == detail::Place::idle) num_idle_ += change;
    if (place == detail::Place::quarantined) num_quarantined_ += change;
  }

  bool make_available(std::int64_t wanted) {
    while (wanted > num_available()) {
      if (!nodes_.has_dead()) return false;
      walk(walk_step);
    }
    return true;
  }

  void walk(std::int64_t max_entries) {
    nodes_.walk_dead(max_entries, [this](std::span<const BlockId> blocks) { release(blocks); });
  }

  void trace(const TraceRecord& record) const {
    if (trace_ != nullptr) [[unlikely]]
      trace_->write(record);
  }

  // After make_available().
  void take(std::span<BlockId> out) {
    const auto wanted = static_cast<std::int32_t>(out.size());
    if (wanted > num_free()) [[unlikely]] {
      reclaimer_.evict(reclaimer_.context, wanted - num_free());
      PAGEDKV_ASSERT(num_free() == wanted && "evict must free exactly what is asked for");
    }
    const std::int32_t num_reused = min(wanted, num_recycled_);
    std::reverse_copy(recycled_.get() + num_recycled_ - num_reused, recycled_.get() + num_recycled_, out.begin());
    num_recycled_ -= num_reused;
    for (BlockId& id : out.subspan(static_cast<std::size_t>(num_reused))) id = BlockId{num_fresh_++};
    records_.start(out);
  }

  // Apart, so that release() itself stays small: the part for the first `left` blocks, the last of which has other
  // owners, or is published, pinned or not the caller's to release.
  [[gnu::noinline]] void release_others(std::span<const BlockId> ids, std::size_t left) {
    detail::ReclaimerBatch idle{reclaimer_.context, reclaimer_.became_idle};
    for (; left > 0; --left) {
      const BlockId id = ids[left - 1];
      if (!is_known(id) || records_.owners(id) == 0) [[unlikely]] {
        idle.flush();
        undo_release(ids.subspan(left));
        fail(id, "release", "an owner", is_known(id) ? "none left" : "a foreign id");
      }
      const detail::Place before = records_.place(id);
      records_.drop_user(id);
      const detail::Place after = records_.place(id);
      if (before == after) continue;
      count(after, +1);
      if (after == detail::Place::idle) idle.add(id);
      if (after == detail::Place::free) recycled_[static_cast<std::size_t>(num_recycled_++)] = id;
    }
  }

  // The blocks behind one that could not be released: their owners come back, the last released first.
  void undo_release(std::span<const BlockId> ids) {
    for (const BlockId id : ids) {
      const detail::Place before = records_.place(id);
      if (before == detail::Place::free) --num_recycled_;
      records_.add_user(id);
      recount(id, before);
    }
  }

  void pin(BlockId id, const detail::BlockRecords::Pins& pins, int change) {
    move(id, [&] {
      records_.set_pins(id, pins);
      change > 0 ? records_.add_user(id) : records_.drop_user(id);
    });
  }

  // Changes a record and brings the block to the place where it belongs then.
  template <class Change>
  void move(BlockId id, Change change) {
    const detail::Place before = records_.place(id);
    change();
    recount(id, before);
    if (before != detail::Place::free && records_.place(id) == detail::Place::free)
      recycled_[static_cast<std::size_t>(num_recycled_++)] = id;
  }

  void recount(BlockId id, detail::Place before) {
    const detail::Place after = records_.place(id);
    if (before == after) return;
    count(before, -1);
    count(after, +1);
    if (before == detail::Place::idle) reclaimer_.left_idle(reclaimer_.context, {&id, 1});
    if (after == detail::Place::idle) reclaimer_.became_idle(reclaimer_.context, {&id, 1});
  }

  // The free block on top, if it is not reserved.
  bool take_free(BlockId& out) {
    if (num_recycled_ == 0 || num_available() == 0) return false;
    out = recycled_[static_cast<std::size_t>(--num_recycled_)];
    records_.start({&out, 1});
    return true;
  }

  // May the one owner of a block write into it, wherever its rows end? Then it is no longer sealed.
  bool start_writing(BlockId id) {
    if (!records_.is_plain(id)) return false;
    unseal(id);
    return true;
  }

  // A block is written again from the middle on, by its one owner.
  void unseal(BlockId id) {
    if (records_.is_sealed(id)) records_.set_sealed(id, false);
  }

  struct Guard {
    Fence fence;
    BlockId block;
  };

  std::uint64_t id_ = next_id();
  std::int32_t num_blocks_;
  std::int32_t block_size_;
  std::int32_t num_fresh_ = 0;  // the ids below have been used at least once and have a record
  std::int32_t num_recycled_ = 0;
  std::int32_t num_reserved_ = 0;
  std::int32_t num_idle_ = 0;
  std::int32_t num_quarantined_ = 0;
  detail::BlockRecords records_;
  std::unique_ptr<BlockId[]> recycled_;  // a stack of free ids
  detail::TableNodes nodes_;
  Reclaimer reclaimer_;
  Trace* trace_ = nullptr;
  std::vector<Guard> guards_;
  detail::OpenSteps open_steps_;
  std::uint64_t next_table_ = 1;
};

}  // namespace v0
}  // namespace pagedkv

#include "pagedkv/cache/block_audit.hpp"
#include "pagedkv/cache/reservation.hpp"
