// Pools that hand out their ids in a chosen order, for the benchmarks of what lies above the allocator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "support/rounds.hpp"

namespace bench {

/// A benchmark whose calls fail measures nothing.
inline void must(bool done) {
  if (!done) std::abort();
}

/// An allocator whose blocks have all been used once and now come in this order, from its end.
class Pool : public pagedkv::BlockAllocator {
 public:
  Pool(std::int32_t num_blocks, int block_size, Order order)
      : BlockAllocator({.num_blocks = num_blocks, .block_size = block_size}) {
    std::vector<pagedkv::BlockId> all(static_cast<std::size_t>(num_blocks));
    must(allocate(all));
    const auto ids = ids_in(order, num_blocks);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = pagedkv::BlockId{ids[ids.size() - 1 - i]};
    release(all);
  }
};

}  // namespace bench
