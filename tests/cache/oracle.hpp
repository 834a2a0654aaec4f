// CoreOracle: the naive oracle of the core; every operation on sequences and plans, foretold and checked.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache/allocator_oracle.hpp"
#include "cache/operations.hpp"

namespace pagedkv_test {

/// Each operation is done by the library and to the lists. A single one (append() ...) does not check what must be true
/// of everything; check() does, and run() does both.
class CoreOracle : public AllocatorOracle {
 public:
  using AllocatorOracle::AllocatorOracle;

  void run(const Operation& op) {
    apply(op);
    check();
  }

  virtual void apply(const Operation& op) {
    const std::size_t s = op.sequence % sequences_.size();
    const std::size_t other = op.other % sequences_.size();
    const std::size_t plan = op.other % 8 == 0 ? 1 : 0;
    const auto amount = static_cast<int>(op.amount);
    switch (op.kind) {
      case Kind::append: {
        const bool reserved = op.seed % 5 == 0 && !reservations_.empty();
        const int count = amount % (op.seed % 4 != 0   ? 3
                                    : block_size_ == 1 ? blocks_->num_blocks() / 2
                                                       : 3 * block_size_ + 1);
        append(s, plan, count, op.seed, false, reserved ? &reservations_.back() : nullptr);
        break;
      }
      case Kind::reserve:
        append(s, plan, amount % (block_size_ + 3), op.seed, true);
        break;
      case Kind::accept:
        accept(s, amount);
        break;
      case Kind::fork:
        if (s != other) fork(s, other);
        break;
      case Kind::adopt:
        if (s != other) adopt(s, other, amount);
        break;
      case Kind::truncate:
        if (sequences_[s]) {
          const int size = sequences_[s]->is.size();
          const bool anywhere = op.seed % 3 == 0;
          truncate(s, anywhere ? amount % (size + 1) : std::max(0, size - amount % (block_size_ + 2)));
        }
        break;
      case Kind::release_before:
        if (sequences_[s]) release_before(s, amount % (sequences_[s]->is.committed + 1));
        break;
      case Kind::drop:
        drop(s);
        break;
      case Kind::move:
        if (s != other) move(s, other);
        break;
      case Kind::remap:
        if (s != other) remap(s, other, amount);
        break;
      case Kind::execute:
        execute(plan);
        break;
      case Kind::commit:
        commit(plan);
        break;
      case Kind::lend:
        lend(s, op);
        break;
      case Kind::hold:
        hold(s, op);
        break;
      case Kind::guard:
        guard(s, op.seed % 4 == 0 ? BlockId{amount % blocks_->num_blocks()} : BlockId::none, now_ + op.seed % 3);
        break;
      case Kind::retire:
        retire(now_++);
        break;
      case Kind::set_aside:
        set_aside(op.seed, amount % 7);
        break;
      case Kind::drain:
        blocks_->drain();
        expect(!blocks_->has_dead_tables(), "a drained allocator has walked all dead tables");
        break;
      case Kind::misuse:
        misuse(s, op.seed, amount);
        break;
      case Kind::forbid:
        if (!sequences_[s]) break;
        sequences_[s]->sequence.forbid_publishing();
        sequences_[s]->is.may_publish = false;
        break;
      default:
        break;
    }
  }

  // ---- operations on sequences ----

  void append(std::size_t s, std::size_t p, int count, unsigned seed, bool drafts = false,
              Reservation* reservation = nullptr) {
    if (!sequences_[s]) sequences_[s].emplace(Seq{Sequence{*blocks_}});
    Seq& seq = *sequences_[s];
    Plan& plan = plans_[p];
    if (plan.executed) commit(p);
    const auto call_library = [&] {
      if (drafts) return seq.sequence.reserve(count, *plan.step);
      return reservation != nullptr ? seq.sequence.append(count, *plan.step, *reservation)
                                    : seq.sequence.append(count, *plan.step);
    };
    const bool joins_drafts = seq.is.drafts == 0 || (drafts && is_in_step(seq, p));
    if (is_in_step(seq, 1 - p) || !joins_drafts) return refuse(call_library);

    const int old_size = seq.is.size();
    const int old_blocks = blocks_for(old_size);
    const bool copies = count > 0 && must_copy(seq);
    const int num_new = blocks_for(old_size + count) - old_blocks + (copies ? 1 : 0);
    const int num_reserved = reservation == nullptr || drafts ? 0 : std::min(num_new, reservation->size());
    const bool fits = num_new - num_reserved <= num_available();
    if (AllocationFailures::is_on && fits && num_new > num_reserved) squeeze(num_new - num_reserved, call_library);
    const bool had_dead = blocks_->has_dead_tables();
    const int num_idle = naive_.count(BlockState::idle) - std::max(0, num_new - naive_.count(BlockState::free));
    const std::uint64_t before = everything();
    const int total_reserved = blocks_->num_reserved();
    const bool appended = call(call_library);
    expect(appended == fits, "append succeeds exactly when the blocks are there");
    if (!appended) return expect(had_dead || before == everything(), "a failed append changes nothing");
    expect(had_dead || blocks_->num_idle() == num_idle, "append evicts exactly what it needs");
    expect(blocks_->num_reserved() == total_reserved - num_reserved, "append takes reserved blocks first");

    if (copies) own_chunk(s, old_blocks - 1);
    for (int i = old_blocks; i < blocks_for(old_size + count); ++i) own_chunk(s, i);
    for (int i = copies || old_size % block_size_ != 0 ? old_blocks - 1 : old_blocks; i < blocks_for(old_size + count);
         ++i)
      if (count > 0) naive_[seq.sequence.table()[i]].is_sealed = false;
    write(seq, p, random_tokens(seed, count), drafts);
    recount();
  }

  void accept(std::size_t s, int amount) {
    if (!sequences_[s]) return;
    Seq& seq = *sequences_[s];
    if (seq.is.drafts > 0 && is_in_step(seq)) return refuse([&] { return seq.sequence.accept(0), true; });
    const int num_accepted = amount % (seq.is.drafts + 1);
    const int target = seq.is.committed + num_accepted;
    call([&] { return num_accepted == 0 ? seq.sequence.rollback() : seq.sequence.accept(num_accepted), true; });
    forget_behind(s, target);
    seq.is.drafts = 0;
    become_committed(seq, target);
    recount();
  }

  void fork(std::size_t from, std::size_t to) {
    if (!sequences_[from]) return;
    drop(to);
    const Seq& parent = *sequences_[from];
    const bool copy_is_pending = has_pending_copy(parent);
    sequences_[to].emplace(Seq{call([&] { return parent.sequence.fork(); })});
    NaiveSequence& child = sequences_[to]->is = parent.is.beginning(parent.is.committed, block_size_);
    shorten_chunks(to, blocks_for(parent.is.size()), blocks_for(child.committed));
    if (copy_is_pending) own_chunk(to, blocks_for(child.committed) - 1);
    recount();
  }

  /// A new sequence from the beginning of another, by way of ids.
  void adopt(std::size_t from, std::size_t to, int amount) {
    if (!sequences_[from] || sequences_[from]->is.released_blocks > 0 || has_pending_copy(*sequences_[from])) return;
    drop(to);
    const Seq& parent = *sequences_[from];
    const int num_tokens = amount % (parent.is.committed + 1);
    std::vector<BlockId> ids;
    for (int i = 0; i < blocks_for(num_tokens); ++i) ids.push_back(parent.sequence.table()[i]);
    Seq& child = sequences_[to].emplace(Seq{Sequence{*blocks_}});
    call([&] { return child.sequence.adopt(ids, num_tokens), true; });
    child.is = parent.is.beginning(num_tokens, block_size_);
    child.is.chunks.clear();
    for (int i = 0; i < blocks_for(num_tokens); ++i) own_chunk(to, i);
    child.is.may_publish = true;
    recount();
  }

  void truncate(std::size_t s, int target) {
    if (!sequences_[s]) return;
    Seq& seq = *sequences_[s];
    if (target > seq.is.size() || (target > 0 && target < seq.is.released_blocks * block_size_))
      return refuse([&] { return seq.sequence.truncate(target), true; });
    call([&] { return seq.sequence.truncate(target), true; });
    forget_behind(s, target);
    recount();
  }

  void release_before(std::size_t s, int position) {
    if (!sequences_[s]) return;
    Seq& seq = *sequences_[s];
    call([&] { return seq.sequence.release_before(position), true; });
    const int end = position / block_size_;
    if (end <= seq.is.released_blocks) return;
    seq.is.released_blocks = end;
    auto& chunks = seq.is.chunks;
    const bool all = end == blocks_for(seq.is.size());
    if (!all) own_chunk(s, end);
    const auto num_gone = all ? std::ssize(chunks) : end / NaiveSequence::chunk_size;
    std::fill(chunks.begin(), chunks.begin() + num_gone, NaiveSequence::none);
    recount();
  }

  void drop(std::size_t s) {
    if (!sequences_[s]) return;
    kill_rows(*sequences_[s], 0);
    call([&] { return sequences_[s]->sequence.truncate(0), true; });
    sequences_[s].reset();
    recount();
  }

  void move(std::size_t from, std::size_t to) {
    if (!sequences_[from]) return;
    if (!sequences_[to]) {
      sequences_[to].emplace(Seq{std::move(sequences_[from]->sequence)});
    } else {
      kill_rows(*sequences_[to], 0);
      sequences_[to]->sequence = std::move(sequences_[from]->sequence);
    }
    refuse([&] { return sequences_[from]->sequence.append(1, *plans_[0].step); });
    sequences_[to]->is = std::move(sequences_[from]->is);
    sequences_[from].reset();
    recount();
  }

  /// Puts a block of equal content in the place of an own one, if there is one.
  void remap(std::size_t s, std::size_t other, int amount) {
    if (!sequences_[s] || !sequences_[other]) return;
    Seq& seq = *sequences_[s];
    const Seq& like = *sequences_[other];
    const int num_full = std::min(seq.is.committed, like.is.committed) / block_size_;
    const int first = std::max(seq.is.released_blocks, like.is.released_blocks);
    for (int i = 0; i < num_full - first; ++i) {
      const int index = first + (i + amount) % (num_full - first);
      const auto last = static_cast<std::size_t>((index + 1) * block_size_ - 1);
      const BlockId block = like.sequence.table()[index];
      if (seq.is.values[last] != like.is.values[last] || seq.sequence.table()[index] == block) continue;
      call([&] { return seq.sequence.remap(index, block), true; });
      own_chunk(s, index);
      return recount();
    }
  }

  // ---- operations on plans ----

  void execute(std::size_t p) {
    Plan& plan = plans_[p];
    if (!plan.executed) memory_.execute(*plan.step, plan.rows);
    plan.executed = true;
  }

  virtual void commit(std::size_t p) {
    execute(p);
    Plan& plan = plans_[p];
    call([&] { return plan.step->commit(), true; });
    plan.executed = false;
    plan.rows.clear();
    for (auto& seq : sequences_) {
      if (!seq || seq->is.plan != static_cast<int>(p)) continue;
      seq->is.plan = -1;
      seq->is.rows.clear();
      become_committed(*seq, seq->is.size() - seq->is.drafts);
    }
    expect(plan.step->empty() && plan.step->num_rows() == 0, "a committed plan is empty");
    recount();
  }
};

/// Why a scenario fails, with the number of operations run; empty if it passes.
template <class Oracle>
std::string failure_of(const Scenario& scenario) {
  std::size_t done = 0;
  try {
    Oracle oracle{scenario.num_blocks, scenario.block_size};
    for (const Operation& operation : scenario.operations) {
      oracle.run(operation);
      ++done;
    }
  } catch (const std::exception& error) {
    return "operation " + std::to_string(done) + ": " + error.what();
  }
  return {};
}

}  // namespace pagedkv_test
