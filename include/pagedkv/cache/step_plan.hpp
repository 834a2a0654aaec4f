// StepPlan: what a back end must do before this step's attention: copy these blocks, then store rows into these slots.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// Copy the first `num_rows` token rows, all layers, K and V.
struct BlockCopy {
  BlockId source;
  BlockId destination;
  std::int32_t num_rows;
};

/// Filled by Sequence::append and PrefixCache::admit, executed by a back end, closed by commit(). It holds ids and
/// slots, never pointers to sequences. Copies come first and do not depend on each other; then each layer's rows are
/// stored.
class StepPlan {
 public:
  StepPlan() = default;
  StepPlan(const StepPlan&) = delete;  // the allocator holds the address of an open plan
  StepPlan& operator=(const StepPlan&) = delete;

  /// Every row must have been committed or killed. When an exception passes by, the step is given up: destroy its
  /// sequences too, their newest rows were never written.
  ~StepPlan() {
    PAGEDKV_ASSERT((num_live_rows_ == 0 && copies_.empty()) || std::uncaught_exceptions() > 0);
    commit();
  }

  /// Destinations are distinct; no copy reads what another one or this step's rows write. Copies of sequences that died
  /// are gone.
  std::span<const BlockCopy> copies() const { return copies_; }

  /// One slot per appended row, in the order of the appends; dead_slot where the row was truncated meanwhile.
  std::span<const Slot> slots() const { return slots_; }

  int num_rows() const { return static_cast<int>(slots_.size()); }
  bool empty() const { return slots_.empty() && copies_.empty(); }

  /// Everything this step writes is enqueued: its tokens become committed, the sources of its copies are let go, and
  /// the plan is empty, ready for the next step.
  void commit() {
    if (allocator_ == nullptr) return;
    for (const BlockCopy& copy : copies_) allocator_->drop_hold(copy.source);
    allocator_->close_step(serial_);
    allocator_ = nullptr;
    serial_ = 0;
    num_live_rows_ = 0;
    copies_.clear();
    slots_.clear();
  }

 private:
  friend class Sequence;

  void check_allocator(const BlockAllocator& allocator) const {
    require(allocator_ == nullptr || allocator_ == &allocator, "StepPlan: allocators in one step", 1, 2);
  }

  // Makes room before anything changes, so that append() cannot fail half-way.
  void prepare(BlockAllocator& allocator, int num_rows) {
    allocator.reserve_step();
    const auto rows = slots_.size() + static_cast<std::size_t>(num_rows);
    if (rows > slots_.capacity()) slots_.reserve(std::max(rows, 2 * slots_.capacity()));
    if (copies_.size() == copies_.capacity()) copies_.reserve(2 * copies_.size() + 1);
  }

  std::uint64_t open(BlockAllocator& allocator) {
    if (allocator_ == nullptr) {
      serial_ = allocator.open_step(*this);
      allocator_ = &allocator;
    }
    return serial_;
  }

  void add_copy(const BlockCopy& copy) {
    allocator_->hold(copy.source, copy.num_rows);
    copies_.push_back(copy);
  }

  void add_row(Slot slot) {
    slots_.push_back(slot);
    ++num_live_rows_;
  }

  void kill_rows(int first, int count) {
    for (int row = first; row < first + count; ++row) {
      Slot& slot = slots_[static_cast<std::size_t>(row)];
      num_live_rows_ -= slot != dead_slot;
      slot = dead_slot;
    }
  }

  // The pending copy into `destination`, if there is one.
  const BlockCopy* find_copy(BlockId destination) const {
    const auto copy = std::find_if(copies_.begin(), copies_.end(),
                                   [destination](const BlockCopy& c) { return c.destination == destination; });
    return copy == copies_.end() ? nullptr : &*copy;
  }

  void cancel_copy(BlockId destination) {
    const BlockCopy* copy = find_copy(destination);
    if (copy == nullptr) return;
    const BlockId source = copy->source;
    copies_.erase(copies_.begin() + (copy - copies_.data()));
    allocator_->drop_hold(source);
  }

  BlockAllocator* allocator_ = nullptr;  // null while the step is not open
  std::uint64_t serial_ = 0;
  int num_live_rows_ = 0;
  std::vector<BlockCopy> copies_;
  std::vector<Slot> slots_;
};

}  // namespace v0
}  // namespace pagedkv
