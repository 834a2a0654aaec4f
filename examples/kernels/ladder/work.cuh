// What every rung starts from: which sequence and head a CTA works on, and where the rows of its keys lie.
#pragma once

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"

namespace ladder {

using namespace pagedkv;

// The ladder climbs with one head size and one type; the library's kernels take these as template parameters. Every
// sequence brings one query, its newest token: it sees all keys, so the rule of attention (Causal) has nothing to hide.
inline constexpr int head_dim = 128;
inline constexpr int lanes = 32;  // of a warp
inline constexpr unsigned all_lanes = 0xffffffffu;

struct Work {
  int sequence, head;
  int token;   // row of q and out
  int kv_len;  // keys to attend to
};

/// CTA i takes head i % num_heads of sequence i / num_heads; `num_heads` counts query heads on rungs 1 and 2, KV heads
/// from rung 3 on. Lengths are read here, on the device: the same launch serves any.
template <class Problem>
__device__ Work find_work(const Problem& problem, int index, int num_heads) {
  const int sequence = index / num_heads;
  return {.sequence = sequence,
          .head = index % num_heads,
          .token = problem.tables.query_begin(sequence),
          .kv_len = problem.tables.kv_len(sequence)};
}

/// The row [head_dim] of one key in `pool`, which is problem.kv.k or problem.kv.v: what paging costs is one look-up
/// here.
template <class Problem, class Pool>
__device__ const bf16* find_row(const Problem& problem, const Pool& pool, int sequence, int kv_head, int key) {
  const int block_size = problem.kv.block_size();
  const int block = problem.tables.block_ids(sequence, key / block_size);
  return pool.at(block, kv_head, key % block_size, 0);
}

}  // namespace ladder
