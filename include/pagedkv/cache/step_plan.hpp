// StepPlan: what a back end must do before this step's attention: copy these blocks, then store rows into these slots.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <utility>
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

namespace detail {

/// The items of a step: a vector whose push_back() is a store and no more, as room was made for the item before.
template <class T>
class StepItems {
 public:
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  bool empty() const { return size_ == 0; }
  T* begin() const { return items_.get(); }
  T* end() const { return items_.get() + size_; }
  T& operator[](std::size_t i) const { return items_[i]; }
  void clear() { size_ = 0; }
  void push_back(const T& item) { items_[size_++] = item; }
  T* extend(std::size_t count) { return items_.get() + std::exchange(size_, size_ + count); }  // to be written
  void make_room(std::size_t count) {
    if (size_ + count <= capacity_) return;
    const std::size_t capacity = std::max(size_ + count, 2 * capacity_);
    auto items = std::make_unique_for_overwrite<T[]>(capacity);
    std::copy_n(items_.get(), size_, items.get());
    items_ = std::move(items);
    capacity_ = capacity;
  }

 private:
  std::unique_ptr<T[]> items_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace detail

/// Filled by Sequence::append, Sequence::reserve and PrefixCache::admit, executed by a back end, closed by commit(). It
/// holds ids and slots, never pointers to sequences. Copies come first and do not depend on each other; then each
/// layer's rows are stored.
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
  std::span<const Slot> slots() const { return {slots_.begin(), slots_.end()}; }

  int num_rows() const { return static_cast<int>(slots_.size()); }
  bool empty() const { return slots_.empty() && copies_.empty(); }

  /// Names the step while it is open: 0 before the first append and after commit().
  std::uint64_t serial() const { return serial_; }

  /// Everything this step writes is enqueued: its tokens become committed, the blocks they fill are sealed, the sources
  /// of its copies are let go, and the plan is empty, ready for the next step. O(copies + filled blocks).
  void commit() {
    if (allocator_ == nullptr) return;
    for (const Filled& filled : filled_)
      if (slots_[static_cast<std::size_t>(filled.last_row)] != dead_slot) allocator_->seal(filled.block);
    for (const BlockCopy& copy : copies_) allocator_->drop_hold(copy.source);
    allocator_->open_steps_.close(serial_);
    allocator_->walk(BlockAllocator::walk_step);
    allocator_->trace({.op = TraceOp::commit, .b = static_cast<std::uint32_t>(serial_)});
    allocator_ = nullptr;
    serial_ = 0;
    num_live_rows_ = 0;
    copies_.clear();
    slots_.clear();
    filled_.clear();
  }

 private:
  friend class Sequence;

  // A row behind which its block is full.
  struct Filled {
    int last_row;
    BlockId block;
  };

  void check_allocator(const BlockAllocator& allocator) const {
    require(allocator_ == nullptr || allocator_ == &allocator, "StepPlan: allocators in one step", 1, 2);
  }

  // Makes room before anything changes, so that append() cannot fail half-way.
  void prepare(BlockAllocator& allocator, int num_rows, int num_blocks) {
    if (allocator_ == nullptr) allocator.open_steps_.reserve();
    slots_.make_room(static_cast<std::size_t>(num_rows));
    filled_.make_room(static_cast<std::size_t>(num_blocks));
    if (copies_.size() == copies_.capacity()) copies_.reserve(2 * copies_.size() + 1);
  }

  std::uint64_t open(BlockAllocator& allocator) {
    if (allocator_ == nullptr) {
      serial_ = allocator.open_steps_.open(*this);
      allocator_ = &allocator;
    }
    return serial_;
  }

  void add_copy(const BlockCopy& copy) {
    allocator_->hold(copy.source, copy.num_rows);
    copies_.push_back(copy);
  }

  bool has_room_for_row() const { return slots_.size() < slots_.capacity() && filled_.size() < filled_.capacity(); }

  void add_row(BlockId block, int block_size, int row) {
    ++num_live_rows_;
    slots_.push_back(static_cast<Slot>(to_index(block)) * block_size + row);
    if (row + 1 == block_size) fills(block);
  }

  // Rows that lie one behind the other in one block.
  void add_rows(Slot first, int count) {
    num_live_rows_ += count;
    Slot* const slots = slots_.extend(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) slots[i] = first + i;
  }

  // The newest row is the last one of its block, and with it the block is full.
  void fills(BlockId block) { filled_.push_back({num_rows() - 1, block}); }

  void kill_rows(int first, int count) {
    for (int row = first; row < first + count; ++row) {
      Slot& slot = slots_[static_cast<std::size_t>(row)];
      num_live_rows_ -= slot != dead_slot;
      slot = dead_slot;
    }
  }

  void cancel_copy(BlockId destination) {
    const auto copy =
        std::ranges::find_if(copies_, [destination](const BlockCopy& c) { return c.destination == destination; });
    if (copy == copies_.end()) return;
    const BlockId source = copy->source;
    copies_.erase(copy);
    allocator_->drop_hold(source);
  }

  BlockAllocator* allocator_ = nullptr;  // null while the step is not open
  std::uint64_t serial_ = 0;
  int num_live_rows_ = 0;
  std::vector<BlockCopy> copies_;
  detail::StepItems<Slot> slots_;
  detail::StepItems<Filled> filled_;
};

}  // namespace v0
}  // namespace pagedkv
