// Rung 3, packed heads: the query heads of a KV head are one matrix for tensor cores, and K and V are read once.
//
//   grid   one CTA per (sequence, KV head)
//   CTA    one warp; 32 keys and their values at a time lie in shared memory
//
//   S^T [32 keys, 8 heads] = K Q^T          mma.m16n8k16: 16 keys on M, 8 heads on N
//   P^T [32 keys, 8 heads] = softmax        in registers: a lane holds two heads
//   O^T [head_dim, 8 heads] += V^T P^T      16 columns of the output on M, 8 heads on N
//
// Why transposed? An mma of this shape has 16 rows on M and 8 on N. Decoding has many keys and few heads: keys on M
// waste nothing, and up to eight heads fill N; with heads on M, groups of four would leave twelve rows of sixteen
// empty. The price is that P^T comes out of the first product as an accumulator and enters the second as the right
// operand, which lies the other way round in the lanes: one movmatrix for each 8 x 8 piece turns it.
//
// What it costs: the warp asks for 16 KiB, waits until they are there, computes, and asks again. While it waits it does
// not compute, and while it computes nothing is under way.
//
// What the next rung removes: the waiting.
#pragma once

#include <cstdint>

#include "kernels/ladder/group_tile.cuh"
#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cuda/ptx/cp_async.cuh"

namespace ladder {

/// Where a lane's key lies; its table entry has been asked for and is not needed before start_tile.
struct KeyPlace {
  int block = 0, slot = 0;
  bool live = false;
};

template <class Problem>
__device__ KeyPlace find_key(const Problem& problem, const Work& work, KeyRange keys, int key) {
  if (!keys.contains(key)) return {};  // the table may hold anything there
  const int block_size = problem.kv.block_size();
  return {.block = problem.tables.block_ids(work.sequence, key / block_size), .slot = key % block_size, .live = true};
}

/// Starts copying a tile: sixteen lanes a row, two rows at a time; lane r has found row r and tells the others. Rows of
/// keys that do not exist become zeros: a weight of 0 would not silence a NaN in a slot that nobody uses.
template <class Problem>
__device__ void start_tile(KeyValueTile& tile, const Problem& problem, const Work& work, const KeyPlace& mine) {
  const auto& [keys, values] = problem.kv;  // [num_blocks, kv_heads, block_size, head_dim]
  const std::int64_t key_offset = keys.at(mine.block, work.head, mine.slot, 0) - keys.data,
                     value_offset = values.at(mine.block, work.head, mine.slot, 0) - values.data;
  const unsigned live = __ballot_sync(all_lanes, mine.live);
  const int column = lane_id() % Tile::chunks_per_row * Tile::chunk;
#pragma unroll 4
  for (int first = 0; first < key_tile; first += lanes / Tile::chunks_per_row) {
    const int row = first + lane_id() / Tile::chunks_per_row;
    const bool is_live = (live >> row & 1u) != 0;
    const bf16* const k = keys.data + __shfl_sync(all_lanes, key_offset, row) + column;
    const bf16* const v = values.data + __shfl_sync(all_lanes, value_offset, row) + column;
    ptx::cp_async_16(&tile.keys[Tile::offset(row, column)], k, is_live);
    ptx::cp_async_16(&tile.values[Tile::offset(row, column)], v, is_live);
  }
}

template <class Problem>
__global__ void __launch_bounds__(lanes) packed_heads_kernel(const Problem problem) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& tile = *reinterpret_cast<KeyValueTile*>(shared_bytes);
  const Work work = find_work(problem, static_cast<int>(blockIdx.x), problem.kv_heads());
  const KeyRange keys{0, work.kv_len};
  Queries queries;
  load_queries(queries, problem, work);

  GroupState state;
  for (int begin = 0; begin < keys.end; begin += key_tile) {
    start_tile(tile, problem, work, find_key(problem, work, keys, begin + lane_id()));
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncwarp();  // what the other lanes have copied is there, too
    attend_tile(state, tile, queries, problem.scale, keys.end - begin);
    __syncwarp();  // nobody reads it any more
  }
  add_up(state);
  store(problem, work, state);
}

}  // namespace ladder
