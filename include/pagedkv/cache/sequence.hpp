// Sequence: the tokens of one request or beam and the blocks they lie in; copy-on-write lives here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/block_table.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// A list of tokens by position; gives its blocks back when it dies. Tokens are uncommitted from append() until the
/// commit() of their step. Blocks are shared by fork() and copied on write, never on fork (the copy-on-write of Kwon et
/// al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023).
///
/// Two rules make every pending copy independent of every other write of its step: a fork shares committed tokens only,
/// and it shares the source, not the destination, of a copy that is still pending.
class Sequence {
 public:
  explicit Sequence(BlockAllocator& allocator) : allocator_(&allocator), table_(allocator.block_size()) {}
  Sequence(Sequence&& other) noexcept
      : allocator_(other.allocator_),
        table_(std::exchange(other.table_, BlockTable{other.table_.block_size()})),
        size_(std::exchange(other.size_, 0)),
        num_committed_(std::exchange(other.num_committed_, 0)),
        num_released_blocks_(std::exchange(other.num_released_blocks_, 0)),
        step_(std::exchange(other.step_, 0)),
        rows_(std::exchange(other.rows_, {})) {}
  Sequence& operator=(Sequence&& other) noexcept {
    Sequence taken{std::move(other)};
    std::swap(allocator_, taken.allocator_);
    std::swap(table_, taken.table_);
    std::swap(size_, taken.size_);
    std::swap(num_committed_, taken.num_committed_);
    std::swap(num_released_blocks_, taken.num_released_blocks_);
    std::swap(step_, taken.step_);
    std::swap(rows_, taken.rows_);
    return *this;
  }
  ~Sequence() { truncate(0); }

  /// Makes room for `num_tokens` more tokens and writes their slots, and the block copy they may need, into `plan`.
  /// False: out of blocks, and nothing has changed. A sequence takes part in one open step at a time. O(num_tokens).
  [[nodiscard]] bool append(int num_tokens, StepPlan& plan) {
    require(num_tokens >= 0, "Sequence::append: num_tokens", "at least 0", num_tokens);
    require(num_tokens <= std::numeric_limits<int>::max() - size_, "Sequence::append: size", "below 2^31",
            static_cast<std::int64_t>(size_) + num_tokens);
    settle();
    require(step_ == 0 || step_ == plan.serial_, "Sequence::append: open steps of one sequence", 1, 2);
    plan.check_allocator(*allocator_);
    if (num_tokens == 0) return true;

    const int block_size = table_.block_size();
    const bool copies_tail = must_copy_tail();
    const int num_blocks = ceil_div(size_ + num_tokens, block_size);
    const int num_new = num_blocks - table_.num_blocks() + (copies_tail ? 1 : 0);
    if (num_new > allocator_->num_available()) return false;  // before room is made for what does not fit
    plan.prepare(*allocator_, num_tokens);
    table_.reserve(num_blocks);
    rows_.reserve(rows_.size() + 1);
    std::vector<BlockId> fresh(static_cast<std::size_t>(num_new));
    if (!allocator_->allocate(fresh)) return false;

    step_ = plan.open(*allocator_);
    if (copies_tail) {
      const BlockId source = table_.blocks().back();
      plan.add_copy({.source = source, .destination = fresh.front(), .num_rows = size_ % block_size});
      table_.replace(table_.num_blocks() - 1, fresh.front());
      allocator_->release({&source, 1});
    }
    table_.append(std::span(fresh).subspan(copies_tail ? 1 : 0));
    add_rows(num_tokens, plan);
    return true;
  }

  /// A second sequence with the same committed tokens; uncommitted ones stay with this sequence alone. Never fails for
  /// lack of blocks and moves no K or V. O(blocks).
  [[nodiscard]] Sequence fork() const {
    const int num_tokens = num_committed();
    BlockTable table = table_;
    table.truncate(ceil_div(num_tokens, table.block_size()));
    if (const BlockCopy* copy = pending_copy()) table.replace(table.num_blocks() - 1, copy->source);
    const int num_released = min(num_released_blocks_, table.num_blocks());
    allocator_->retain(table.blocks().subspan(static_cast<std::size_t>(num_released)));

    Sequence child{*allocator_};
    std::swap(child.table_, table);
    child.size_ = child.num_committed_ = num_tokens;
    child.num_released_blocks_ = num_released;
    return child;
  }

  /// Becomes one more owner of blocks that hold `num_tokens` committed tokens; the last block may hold more rows than
  /// are used here. For an empty sequence: the prefix cache's hits, blocks that came from elsewhere.
  void adopt(std::span<const BlockId> blocks, int num_tokens) {
    require(size_ == 0 && table_.num_blocks() == 0, "Sequence::adopt: size", 0, size_);
    require(num_tokens >= 0 && std::ssize(blocks) == ceil_div(num_tokens, table_.block_size()),
            "Sequence::adopt: blocks", ceil_div(num_tokens, table_.block_size()), std::ssize(blocks));
    table_.reserve(static_cast<int>(blocks.size()));
    allocator_->retain(blocks);
    table_.append(blocks);
    size_ = num_committed_ = num_tokens;
  }

  /// Forgets the tokens from position `num_tokens` on. Uncommitted ones among them are killed in their plan. Never
  /// fails for lack of blocks; 0 makes the sequence empty. A window that was released cannot come back: num_tokens must
  /// be 0 or lie behind it. O(dropped blocks).
  void truncate(int num_tokens) {
    const int block_size = table_.block_size();
    require(num_tokens >= 0 && num_tokens <= size_, "Sequence::truncate: num_tokens at most", size_, num_tokens);
    require(num_tokens == 0 || num_tokens >= num_released_blocks_ * block_size,
            "Sequence::truncate: num_tokens 0 or at least", num_released_blocks_ * block_size, num_tokens);
    settle();
    kill_rows_from(num_tokens);
    const int num_kept = ceil_div(num_tokens, block_size);
    if (const BlockCopy* copy = pending_copy(); copy != nullptr && num_kept <= num_committed_ / block_size)
      open_plan()->cancel_copy(copy->destination);
    release_entries(max(num_kept, num_released_blocks_), table_.num_blocks());
    table_.truncate(num_kept);
    size_ = num_tokens;
    num_released_blocks_ = min(num_released_blocks_, num_kept);
    num_committed_ = min(num_committed_, num_tokens);
    if (size_ == num_committed_ && pending_copy() == nullptr) step_ = 0;
  }

  /// Drops the blocks that lie wholly before `position`, behind a sliding window: their entries become BlockId::none,
  /// which no kernel may read. Not for a window with sink tokens, whose first blocks stay visible. `position` is at most
  /// num_committed(). Never fails for lack of blocks.
  void release_before(int position) {
    require(position >= 0 && position <= num_committed(), "Sequence::release_before: position at most", num_committed(),
            position);
    const int end = position / table_.block_size();
    if (end <= num_released_blocks_) return;
    release_entries(num_released_blocks_, end);
    for (int i = num_released_blocks_; i < end; ++i) table_.replace(i, BlockId::none);
    num_released_blocks_ = end;
  }

  int size() const { return size_; }
  int num_committed() const { return open_plan() != nullptr ? num_committed_ : size_; }
  std::span<const BlockId> blocks() const { return table_.blocks(); }
  const BlockTable& table() const { return table_; }
  BlockAllocator& allocator() const { return *allocator_; }

 private:
  // Rows of an open plan that belong to consecutive uncommitted positions.
  struct RowRange {
    int first;
    int count;
  };

  StepPlan* open_plan() const { return step_ == 0 ? nullptr : allocator_->find_step(step_); }

  // Learns that its step has been committed meanwhile.
  void settle() {
    if (step_ == 0 || open_plan() != nullptr) return;
    step_ = 0;
    num_committed_ = size_;
    rows_.clear();
  }

  // A block with rows of this sequence's open step has this sequence as its one writer: others share only the committed
  // rows in front of them. Otherwise a shared tail, a published one, or rows that a pending copy reads ask for a copy.
  bool must_copy_tail() const {
    const int tail_rows = size_ % table_.block_size();
    if (tail_rows == 0 || size_ > num_committed_) return false;
    const BlockId tail = table_.blocks().back();
    return allocator_->ref_count(tail) > 1 || tail_rows < allocator_->num_frozen_rows(tail);
  }

  // The copy that fills the committed rows of the tail, if the open step has yet to make it. Only the block with the
  // newest committed token can be the destination of one.
  const BlockCopy* pending_copy() const {
    const StepPlan* plan = open_plan();
    if (plan == nullptr || num_committed_ % table_.block_size() == 0) return nullptr;
    return plan->find_copy(table_.blocks()[static_cast<std::size_t>(num_committed_ / table_.block_size())]);
  }

  void add_rows(int count, StepPlan& plan) {
    if (!rows_.empty() && rows_.back().first + rows_.back().count == plan.num_rows()) {
      rows_.back().count += count;
    } else {
      rows_.push_back({plan.num_rows(), count});
    }
    for (int i = 0; i < count; ++i) plan.add_row(table_.slot(size_ + i));
    size_ += count;
  }

  // Kills and forgets the rows of the positions from `end` on.
  void kill_rows_from(int end) {
    int kept = max(end - num_committed_, 0);
    for (RowRange& range : rows_) {
      const int alive = min(range.count, kept);
      open_plan()->kill_rows(range.first + alive, range.count - alive);
      range.count = alive;
      kept -= alive;
    }
    std::erase_if(rows_, [](const RowRange& range) { return range.count == 0; });
  }

  void release_entries(int begin, int end) {
    if (begin >= end) return;
    allocator_->release(
        table_.blocks().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
  }

  BlockAllocator* allocator_;
  BlockTable table_;
  int size_ = 0;
  int num_committed_ = 0;        // equals size_ unless step_ is open
  int num_released_blocks_ = 0;  // entries at the front of the table that are BlockId::none
  std::uint64_t step_ = 0;       // the step that holds this sequence's uncommitted rows or pending copy
  std::vector<RowRange> rows_;   // of the positions num_committed_ .. size_ - 1, in order
};

}  // namespace v0
}  // namespace pagedkv
