// OracleState: what the naive oracle knows of sequences, plans and the allocator, and all that must be true of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "cache/allocation_failures.hpp"
#include "cache/naive_blocks.hpp"
#include "cache/naive_memory.hpp"
#include "cache/naive_sequence.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace pagedkv_test {

/// The library and lists of tokens side by side. The K and V of a token depend on all tokens before it, so what a row
/// must hold is a number made from the whole prefix: a wrong hit is a wrong number.
class OracleState {
 public:
  struct Seq {
    Sequence sequence;
    NaiveSequence is = {};
  };

  struct Plan {
    std::unique_ptr<StepPlan> step = std::make_unique<StepPlan>();
    std::vector<std::uint64_t> rows = {};  // what each row writes; NaiveMemory::dead for killed rows
    bool executed = false;
  };

  struct Guard {
    Fence fence;
    BlockId block;
  };

  OracleState(int num_blocks, int block_size, std::size_t num_sequences = 8)
      : block_size_(block_size),
        blocks_(std::make_unique<BlockAllocator>(BlockAllocatorOptions{num_blocks, block_size})),
        sequences_(num_sequences),
        naive_(num_blocks),
        memory_(num_blocks, block_size) {
    recount();
  }
  OracleState(const OracleState&) = delete;
  OracleState& operator=(const OracleState&) = delete;
  virtual ~OracleState() { close(); }

  const BlockAllocator& blocks() const { return *blocks_; }
  const std::vector<std::optional<Seq>>& sequences() const { return sequences_; }
  const std::array<Plan, 2>& plans() const { return plans_; }
  const std::vector<Guard>& guards() const { return guards_; }
  const NaiveBlocks& naive() const { return naive_; }

  virtual std::uint64_t state_hash() const { return blocks_->state_hash(); }

  // ---- what must be true after every operation ----

  virtual void check() {
    poison_free_blocks();
    check_library();
    naive_.check(*blocks_, num_reserved());
    const auto num_blocks = static_cast<std::size_t>(blocks_->num_blocks());
    std::vector<int> last_named(num_blocks, -1), writer(num_blocks, -1);
    const std::vector<const BlockCopy*> copies = pending_copies();
    for (std::size_t s = 0; s < sequences_.size(); ++s)
      if (sequences_[s]) check_sequence(static_cast<int>(s), last_named, writer, copies);
  }

 protected:
  using Tokens = std::vector<std::int32_t>;

  virtual void check_library() const { blocks_->check_invariants(); }

  /// Ends all that needs the allocator.
  void close() {
    for (auto& seq : sequences_) seq.reset();
    for (Plan& plan : plans_) plan.step->commit();
    for (const auto& loan : loans_) blocks_->release(loan);
    for (const auto& held : holds_) blocks_->drop_hold(held.first);
    blocks_->retire(~Fence{0});
    reservations_.clear();
    loans_.clear();
    holds_.clear();
  }

  /// One call of the library. Where allocations fail on purpose, each one of it does once first, and changes nothing.
  template <class Call>
  std::invoke_result_t<Call&> call(Call f) const {
    if (!AllocationFailures::is_on) return f();
    const bool had_dead = blocks_->has_dead_tables();
    for (int failing = 0;; ++failing) {
      const std::uint64_t before = everything();
      AllocationFailures::num_left = failing;
      try {
        auto result = f();
        AllocationFailures::num_left = -1;
        return result;
      } catch (const std::bad_alloc&) {
        AllocationFailures::num_left = -1;
      }
      expect(had_dead || before == everything(), "a call that runs out of memory changes nothing");
      check_library();
    }
  }

  /// A wrong call.
  template <class Call>
  void refuse(Call f) const {
    const std::uint64_t before = everything();
    const bool had_dead = blocks_->has_dead_tables();
    try {
      static_cast<void>(f());
    } catch (const InvalidArgument&) {
      return expect(had_dead || before == everything(), "a wrong call changes nothing");
    }
    throw OracleFailure("a wrong call is refused");
  }

  /// Takes blocks away so that `num_needed` are not there, and sees the call refused.
  template <class Call>
  void squeeze(int num_needed, Call f) {
    for (const int num_left : {0, num_needed - 1}) {
      if (blocks_->has_dead_tables()) return;
      const std::optional<Reservation> others = blocks_->reserve(blocks_->num_available() - num_left);
      const std::uint64_t before = everything();
      expect(others.has_value() && !call(f), "a call without the blocks it needs is refused");
      expect(before == everything(), "a refused call changes nothing");
      ++AllocationFailures::num_refused_for_blocks;
    }
  }

  /// One number for all that anybody can see.
  std::uint64_t everything() const {
    std::uint64_t h = state_hash();
    for (const auto& seq : sequences_) {
      h = detail::hash_mix(h, seq ? 1 : 0);
      if (!seq || seq->sequence.table().allocator() == nullptr) continue;
      const Sequence& s = seq->sequence;
      for (const int number : {s.size(), s.num_committed(), s.num_drafts(), s.may_publish() ? 1 : 0})
        h = detail::hash_mix(h, number);
      s.table().for_each_chunk(0, s.table().num_blocks(), [&h](std::span<const BlockId> chunk) {
        for (const BlockId id : chunk) h = detail::hash_mix(h, to_index(id));
      });
    }
    for (const Plan& plan : plans_) {
      for (const Slot slot : plan.step->slots()) h = detail::hash_mix(h, static_cast<std::uint64_t>(slot));
      for (const BlockCopy& copy : plan.step->copies())
        for (const int number : {to_index(copy.source), to_index(copy.destination), copy.num_rows})
          h = detail::hash_mix(h, number);
    }
    return h;
  }

  // ---- the naive side ----

  /// What the next token of a sequence is in its scope.
  virtual std::int32_t naive_token(const NaiveSequence&, std::int32_t token) const { return token; }

  /// Other owners than tables.
  virtual void count_owners(NaiveBlocks& naive) const {
    for (const auto& loan : loans_)
      for (const BlockId id : loan) ++naive[id].owners;
  }

  /// What can only be observed, not foretold.
  virtual void observe() {}

  void recount() {
    observe();
    naive_.start_count(*blocks_);
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      if (!sequences_[s]) continue;
      const BlockTable& table = sequences_[s]->sequence.table();
      for (std::size_t c = 0; c < sequences_[s]->is.chunks.size(); ++c) {
        if (sequences_[s]->is.chunks[c] == NaiveSequence::none || is_shared_chunk(s, c, s)) continue;
        const int first = static_cast<int>(c) * NaiveSequence::chunk_size;
        table.for_each_chunk(first, std::min(first + NaiveSequence::chunk_size, table.num_blocks()),
                             [this](std::span<const BlockId> ids) {
                               for (const BlockId id : ids)
                                 if (id != BlockId::none) ++naive_[id].owners;
                             });
      }
    }
    count_owners(naive_);
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies()) naive_.hold(copy.source, copy.num_rows);
    for (const auto& [id, num_rows] : holds_) naive_.hold(id, num_rows);
    for (const Guard& guard : guards_) ++naive_[guard.block].guards;
    naive_.end_count();
  }

  int num_reserved() const {
    int sum = 0;
    for (const Reservation& reservation : reservations_) sum += reservation.size();
    return sum;
  }
  int num_available() const { return naive_.count(BlockState::free) + naive_.count(BlockState::idle) - num_reserved(); }

  /// Does one of the first `end` sequences but `s` name the chunk?
  bool is_shared_chunk(std::size_t s, std::size_t chunk, std::size_t end) const {
    for (std::size_t i = 0; i < end; ++i) {
      if (i == s || !sequences_[i]) continue;
      const auto& chunks = sequences_[i]->is.chunks;
      if (chunk < chunks.size() && chunks[chunk] == sequences_[s]->is.chunks[chunk]) return true;
    }
    return false;
  }

  /// A write to an entry of the table: nobody else names its chunk afterwards.
  void own_chunk(std::size_t s, int index) {
    auto& chunks = sequences_[s]->is.chunks;
    const auto chunk = static_cast<std::size_t>(index / NaiveSequence::chunk_size);
    if (chunk >= chunks.size()) chunks.resize(chunk + 1, NaiveSequence::none);
    if (chunks[chunk] == NaiveSequence::none || is_shared_chunk(s, chunk, sequences_.size()))
      chunks[chunk] = next_chunk_++;
  }

  void shorten_chunks(std::size_t s, int num_before, int num_kept) {
    if (num_kept == num_before) return;
    constexpr int size = NaiveSequence::chunk_size;
    sequences_[s]->is.chunks.resize(static_cast<std::size_t>((num_kept + size - 1) / size), NaiveSequence::none);
    if (num_kept > 0) own_chunk(s, num_kept - 1);
  }

  /// What a truncation does.
  void forget_behind(std::size_t s, int target) {
    Seq& seq = *sequences_[s];
    kill_rows(seq, target);
    shorten_chunks(s, blocks_for(seq.is.size()), blocks_for(target));
    seq.is.shorten(target, block_size_);
  }

  void become_committed(Seq& seq, int num_tokens) {
    for (int i = seq.is.committed / block_size_; i < num_tokens / block_size_; ++i)
      naive_[seq.sequence.table()[i]].is_sealed = true;
    seq.is.committed = num_tokens;
  }

  void write(Seq& seq, std::size_t p, const Tokens& tokens, bool drafts) {
    Plan& plan = plans_[p];
    for (const std::int32_t token : tokens) {
      seq.is.push(naive_token(seq.is, token));
      seq.is.rows.push_back(static_cast<int>(plan.rows.size()));
      seq.is.plan = static_cast<int>(p);
      plan.rows.push_back(seq.is.values.back());
    }
    if (drafts) seq.is.drafts += static_cast<int>(tokens.size());
  }

  void kill_rows(Seq& seq, int num_kept_tokens) {
    const int num_kept = std::max(0, num_kept_tokens - seq.is.committed);
    while (static_cast<int>(seq.is.rows.size()) > num_kept) {
      Plan& plan = plans_[static_cast<std::size_t>(seq.is.plan)];
      plan.rows[static_cast<std::size_t>(seq.is.rows.back())] = NaiveMemory::dead;
      seq.is.rows.pop_back();
    }
  }

  bool has_pending_copy(const Seq& seq, std::size_t p) const {
    if (seq.sequence.blocks().empty()) return false;
    for (const BlockCopy& copy : plans_[p].step->copies()) {
      if (seq.is.committed == 0) continue;
      if (copy.destination == seq.sequence.table()[(seq.is.committed - 1) / block_size_]) return true;
    }
    return false;
  }
  bool has_pending_copy(const Seq& seq) const { return has_pending_copy(seq, 0) || has_pending_copy(seq, 1); }

  bool is_in_step(const Seq& seq, std::size_t p) const {
    return has_pending_copy(seq, p) || (!seq.is.rows.empty() && seq.is.plan == static_cast<int>(p));
  }
  bool is_in_step(const Seq& seq) const { return is_in_step(seq, 0) || is_in_step(seq, 1); }

  bool must_copy(const Seq& seq) const {
    const int rows = seq.is.size() % block_size_;
    if (rows == 0 || seq.is.size() > seq.is.committed || has_pending_copy(seq)) return false;
    const BlockId tail = seq.sequence.blocks().back();
    int num_owners = 0;
    for (const auto& other : sequences_)
      if (other && other->is.size() > 0) num_owners += names(*other, (seq.is.size() - 1) / block_size_, tail);
    const NaiveBlock& block = naive_[tail];
    return num_owners > 1 || block.owners > 1 || block.is_published || rows < block.held_rows;
  }

  bool names(const Seq& seq, int index, BlockId block) const {
    return index < seq.sequence.table().num_blocks() && seq.sequence.table()[index] == block;
  }

  std::vector<const BlockCopy*> pending_copies() const {
    std::vector<const BlockCopy*> copies(static_cast<std::size_t>(blocks_->num_blocks()));
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies())
        if (!plan.executed) copies[static_cast<std::size_t>(to_index(copy.destination))] = &copy;
    return copies;
  }

  /// A row as it will be once the pending copies are made.
  std::uint64_t read(BlockId block, int row, const std::vector<const BlockCopy*>& copies) const {
    const BlockCopy* copy = copies[static_cast<std::size_t>(to_index(block))];
    return memory_.read(copy != nullptr && row < copy->num_rows ? copy->source : block, row);
  }

  void check_sequence(int number, std::vector<int>& last_named, std::vector<int>& writer,
                      const std::vector<const BlockCopy*>& copies) const {
    const auto& [s, is] = *sequences_[static_cast<std::size_t>(number)];
    expect(s.size() == is.size(), "size");
    expect(s.num_committed() == is.committed, "num_committed");
    expect(s.num_drafts() == is.drafts, "num_drafts");
    expect(s.may_publish() == is.may_publish, "may_publish");
    const int num_blocks = s.table().num_blocks();
    expect(num_blocks == blocks_for(s.size()), "no block more than the tokens need");
    std::vector<BlockId> ids;
    s.table().for_each_chunk(
        0, num_blocks, [&ids](std::span<const BlockId> chunk) { ids.insert(ids.end(), chunk.begin(), chunk.end()); });
    for (int i = 0; i < num_blocks; ++i) {
      const BlockId block = ids[static_cast<std::size_t>(i)];
      expect(s.table()[i] == block, "a table is one list, entry by entry and chunk by chunk");
      expect((block == BlockId::none) == (i < is.released_blocks), "exactly the released blocks are none");
      if (block == BlockId::none) continue;
      int& name = last_named[static_cast<std::size_t>(to_index(block))];
      expect(name != number, "no two positions share a block");
      name = number;
      const int end = std::min(block_size_, is.committed - i * block_size_);
      for (int row = 0; row < end; ++row)
        expect(read(block, row, copies) == is.values[static_cast<std::size_t>(i * block_size_ + row)],
               "a sequence reads back exactly its own tokens");
    }
    const std::size_t unsettled = is.plan == -1 ? 0 : is.rows.size();
    for (std::size_t i = 0; i < unsettled; ++i) {
      const int position = is.committed + static_cast<int>(i);
      const StepPlan& step = *plans_[static_cast<std::size_t>(is.plan)].step;
      const BlockId block = ids[static_cast<std::size_t>(position / block_size_)];
      expect(step.slots()[static_cast<std::size_t>(is.rows[i])] == s.table().slot(position),
             "the plan writes where the sequence reads");
      expect(s.table().slot(position) == memory_.slot(block, position % block_size_), "slots follow the table");
      int& writes = writer[static_cast<std::size_t>(to_index(block))];
      expect(writes == -1 || writes == number, "one writer for each block");
      writes = number;
      expect(!blocks_->is_published(block), "nobody writes into a published block");
    }
  }

  /// What nobody uses or publishes may hold anything.
  void poison_free_blocks() {
    for (int i = 0; i < blocks_->num_blocks(); ++i)
      if (naive_[BlockId{i}].state() == BlockState::free) memory_.poison(BlockId{i});
  }

  static Tokens random_tokens(unsigned seed, int count) {
    std::minstd_rand random{seed + 1};
    Tokens tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(random() / 7 % 2));
    return tokens;
  }

  int blocks_for(int num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }

  int block_size_;
  std::unique_ptr<BlockAllocator> blocks_;
  std::array<Plan, 2> plans_;
  std::vector<std::optional<Seq>> sequences_;
  std::vector<std::vector<BlockId>> loans_;
  std::vector<std::pair<BlockId, int>> holds_;
  std::vector<Guard> guards_;
  std::vector<Reservation> reservations_;
  Fence now_ = 1;
  int next_chunk_ = 0;
  NaiveBlocks naive_;
  NaiveMemory memory_;
};

}  // namespace pagedkv_test
