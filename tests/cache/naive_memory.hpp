// NaiveMemory: the KV pool of the oracle; one number stands for the K and V of a row, and a plan is executed to the
// letter.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace pagedkv_test {

using namespace pagedkv;

class OracleFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void expect(bool condition, const char* what) {
  if (!condition) throw OracleFailure(what);
}

/// What the row of a token must hold: made from the row before, so it stands for the whole prefix.
inline std::uint64_t next_value(std::uint64_t value, std::int32_t token) {
  return detail::hash_mix(value + 0x1234567u, token);
}

class NaiveMemory {
 public:
  static constexpr std::uint64_t dead = 0xdeadbeefdeadbeefu;

  NaiveMemory(int num_blocks, int block_size)
      : block_size_(block_size),
        rows_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_size), dead) {}

  Slot slot(BlockId block, int row) const { return static_cast<Slot>(to_index(block)) * block_size_ + row; }
  std::uint64_t read(BlockId block, int row) const { return rows_[static_cast<std::size_t>(slot(block, row))]; }

  void poison(BlockId block) {
    for (int row = 0; row < block_size_; ++row) rows_[static_cast<std::size_t>(slot(block, row))] = dead;
  }

  /// Copies, then stores `values`, in which `dead` stands for killed rows; both may be done in any order within.
  void execute(const StepPlan& plan, std::span<const std::uint64_t> values) {
    std::set<BlockId> destinations;
    std::set<Slot> slots;
    for (const BlockCopy& copy : plan.copies())
      expect(destinations.insert(copy.destination).second, "destinations are distinct");
    for (const Slot slot : plan.slots()) expect(slot == dead_slot || slots.insert(slot).second, "slots are distinct");
    for (const BlockCopy& copy : plan.copies()) {
      expect(destinations.count(copy.source) == 0, "no copy reads what another one writes");
      for (int row = 0; row < copy.num_rows; ++row) {
        expect(slots.count(slot(copy.source, row)) == 0, "no copy reads what the step has yet to write");
        rows_[static_cast<std::size_t>(slot(copy.destination, row))] = read(copy.source, row);
      }
    }
    expect(plan.slots().size() == values.size(), "one slot for each appended row");
    for (std::size_t i = 0; i < values.size(); ++i) {
      const Slot slot = plan.slots()[i];
      expect((slot == dead_slot) == (values[i] == dead), "exactly the killed rows are dead");
      if (slot != dead_slot) rows_[static_cast<std::size_t>(slot)] = values[i];
    }
  }

 private:
  int block_size_;
  std::vector<std::uint64_t> rows_;
};

}  // namespace pagedkv_test
