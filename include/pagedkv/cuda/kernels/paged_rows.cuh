// Rows of K and V from their blocks to shared memory: a lane looks a row up, the warp copies it.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/ptx/cp_async.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / 32; }

/// Where a lane's key lies in the pool; a dead one has no place.
struct PagedRow {
  std::int64_t block = 0;
  int slot = 0;
  bool live = false;
};

/// Starts copying `Rows` rows of K or V into a tile, from its row `first` on: lane r knows the place of the r-th and tells
/// the others. Dead rows become zeros: a weight of 0 would not silence a NaN in V. `Unroll` trades registers for issue slots.
template <class Tile, int Rows, int Unroll, class T, Space S>
__device__ __forceinline__ void fetch_rows(T* shared_tile, int first, const View<const T, 4, S>& pool, int kv_head,
                                           const PagedRow& mine) {
  const std::int64_t offset = mine.block * pool.strides[0] + kv_head * pool.strides[1] + mine.slot * pool.strides[2];
  const unsigned live = __ballot_sync(~0u, mine.live);
  constexpr int num_chunks = Rows * Tile::chunks_per_row;
#pragma unroll Unroll
  for (int i = 0; i < num_chunks; i += 32) {
    const int row = (i + lane_id()) / Tile::chunks_per_row;
    const int column = (i + lane_id()) % Tile::chunks_per_row * Tile::chunk;
    const std::int64_t row_offset = __shfl_sync(~0u, offset, row % Rows);
    if (row < Rows) {
      ptx::cp_async_16(&shared_tile[Tile::offset(first + row, column)], pool.data + row_offset + column,
                       (live >> row & 1u) != 0);
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
