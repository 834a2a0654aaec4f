// Rung 3, packed heads: the query heads of a KV head become one matrix; K and V are read once, and tensor cores multiply.
//
//   grid   one CTA per (sequence, KV head)
//   CTA    one warp; 32 keys and their values at a time lie in shared memory
//
//   S^T [32 keys, 8 heads] = K Q^T          mma.m16n8k16: 16 keys on M, 8 heads on N
//   P^T [32 keys, 8 heads] = softmax        in registers: a lane holds two heads
//   O^T [head_dim, 8 heads] += V^T P^T      16 columns of the output on M, 8 heads on N
//
// Why transposed? An mma of this shape has 16 rows on M and 8 on N. Decoding has many keys and few heads: keys on M waste
// nothing, and up to eight heads fill N; with heads on M, groups of four would leave twelve rows of sixteen empty. The price is
// that P^T comes out of the first product as an accumulator and enters the second as the right operand, which lies the other way
// round in the lanes: one movmatrix for each 8 x 8 piece turns it.
//
// What it costs: the warp asks for 16 KiB, waits until they are there, computes, and asks again. While it waits it does not
// compute, and while it computes nothing is under way.
//
// What the next rung removes: the waiting.
#pragma once

#include <cstdint>

#include "kernels/ladder/group_tile.cuh"
#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cuda/ptx/cp_async.cuh"

namespace ladder {

/// Where the rows of a lane's key lie, in elements from the start of K and V.
struct KeyPlace {
  std::int64_t k = 0, v = 0;
  bool live = false;
};

template <class Problem>
__device__ KeyPlace find_key(const Problem& problem, const Work& work, KeyRange keys, int key) {
  if (!keys.contains(key)) return {};  // its table entry may hold anything
  return {.k = find_row(problem, problem.kv.k, work.sequence, work.head, key) - problem.kv.k.data,
          .v = find_row(problem, problem.kv.v, work.sequence, work.head, key) - problem.kv.v.data,
          .live = true};
}

/// Starts copying a tile: sixteen lanes a row, two rows at a time. Rows of dead keys become zeros.
template <class Problem>
__device__ void start_tile(KeyValueTile& tile, const Problem& problem, const KeyPlace& mine) {
  const unsigned live = __ballot_sync(all_lanes, mine.live);
  const int column = lane_id() % Tile::chunks_per_row * Tile::chunk;
#pragma unroll 4
  for (int first = 0; first < key_tile; first += lanes / Tile::chunks_per_row) {
    const int row = first + lane_id() / Tile::chunks_per_row;
    const bool is_live = (live >> row & 1u) != 0;
    const std::int64_t k = __shfl_sync(all_lanes, mine.k, row), v = __shfl_sync(all_lanes, mine.v, row);
    ptx::cp_async_16(&tile.keys[Tile::offset(row, column)], problem.kv.k.data + k + column, is_live);
    ptx::cp_async_16(&tile.values[Tile::offset(row, column)], problem.kv.v.data + v + column, is_live);
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
    start_tile(tile, problem, find_key(problem, work, keys, begin + lane_id()));
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
