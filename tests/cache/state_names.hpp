// StateNames: one number for an oracle's state, to tell whether an exploration has been there before.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "cache/oracle_state.hpp"

namespace pagedkv_test {

/// Covered are the sequences with their tables, chunks and rows, the plans, and all that is known of each block.
class StateNames {
 public:
  explicit StateNames(const OracleState& oracle) : oracle_(oracle) {}

  /// With the library's own hash, which knows every order, and with all tokens: nothing is left out.
  std::uint64_t exact() {
    looks_.resize(oracle_.sequences().size());
    for (std::size_t s = 0; s < looks_.size(); ++s) {
      looks_[s] = look(s);
      if (const auto& seq = oracle_.sequences()[s]) looks_[s] = detail::hash_mix(looks_[s], seq->is.last_value());
    }
    blocks_.resize(static_cast<std::size_t>(oracle_.blocks().num_blocks()));
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::vector<std::size_t> order(looks_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    return detail::hash_mix(name(order), oracle_.state_hash());
  }

  /// For the core alone: equal where two states differ only in the names of things. Blocks, chunks and the places of
  /// sequences get new names in the order in which they are met. The library compares block ids for equality and does
  /// nothing else with them, so all that follows from one state, renamed, follows from the other. Tokens are left out,
  /// for check() has compared every row and no later answer depends on them.
  std::uint64_t renamed() {
    looks_.resize(oracle_.sequences().size());
    for (std::size_t s = 0; s < looks_.size(); ++s) looks_[s] = look(s);
    return smallest();
  }

 private:
  // The smallest name over all orders of the sequences in which those come first that look smallest by themselves.
  std::uint64_t smallest() {
    std::vector<std::size_t> order(looks_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
    do {
      if (std::ranges::is_sorted(order, {}, [this](std::size_t s) { return looks_[s]; }))
        blocks_.clear(), least = std::min(least, name(order));
    } while (std::ranges::next_permutation(order).found);
    return least;
  }

  void add(int number) { hash_ = detail::hash_mix(hash_, number); }

  // The place of a thing among those that were met.
  static int place_in(std::vector<int>& met, int thing) {
    const auto at = std::find(met.begin(), met.end(), thing);
    if (at != met.end()) return static_cast<int>(at - met.begin());
    met.push_back(thing);
    return static_cast<int>(met.size()) - 1;
  }

  // What can be told of a sequence without any names.
  std::uint64_t look(std::size_t s) {
    hash_ = 1;
    const auto& seq = oracle_.sequences()[s];
    if (!seq) return 0;
    const NaiveSequence& is = seq->is;
    for (const int number : {is.size(), is.committed, is.drafts, is.released_blocks, is.may_publish ? 1 : 0, is.plan})
      add(number);
    for (const int row : is.rows) add(row);
    return hash_;
  }

  void add_block(BlockId block) { add(block == BlockId::none ? -1 : place_in(blocks_, to_index(block))); }

  std::uint64_t name(std::span<const std::size_t> order) {
    hash_ = 1;
    chunks_.clear();
    for (const std::size_t s : order) {
      hash_ = detail::hash_mix(hash_, looks_[s]);
      const auto& seq = oracle_.sequences()[s];
      if (!seq) continue;
      for (const int chunk : seq->is.chunks) add(chunk == NaiveSequence::none ? -1 : place_in(chunks_, chunk));
      for (const BlockId block : seq->sequence.blocks()) add_block(block);
    }
    for (const auto& plan : oracle_.plans()) {
      add(plan.executed ? 1 : 0);
      add(plan.step->num_rows());
      for (const Slot slot : plan.step->slots()) {
        if (slot == dead_slot) {
          add(-1);
          continue;
        }
        add_block(BlockId{static_cast<std::int32_t>(slot / oracle_.blocks().block_size())});
        add(static_cast<int>(slot % oracle_.blocks().block_size()));
      }
      for (const BlockCopy& copy : plan.step->copies()) {
        add_block(copy.source);
        add_block(copy.destination);
        add(copy.num_rows);
      }
    }
    for (const auto& guard : oracle_.guards()) {
      add(static_cast<int>(guard.fence));
      add_block(guard.block);
    }
    for (const int id : blocks_) {
      const NaiveBlock& b = oracle_.naive()[BlockId{id}];
      for (const int number : {b.owners, b.holds, b.held_rows, b.guards, b.is_sealed ? 1 : 0, b.is_published ? 1 : 0})
        add(number);
    }
    return hash_;
  }

  const OracleState& oracle_;
  std::uint64_t hash_ = 0;
  std::vector<std::uint64_t> looks_;
  std::vector<int> blocks_, chunks_;
};

}  // namespace pagedkv_test
