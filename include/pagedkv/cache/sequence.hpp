// Sequence: the tokens of one request or beam and the blocks they lie in; copy-on-write lives here.
#pragma once

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
/// commit() of their step; drafts until accept(). Blocks are shared by fork() and copied on write, never on fork (the
/// copy-on-write of Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
/// 2023). Of a sequence that was moved from nothing may be asked, but it can be assigned to.
///
/// Two rules make every pending copy independent of every other write of its step: a fork shares committed tokens only,
/// and it shares the source, not the destination, of a copy that is still pending.
class Sequence {
 public:
  explicit Sequence(BlockAllocator& allocator) : table_(allocator) {}
  Sequence(Sequence&& other) noexcept
      : table_(std::move(other.table_)),
        size_(std::exchange(other.size_, 0)),
        num_committed_(std::exchange(other.num_committed_, 0)),
        num_drafts_(std::exchange(other.num_drafts_, 0)),
        num_released_blocks_(std::exchange(other.num_released_blocks_, 0)),
        may_publish_(other.may_publish_),
        copy_source_(std::exchange(other.copy_source_, BlockId::none)),
        step_(std::exchange(other.step_, 0)),
        rows_(std::exchange(other.rows_, {})),
        more_rows_(std::exchange(other.more_rows_, {})) {}
  Sequence& operator=(Sequence&& other) noexcept {
    Sequence taken{std::move(other)};
    std::swap(table_, taken.table_);
    std::swap(size_, taken.size_);
    std::swap(num_committed_, taken.num_committed_);
    std::swap(num_drafts_, taken.num_drafts_);
    std::swap(num_released_blocks_, taken.num_released_blocks_);
    std::swap(may_publish_, taken.may_publish_);
    std::swap(copy_source_, taken.copy_source_);
    std::swap(step_, taken.step_);
    std::swap(rows_, taken.rows_);
    std::swap(more_rows_, taken.more_rows_);
    return *this;
  }
  ~Sequence() {
    if (table_.allocator() == nullptr) return;
    shorten_to(0);
    trace(TraceOp::drop);
  }

  /// Makes room for `num_tokens` more tokens and writes their slots, and the block copy they may need, into `plan`.
  /// False: out of blocks, and nothing has changed. A sequence takes part in one open step at a time. O(num_tokens).
  [[nodiscard]] bool append(int num_tokens, StepPlan& plan) {
    const bool appended = (num_tokens == 1 && append_one(plan)) || extend(num_tokens, plan, nullptr, Kind::token);
    trace(TraceOp::append, static_cast<std::uint32_t>(plan.serial_), num_tokens, appended);
    return appended;
  }

  /// The same; blocks come out of the reservation first.
  [[nodiscard]] bool append(int num_tokens, StepPlan& plan, Reservation& reservation) {
    const bool appended = extend(num_tokens, plan, &reservation, Kind::token);
    trace(TraceOp::append, static_cast<std::uint32_t>(plan.serial_), num_tokens, appended);
    return appended;
  }

  /// Like append(), for tokens that are guessed (speculative decoding). They get rows and blocks, but stay uncommitted,
  /// unshared and unpublished when their step is committed, until accept() decides. No append() comes between.
  [[nodiscard]] bool reserve(int num_drafts, StepPlan& plan) {
    const bool reserved = extend(num_drafts, plan, nullptr, Kind::draft);
    trace(TraceOp::draft, static_cast<std::uint32_t>(plan.serial_), num_drafts, reserved);
    return reserved;
  }

  /// After the drafts' step: the first `num_accepted` of them are tokens from now on, the others are forgotten and
  /// their blocks given back. O(drafts).
  void accept(int num_accepted) {
    check_alive();
    settle();
    require(num_drafts_ == 0 || step_ == 0, "Sequence::accept: the drafts' step", "committed", "open");
    require(num_accepted >= 0 && num_accepted <= num_drafts_, "Sequence::accept: num_accepted at most", num_drafts_,
            num_accepted);
    const int block_size = table_.block_size();
    const int first = num_committed_ / block_size;
    shorten_to(num_committed_ + num_accepted);
    num_drafts_ = 0;
    num_committed_ = size_;
    for (int i = first; i < size_ / block_size; ++i) pool().seal(table_[i]);
    trace(TraceOp::accept, 0, num_accepted);
  }
  void rollback() { accept(0); }

  /// A second sequence with the same committed tokens; uncommitted ones and drafts stay with this sequence alone. Never
  /// fails for lack of blocks and moves no K or V. O(1) in the length; where the tail holds blocks of uncommitted
  /// tokens, one path of the table is copied.
  [[nodiscard]] Sequence fork() const {
    check_alive();
    const int num_tokens = num_committed();
    const int num_blocks = ceil_div(num_tokens, table_.block_size());
    const bool copies = open_plan() != nullptr && copy_source_ != BlockId::none;
    if (num_blocks < table_.num_blocks() || copies) table_.prepare(0, 2);
    Sequence child{table_.share()};
    child.table_.truncate(num_blocks);
    if (copies) {
      pool().retain({&copy_source_, 1});
      child.table_.replace(num_blocks - 1, copy_source_);
    }
    child.size_ = child.num_committed_ = num_tokens;
    child.num_released_blocks_ = min(num_released_blocks_, num_blocks);
    child.may_publish_ = may_publish_;
    trace(TraceOp::fork, static_cast<std::uint32_t>(child.table_.id()));
    return child;
  }

  /// Becomes one more owner of blocks that hold `num_tokens` committed tokens; the last block may hold more rows than
  /// are used here. For an empty sequence: the prefix cache's hits, blocks that came from elsewhere.
  void adopt(std::span<const BlockId> blocks, int num_tokens) {
    check_alive();
    require(size_ == 0 && table_.num_blocks() == 0, "Sequence::adopt: size", 0, size_);
    require(num_tokens >= 0 && std::ssize(blocks) == ceil_div(num_tokens, table_.block_size()),
            "Sequence::adopt: blocks", ceil_div(num_tokens, table_.block_size()), std::ssize(blocks));
    table_.prepare(static_cast<int>(blocks.size()), 0);
    pool().retain(blocks);
    table_.append_owned(blocks);
    size_ = num_committed_ = num_tokens;
    trace(TraceOp::outside);
  }

  /// Makes room, so that adopt() of so many blocks and then append() of so many tokens cannot run out of host memory.
  void prepare(int num_adopted, int num_tokens, StepPlan& plan) {
    check_alive();
    const int num_new = ceil_div(num_tokens, table_.block_size()) + 1;
    table_.prepare(num_adopted + num_new, 1);
    plan.prepare(pool(), num_tokens, num_new);
    make_room_for_rows(plan);
  }

  /// Another owner's block in the place of an own one: both hold the same committed tokens (a duplicate that the prefix
  /// cache has found). The own one is released; no open step may write it.
  void remap(int index, BlockId block) {
    check_alive();
    require(index >= num_released_blocks_ && index < num_committed() / table_.block_size(),
            "Sequence::remap: index of a full committed block, below", num_committed() / table_.block_size(), index);
    table_.prepare(0, 1);
    pool().retain({&block, 1});
    table_.replace(index, block);
    trace(TraceOp::outside);
  }

  /// Forgets the tokens from position `num_tokens` on. Uncommitted ones among them are killed in their plan. Never
  /// fails for lack of blocks; 0 makes the sequence empty. A window that was released cannot come back: num_tokens must
  /// be 0 or lie behind it. O(dropped blocks); a long table is walked in pieces, see BlockAllocator::drain().
  void truncate(int num_tokens) {
    check_alive();
    require(num_tokens >= 0 && num_tokens <= size_, "Sequence::truncate: num_tokens at most", size_, num_tokens);
    require(num_tokens == 0 || num_tokens >= num_released_blocks_ * table_.block_size(),
            "Sequence::truncate: num_tokens 0 or at least", num_released_blocks_ * table_.block_size(), num_tokens);
    shorten_to(num_tokens);
    trace(TraceOp::truncate, 0, num_tokens);
  }

  /// Drops the blocks that lie wholly before `position`, behind a sliding window: their entries become BlockId::none,
  /// which no kernel may read. Not for a window with sink tokens, whose first blocks stay visible. `position` is at
  /// most num_committed(). Never fails for lack of blocks.
  void release_before(int position) {
    check_alive();
    require(position >= 0 && position <= num_committed(), "Sequence::release_before: position at most", num_committed(),
            position);
    const int end = position / table_.block_size();
    if (end <= num_released_blocks_) return;
    table_.prepare(0, 1);
    table_.drop_front(end);
    num_released_blocks_ = end;
    trace(TraceOp::release_before, 0, position);
  }

  /// From now on the prefix cache publishes nothing of this sequence, nor of its forks.
  void forbid_publishing() {
    check_alive();
    may_publish_ = false;
    trace(TraceOp::forbid);
  }
  bool may_publish() const { return may_publish_; }

  /// Tokens, uncommitted ones and drafts included.
  int size() const { return size_; }
  int num_committed() const { return open_plan() != nullptr ? num_committed_ : size_ - num_drafts_; }
  int num_drafts() const { return num_drafts_; }
  BlockIds blocks() const { return table_.blocks(); }
  const BlockTable& table() const { return table_; }
  BlockAllocator& allocator() const {
    check_alive();
    return pool();
  }

  /// The serial number of the open step that this sequence takes part in, or 0.
  std::uint64_t open_step() const { return open_plan() != nullptr ? step_ : 0; }

 private:
  enum class Kind : std::uint8_t { token, draft };

  // Rows of an open plan that belong to consecutive uncommitted positions.
  struct RowRange {
    int first = 0;
    int count = 0;
  };

  explicit Sequence(BlockTable&& table) : table_(std::move(table)) {}

  void check_alive() const {
    require(table_.allocator() != nullptr, "Sequence: a sequence", "with an allocator", "one that was moved from");
  }

  void trace(TraceOp op, std::uint32_t other = 0, int count = 0, bool succeeded = true) const {
    if (Trace* const to = pool().recorder(); to != nullptr) [[unlikely]]
      to->write(
          {.op = op, .succeeded = succeeded, .a = static_cast<std::uint32_t>(table_.id()), .b = other, .c = count});
  }

  BlockAllocator& pool() const { return *table_.allocator(); }
  StepPlan* open_plan() const { return step_ == 0 ? nullptr : pool().open_steps_.find(step_); }

  // Learns that its step has been committed meanwhile.
  void settle() {
    if (step_ != 0 && open_plan() == nullptr) settle_closed();
  }

  void settle_closed() {
    step_ = 0;
    num_committed_ = size_ - num_drafts_;
    copy_source_ = BlockId::none;
    rows_ = {};
    more_rows_.clear();
  }

  // What nearly every append() of a decode step is: one token, nothing shared, no memory to make room for, a free block
  // at hand if one is needed. False: it is another case, and nothing has changed. extend() is its slow twin.
  bool append_one(StepPlan& plan) {
    if (table_.allocator() == nullptr || plan.allocator_ != table_.allocator()) return false;
    if (num_drafts_ != 0 || !more_rows_.empty() || size_ == std::numeric_limits<int>::max()) return false;
    if (!table_.owns_tail() || !plan.has_room_for_row()) return false;
    if (step_ == plan.serial_) {
      if (rows_.first + rows_.count != plan.num_rows()) return false;
    } else {
      if (step_ >= pool().open_steps_.oldest()) return false;  // perhaps another open one
      settle_closed();
      rows_.first = plan.num_rows();
    }
    const int block_size = table_.block_size();
    int room = static_cast<int>(std::int64_t{table_.num_blocks()} * block_size - size_);
    BlockId tail;
    if (room == 0) {
      if (!table_.append_one(tail)) return false;
      room = block_size;
    } else {
      tail = table_.own_tail();
      if (size_ == num_committed_ && !pool().start_writing(tail)) return false;
    }
    step_ = plan.serial_;
    ++rows_.count;
    plan.add_row(tail, block_size, block_size - room);
    ++size_;
    return true;
  }

  [[gnu::noinline]] bool extend(int num_tokens, StepPlan& plan, Reservation* reservation, Kind kind) {
    check_alive();
    require(num_tokens >= 0, "Sequence::append: num_tokens", "at least 0", num_tokens);
    require(num_tokens <= std::numeric_limits<int>::max() - size_, "Sequence::append: size", "below 2^31",
            static_cast<std::int64_t>(size_) + num_tokens);
    settle();
    require(step_ == 0 || step_ == plan.serial_, "Sequence::append: open steps of one sequence", 1, 2);
    if (reservation != nullptr) reservation->check_allocator(pool());
    require(num_drafts_ == 0 || (kind == Kind::draft && step_ != 0), "Sequence::append: drafts", "accepted before",
            "open");
    BlockAllocator& blocks = pool();
    plan.check_allocator(blocks);
    if (num_tokens == 0) return true;

    const int block_size = table_.block_size();
    const int room = static_cast<int>(std::int64_t{table_.num_blocks()} * block_size - size_);  // in the tail
    const int tail_rows = room == 0 ? 0 : block_size - room;
    const bool copies_tail = must_copy_tail(tail_rows);
    const int num_new = num_tokens <= room ? 0 : ceil_div(num_tokens - room, block_size);
    const int num_wanted = num_new + (copies_tail ? 1 : 0);
    if (num_wanted > 0) {
      const int from_reserve = reservation == nullptr ? 0 : min(num_wanted, reservation->size());
      if (!blocks.make_available(num_wanted - from_reserve)) return false;
      if (copies_tail) blocks.check_hold(table_.back());
      table_.prepare(num_new, copies_tail ? 1 : 0);
      plan.prepare(blocks, num_tokens, num_new + 1);
      make_room_for_rows(plan);
      if (from_reserve > 0) reservation->shrink(from_reserve);
    } else {
      plan.prepare(blocks, num_tokens, 1);
      make_room_for_rows(plan);
    }

    step_ = plan.open(blocks);
    if (copies_tail) copy_tail(tail_rows, plan);
    note_rows(plan.num_rows(), num_tokens);
    int left = num_tokens;
    if (room > 0) {
      const BlockId tail = table_.back();
      if (size_ == num_committed_) blocks.unseal(tail);
      left -= add_rows(tail, tail_rows, left, plan, kind);
    }
    if (num_new > 0) {
      const int first_new = table_.num_blocks();
      table_.append_new(num_new);
      table_.for_each_chunk(first_new, table_.num_blocks(), [&](std::span<const BlockId> chunk) {
        for (const BlockId block : chunk) left -= add_rows(block, 0, left, plan, kind);
      });
    }
    size_ += num_tokens;
    if (kind == Kind::draft) num_drafts_ += num_tokens;
    return true;
  }

  // A block with rows of this sequence's open step, or with a copy that is to be made for it, has this sequence as its
  // one writer: others share only the committed rows in front. Otherwise a shared tail, a published one, or rows that a
  // pending copy reads ask for a copy.
  bool must_copy_tail(int tail_rows) {
    if (tail_rows == 0 || size_ > num_committed_ || copy_source_ != BlockId::none) return false;
    const BlockId tail = table_.back();
    if (is_shared(tail) && pool().has_dead_tables())  // perhaps only the dead share it
      pool().walk(std::numeric_limits<std::int64_t>::max());
    return is_shared(tail) || tail_rows < pool().num_frozen_rows(tail);
  }
  bool is_shared(BlockId tail) { return table_.shares_tail() || pool().ref_count(tail) > 1; }

  void copy_tail(int num_rows, StepPlan& plan) {
    copy_source_ = table_.back();
    BlockId fresh;
    pool().take({&fresh, 1});
    plan.add_copy({.source = copy_source_, .destination = fresh, .num_rows = num_rows});
    table_.replace(table_.num_blocks() - 1, fresh);
  }

  // The next rows of one block; returns how many.
  int add_rows(BlockId block, int first, int num_left, StepPlan& plan, Kind kind) const {
    const int block_size = table_.block_size();
    const int count = min(num_left, block_size - first);
    plan.add_rows(static_cast<Slot>(to_index(block)) * block_size + first, count);
    if (first + count == block_size && kind == Kind::token) plan.fills(block);
    return count;
  }

  void make_room_for_rows(const StepPlan& plan) {
    const bool continues = rows_.count == 0 || last_range().first + last_range().count == plan.num_rows();
    if (!continues && more_rows_.size() == more_rows_.capacity()) more_rows_.reserve(2 * more_rows_.size() + 1);
  }

  RowRange& last_range() { return more_rows_.empty() ? rows_ : more_rows_.back(); }

  void note_rows(int first, int count) {
    if (rows_.count == 0) {
      rows_ = {first, count};
    } else if (last_range().first + last_range().count == first) {
      last_range().count += count;
    } else {
      more_rows_.push_back({first, count});
    }
  }

  void shorten_to(int num_tokens) {
    settle();
    const int block_size = table_.block_size();
    const int num_kept = ceil_div(num_tokens, block_size);
    if (num_kept < table_.num_blocks() && !table_.truncates_in_place(num_kept)) table_.prepare(0, 1);
    kill_rows_from(num_tokens);
    if (copy_source_ != BlockId::none && num_kept <= num_committed_ / block_size) {
      open_plan()->cancel_copy(table_[num_committed_ / block_size]);
      copy_source_ = BlockId::none;
    }
    table_.truncate(num_kept);
    num_drafts_ = max(0, num_drafts_ - (size_ - num_tokens));
    size_ = num_tokens;
    num_released_blocks_ = min(num_released_blocks_, num_kept);
    num_committed_ = min(num_committed_, num_tokens);
    if (size_ == num_committed_ && copy_source_ == BlockId::none) step_ = 0;
  }

  // Kills and forgets the rows of the positions from `end` on.
  void kill_rows_from(int end) {
    int num_kept = max(end - num_committed_, 0);
    const auto shorten = [&](RowRange& range) {
      const int alive = min(range.count, num_kept);
      if (alive < range.count) open_plan()->kill_rows(range.first + alive, range.count - alive);
      range.count = alive;
      num_kept -= alive;
    };
    shorten(rows_);
    for (RowRange& range : more_rows_) shorten(range);
    std::erase_if(more_rows_, [](const RowRange& range) { return range.count == 0; });
  }

  BlockTable table_;
  int size_ = 0;
  int num_committed_ = 0;        // without drafts; equals size_ - num_drafts_ unless step_ is open
  int num_drafts_ = 0;           // the last of the tokens
  int num_released_blocks_ = 0;  // entries at the front of the table that are BlockId::none
  bool may_publish_ = true;
  BlockId copy_source_ = BlockId::none;  // of the copy that fills the tail's committed rows, while step_ is to make it
  std::uint64_t step_ = 0;               // the step that holds this sequence's uncommitted rows or pending copy
  RowRange rows_;                        // of the positions num_committed_ .. size_ - 1, in order; mostly one range,
  std::vector<RowRange> more_rows_;      // and these behind it
};

}  // namespace v0
}  // namespace pagedkv
