// Short ways to blocks and committed sequences, and to what can be seen of them.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "pagedkv/cache/sequence.hpp"

namespace pagedkv_test {

inline std::vector<pagedkv::BlockId> take(pagedkv::BlockAllocator& blocks, std::size_t count) {
  std::vector<pagedkv::BlockId> ids(count);
  REQUIRE(blocks.allocate(ids));
  return ids;
}

/// Blocks with one owner, full and findable.
inline std::vector<pagedkv::BlockId> take_published(pagedkv::BlockAllocator& blocks, std::size_t count) {
  std::vector<pagedkv::BlockId> ids = take(blocks, count);
  for (const pagedkv::BlockId id : ids) {
    blocks.seal(id);
    blocks.publish(id);
  }
  return ids;
}

inline pagedkv::Sequence committed(pagedkv::BlockAllocator& blocks, int num_tokens) {
  pagedkv::Sequence s{blocks};
  pagedkv::StepPlan step;
  REQUIRE(s.append(num_tokens, step));
  step.commit();
  return s;
}

/// Opens a step that has room for more rows than it has, as a used one does: an append of one token goes the short way
/// only there. The sequence returned holds the step's first row in a block of its own; two blocks are needed meanwhile.
inline pagedkv::Sequence open_with_room(pagedkv::BlockAllocator& blocks, pagedkv::StepPlan& step) {
  pagedkv::Sequence first{blocks};
  REQUIRE(first.append(2 * blocks.block_size(), step));
  for (int i = 0; i < 64; ++i) {
    first.truncate(0);
    REQUIRE(first.append(2 * blocks.block_size(), step));
  }
  first.truncate(0);
  step.commit();
  REQUIRE(first.append(1, step));
  return first;
}

inline std::vector<pagedkv::BlockId> ids_of(const pagedkv::Sequence& s) {
  return {s.blocks().begin(), s.blocks().end()};
}

/// A block of a sequence is sealed if and only if all its rows are committed tokens. For sequences that share nothing.
inline bool is_sealed_as_far_as_committed(const pagedkv::Sequence& s) {
  const int block_size = s.table().block_size();
  for (int i = 0; i < s.table().num_blocks(); ++i) {
    const pagedkv::BlockId block = s.table()[i];
    if (block == pagedkv::BlockId::none) continue;
    const bool is_full = (i + 1) * block_size <= s.num_committed();
    if (s.allocator().state(block) != (is_full ? pagedkv::BlockState::sealed : pagedkv::BlockState::writing))
      return false;
  }
  return true;
}

}  // namespace pagedkv_test
