// BlockTable: where the tokens of one sequence lie; position -> slot.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// A list of block ids: entry i holds the positions i * block_size .. (i + 1) * block_size - 1. A value that owns
/// nothing; owning is the work of Sequence.
class BlockTable {
 public:
  explicit BlockTable(int block_size) : block_size_(block_size) {
    require(block_size >= 1, "BlockTable: block_size", "at least 1", block_size);
  }

  int block_size() const { return block_size_; }
  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  std::span<const BlockId> blocks() const { return blocks_; }

  /// Where the token at `position` lies; dead_slot if a sliding window has dropped its block. O(1).
  Slot slot(int position) const {
    const int index = position / block_size_;
    require(position >= 0 && index < num_blocks(), "BlockTable::slot: position below",
            static_cast<std::int64_t>(num_blocks()) * block_size_, position);
    const BlockId block = blocks_[static_cast<std::size_t>(index)];
    if (block == BlockId::none) return dead_slot;
    return static_cast<Slot>(to_index(block)) * block_size_ + position % block_size_;
  }

  void append(std::span<const BlockId> blocks) { blocks_.insert(blocks_.end(), blocks.begin(), blocks.end()); }
  void replace(int index, BlockId block) {
    require(index >= 0 && index < num_blocks(), "BlockTable::replace: index below", num_blocks(), index);
    blocks_[static_cast<std::size_t>(index)] = block;
  }
  void reserve(int num_blocks) {  // grows geometrically, like append itself
    const auto wanted = static_cast<std::size_t>(num_blocks);
    if (wanted > blocks_.capacity()) blocks_.reserve(std::max(wanted, 2 * blocks_.capacity()));
  }
  void truncate(int num_kept) {
    require(num_kept >= 0 && num_kept <= num_blocks(), "BlockTable::truncate: blocks at most", num_blocks(), num_kept);
    blocks_.resize(static_cast<std::size_t>(num_kept));
  }

 private:
  int block_size_;
  std::vector<BlockId> blocks_;
};

}  // namespace v0
}  // namespace pagedkv
