// NaiveBlocks: who uses which block, counted anew from scratch after every operation, and what the allocator must say.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/naive_memory.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace pagedkv_test {

struct NaiveBlock {
  int owners = 0;
  int holds = 0;
  int most_rows = 0;  // that any of the holds reads
  int held_rows = 0;  // the same, but not fewer than before as long as there are holds
  int guards = 0;
  bool is_sealed = false;
  bool is_published = false;

  BlockState state() const {
    if (owners + holds > 0)
      return is_published ? BlockState::active : is_sealed ? BlockState::sealed : BlockState::writing;
    if (guards > 0) return BlockState::quarantined;
    return is_published ? BlockState::idle : BlockState::free;
  }
};

class NaiveBlocks {
 public:
  explicit NaiveBlocks(int num_blocks) : blocks_(static_cast<std::size_t>(num_blocks)) {}

  NaiveBlock& operator[](BlockId id) { return blocks_[static_cast<std::size_t>(to_index(id))]; }
  const NaiveBlock& operator[](BlockId id) const { return blocks_[static_cast<std::size_t>(to_index(id))]; }

  /// Begins to count; what is published is the prefix cache's to say, and another oracle's to check.
  void start_count(const BlockAllocator& allocator) {
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      NaiveBlock& b = blocks_[i];
      b.owners = b.holds = b.most_rows = b.guards = 0;
      b.is_published = allocator.is_published(BlockId{static_cast<std::int32_t>(i)});
    }
  }

  void hold(BlockId id, int num_rows) {
    NaiveBlock& b = (*this)[id];
    ++b.holds;
    b.most_rows = std::max(b.most_rows, num_rows);
  }

  void end_count() {
    for (int& count : counts_) count = 0;
    for (NaiveBlock& b : blocks_) {
      b.held_rows = b.holds == 0 ? 0 : std::max(b.held_rows, b.most_rows);
      if (b.state() == BlockState::free) b.is_sealed = false;
      ++counts_[static_cast<std::size_t>(b.state())];
    }
  }

  int count(BlockState state) const { return counts_[static_cast<std::size_t>(state)]; }

  /// Chunks of dead tables that are still to be walked may own blocks in the allocator's eyes.
  void check(const BlockAllocator& allocator, int num_reserved) const {
    for (int i = 0; i < allocator.num_blocks(); ++i) {
      const BlockId id{i};
      const NaiveBlock& b = (*this)[id];
      if (allocator.has_dead_tables() && allocator.ref_count(id) > b.owners) continue;
      expect(allocator.ref_count(id) == b.owners, "owners are the chunks that name a block, and no more");
      expect(allocator.state(id) == b.state(), "every block is in the state that its users and its past give it");
      expect(b.state() == BlockState::free ||
                 allocator.num_frozen_rows(id) == (b.is_published ? allocator.block_size() : b.held_rows),
             "rows under a hold are frozen");
    }
    expect(allocator.num_reserved() == num_reserved, "reservations add up");
    if (allocator.has_dead_tables()) return;
    expect(allocator.num_free() == count(BlockState::free), "num_free");
    expect(allocator.num_idle() == count(BlockState::idle), "num_idle");
    expect(allocator.num_quarantined() == count(BlockState::quarantined), "num_quarantined");
    expect(allocator.num_used() == count(BlockState::writing) + count(BlockState::sealed) + count(BlockState::active),
           "num_used");
    expect(allocator.num_available() == count(BlockState::free) + count(BlockState::idle) - num_reserved,
           "available is exact");
  }

 private:
  std::vector<NaiveBlock> blocks_;
  int counts_[6] = {};
};

}  // namespace pagedkv_test
