// Blocks that a cache has given back: their table entries and their bytes may hold anything.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "support/problem_generator.hpp"

namespace pagedkv_test {

/// Poisons the blocks of sequence 0 that lie wholly in keys [begin, end), and their table entries unless told to leave
/// them.
template <class T>
void drop_blocks(GeneratedProblem<T>& generated, int begin, int end, bool leave_ids) {
  const int block_size = generated.shape.block_size;
  const auto kv = generated.template kv_view<pagedkv::Space::host>(generated.pool.data());
  for (int block = pagedkv::ceil_div(begin, block_size); block < end / block_size; ++block) {
    std::int32_t& id = generated.block_ids[static_cast<std::size_t>(block)];
    for (int head = 0; head < generated.shape.kv_heads; ++head) {
      for (int slot = 0; slot < block_size; ++slot) {
        for (int d = 0; d < generated.shape.head_dim; ++d) {
          kv.k(id, head, slot, d) = pagedkv::from_float<T>(std::nanf(""));
          kv.v(id, head, slot, d) = pagedkv::from_float<T>(pagedkv::infinity);
        }
      }
    }
    if (!leave_ids) id = block % 2 == 0 ? -1 : std::numeric_limits<std::int32_t>::max();
  }
}

}  // namespace pagedkv_test
