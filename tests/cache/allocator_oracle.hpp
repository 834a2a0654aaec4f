// AllocatorOracle: what others do with the allocator beside sequences; loans, holds, guards, reservations, wrong calls.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cache/operations.hpp"
#include "cache/oracle_state.hpp"

namespace pagedkv_test {

class AllocatorOracle : public OracleState {
 public:
  using OracleState::OracleState;

  /// Blocks that somebody owns by id: fresh ones, or one more owner of those that are there.
  void lend(std::size_t s, const Operation& op) {
    const unsigned choice = op.seed % 4;
    if (!loans_.empty() && (choice == 0 || loans_.size() == 4)) {
      const auto loan = loans_.begin() + static_cast<std::ptrdiff_t>(op.amount % loans_.size());
      call([&] { return blocks_->release(*loan), true; });
      loans_.erase(loan);
    } else if (choice == 1) {
      std::vector<BlockId> ids(op.amount % 5);
      const bool fits = std::ssize(ids) <= num_available();
      const bool reserves = op.seed % 8 == 1 && !reservations_.empty();
      if (reserves) {
        const int from_reserve = std::min(reservations_[0].size(), static_cast<int>(ids.size()));
        const bool fits_then = std::ssize(ids) - from_reserve <= num_available();
        expect(call([&] { return blocks_->allocate(ids, reservations_[0]); }) == fits_then,
               "reserved blocks are there");
        if (!fits_then) return;
      } else {
        expect(call([&] { return blocks_->allocate(ids); }) == fits, "allocate gives what is available");
        if (!fits) return;
      }
      for (const BlockId id : ids) naive_[id].is_sealed = false;
      loans_.push_back(ids);
    } else if (choice == 2 && sequences_[s]) {
      std::vector<BlockId> ids;
      for (const BlockId id : sequences_[s]->sequence.blocks())
        if (id != BlockId::none) ids.push_back(id);
      call([&] { return blocks_->retain(ids), true; });
      loans_.push_back(ids);
    } else {
      const BlockId id{static_cast<std::int32_t>(op.amount) % blocks_->num_blocks()};
      const BlockState state = naive_[id].state();
      if (blocks_->has_dead_tables()) return;
      if (state == BlockState::free || (state == BlockState::idle && num_available() == 0))
        return refuse([&] { return blocks_->retain({&id, 1}), true; });
      call([&] { return blocks_->retain({&id, 1}), true; });
      loans_.push_back({id});
    }
    recount();
  }

  /// A host copy that reads some rows for a while.
  void hold(std::size_t s, const Operation& op) {
    if (!holds_.empty() && (op.seed % 2 == 0 || holds_.size() == 4)) {
      const auto held = holds_.begin() + static_cast<std::ptrdiff_t>(op.amount % holds_.size());
      call([&] { return blocks_->drop_hold(held->first), true; });
      holds_.erase(held);
    } else if (!blocks_->has_dead_tables()) {
      const bool of_sequence = sequences_[s] && sequences_[s]->is.size() > 0 && op.seed % 4 == 1;
      const BlockId id = of_sequence ? sequences_[s]->sequence.blocks().back()
                                     : BlockId{static_cast<std::int32_t>(op.amount) % blocks_->num_blocks()};
      const int num_rows = static_cast<int>(op.amount / 16) % (block_size_ + 1);
      if (id == BlockId::none) return;
      const BlockState state = naive_[id].state();
      if (state == BlockState::free || (state == BlockState::idle && num_available() == 0))
        return refuse([&] { return blocks_->hold(id, num_rows), true; });
      call([&] { return blocks_->hold(id, num_rows), true; });
      holds_.push_back({id, num_rows});
    }
    recount();
  }

  /// Another stream uses one block, or all of a sequence.
  void guard(std::size_t s, BlockId one, Fence fence) {
    std::vector<BlockId> ids;
    if (one != BlockId::none) {
      if (naive_[one].state() != BlockState::free) ids.push_back(one);
    } else if (sequences_[s]) {
      for (const BlockId id : sequences_[s]->sequence.blocks())
        if (id != BlockId::none && naive_[id].guards < 4) ids.push_back(id);
    }
    const bool takes_reserved =
        one != BlockId::none && !ids.empty() && naive_[one].state() == BlockState::idle && num_available() == 0;
    if (takes_reserved) return refuse([&] { return blocks_->guard(ids, fence), true; });
    call([&] { return blocks_->guard(ids, fence), true; });
    for (const BlockId id : ids) guards_.push_back({fence, id});
    recount();
  }

  void retire(Fence fence) {
    call([&] { return blocks_->retire(fence), true; });
    std::erase_if(guards_, [fence](const Guard& guard) { return guard.fence <= fence; });
    recount();
  }

  void set_aside(unsigned seed, int count) {
    if (!reservations_.empty() && (seed % 2 == 0 || reservations_.size() == 3)) {
      Reservation& reservation = reservations_[seed / 2 % reservations_.size()];
      if (seed % 3 == 0) return reservation.shrink(std::min(count, reservation.size()));
      std::swap(reservation, reservations_.back());
      return reservations_.pop_back();
    }
    std::optional<Reservation> reservation = call([&] { return blocks_->reserve(count); });
    expect(reservation.has_value() || count > num_available(), "what is available can be reserved");
    if (!reservation) return;
    expect(count <= num_available() + count && reservation->size() == count, "a reservation holds what was asked for");
    reservations_.push_back(std::move(*reservation));
    expect(num_available() >= 0, "no more is reserved than is there");
  }

  /// Wrong calls are refused and change nothing.
  void misuse(std::size_t s, unsigned seed, int amount) {
    const BlockId id{amount % blocks_->num_blocks()};
    const NaiveBlock& block = naive_[id];
    if (blocks_->has_dead_tables()) return;
    const bool is_free = block.state() == BlockState::free;
    std::vector<BlockId> ids{id};
    for (int i = 0; i < block.owners; ++i) ids.push_back(id);  // one more than there are
    if (!loans_.empty()) ids.insert(ids.end(), loans_[0].begin(), loans_[0].end());
    switch (seed % 10) {
      case 0:
        return refuse([&] { return blocks_->release(ids), true; });
      case 1:
        return is_free ? refuse([&] { return blocks_->retain({&id, 1}), true; }) : void();
      case 2:
        return block.holds == 0 ? refuse([&] { return blocks_->drop_hold(id), true; }) : void();
      case 3:
        return is_free ? refuse([&] { return blocks_->hold(id, 1), true; }) : void();
      case 4:
        return is_free ? refuse([&] { return blocks_->guard({&id, 1}, 1), true; }) : void();
      case 5:
        return block.is_published ? void() : refuse([&] { return blocks_->unpublish(id), true; });
      case 6:
        return block.state() == BlockState::writing ? refuse([&] { return blocks_->publish(id), true; }) : void();
      case 7:
        return refuse([&] { return blocks_->release(std::array{BlockId{blocks_->num_blocks()}}), true; });
      default:
        break;
    }
    if (!sequences_[s]) return;
    Sequence& sequence = sequences_[s]->sequence;
    const NaiveSequence& is = sequences_[s]->is;
    if (seed % 10 == 8) return refuse([&] { return sequence.truncate(is.size() + 1 + amount % 3), true; });
    refuse([&] { return sequence.release_before(is.committed + 1 + amount % 3), true; });
    refuse([&] { return sequence.accept(is.drafts + 1), true; });
    refuse([&] { return sequence.remap(is.committed / block_size_, BlockId{0}), true; });
  }
};

}  // namespace pagedkv_test
