// Rung 4, pipelined: a ring of tiles in shared memory, filled by cp.async, so that loads never stop.
//
//   grid, CTA and sums as on rung 3
//
//   ring   | tile n: computed | tile n + 1: under way | tile n + 2: asked for now |      3 x 16 KiB
//
// cp.async copies from global to shared memory without a register in between, and the warp goes on. Before it computes
// tile n it asks for tile n + 2, so at any time two tiles are under way: what a memory with a latency of about a
// microsecond needs is not speed but enough bytes asked for. Where the rows lie is looked up one tile earlier still;
// else each pass would begin with waiting for the block table. A lane looks up one key of the tile and tells the
// others.
//
// What it costs: one warp and 48 KiB of shared memory for each KV head of each sequence. One sequence with eight KV
// heads keeps eight of 132 SMs busy, and the longest sequence of a batch ends long after the others.
//
// What the next rung removes: the idle SMs.
#pragma once

#include "kernels/ladder/3_packed_heads.cuh"
#include "kernels/ladder/group_tile.cuh"
#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cuda/ptx/cp_async.cuh"

namespace ladder {

inline constexpr int stages = 3;  // tiles of a ring: 48 KiB are what a CTA gets without asking for more

struct Ring {
  KeyValueTile tiles[stages];
};

/// The keys of a range, tile by tile.
template <class Problem>
__device__ GroupState attend_keys(Ring& ring, const Problem& problem, const Work& work, KeyRange keys) {
  Queries queries;
  load_queries(queries, problem, work);
  const int num_tiles = ceil_div(keys.end - keys.begin, key_tile);
  const auto find_tile = [&](int tile) {
    return find_key(problem, work, keys, keys.begin + tile * key_tile + lane_id());
  };
  KeyPlace ahead = find_tile(0);
  const auto start = [&](int tile) {  // in order, from 0 on; behind the last tile the groups are empty
    if (tile < num_tiles) start_tile(ring.tiles[tile % stages], problem, work, ahead);
    ptx::cp_async_commit();
    ahead = find_tile(tile + 1);
  };

  GroupState state;
  // [ring]
  for (int tile = 0; tile < stages - 1; ++tile) start(tile);
  for (int tile = 0; tile < num_tiles; ++tile) {
    ptx::cp_async_wait<stages - 2>();
    __syncwarp();  // this tile has landed for all lanes, and none still reads the one that is overwritten now
    start(tile + stages - 1);
    attend_tile(state, ring.tiles[tile % stages], queries, problem.scale, keys.end - keys.begin - tile * key_tile);
  }
  // [ring]
  add_up(state);
  return state;
}

template <class Problem>
__global__ void __launch_bounds__(lanes) pipelined_kernel(const Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  const Work work = find_work(problem, static_cast<int>(blockIdx.x), problem.kv_heads());
  const GroupState state = attend_keys(*reinterpret_cast<Ring*>(shared_bytes), problem, work, {0, work.kv_len});
  store(problem, work, state);
}

}  // namespace ladder
