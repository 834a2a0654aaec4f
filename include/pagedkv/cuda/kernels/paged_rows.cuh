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
/// K or V of one layer for kernels that copy 16 bytes at a time: strides in such chunks, narrow enough that an address is
/// two multiplications of 32 bits.
struct ChunkedPool {
  const unsigned char* data;
  std::uint32_t block_stride, head_stride, slot_stride;

  PAGEDKV_HD const unsigned char* at(int block, int head, int slot) const {
    const std::uint64_t in_block = std::uint64_t{head_stride} * static_cast<std::uint32_t>(head) +
                                   std::uint64_t{slot_stride} * static_cast<std::uint32_t>(slot);
    return data + 16 * (std::uint64_t{block_stride} * static_cast<std::uint32_t>(block) + in_block);
  }
};

/// Can rows of this view be copied in chunks? They start at multiples of 16 bytes; 16 slots span less than 64 GiB, no other
/// stride reaches 32 GiB.
template <class T, Space S>
bool is_chunked(const View<T, 4, S>& view) {
  const auto chunks = [&](int axis) { return view.strides[axis] * static_cast<std::int64_t>(sizeof(T)) / 16; };
  const auto fits = [](std::int64_t n, int bits) { return n >= 0 && n < std::int64_t{1} << bits; };
  return rows_aligned(view, 16) && fits(chunks(0), 31) && fits(chunks(1), 31) && fits(chunks(2), 27);
}

template <class T, Space S>
ChunkedPool in_chunks(const View<T, 4, S>& view) {
  const auto chunks = [&](int axis) {
    return static_cast<std::uint32_t>(view.strides[axis] * static_cast<std::int64_t>(sizeof(T)) / 16);
  };
  return {reinterpret_cast<const unsigned char*>(view.data), chunks(0), chunks(1), chunks(2)};
}

namespace detail {

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }

/// The same for addresses that are wanted behind a loop alone: a compiler that computes them ahead of it would hold a
/// register for each through it.
__device__ __forceinline__ int lane_id_behind_loop() {
  int lane = lane_id();
  asm volatile("" : "+r"(lane));
  return lane;
}
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

/// Copies rows of one block, all of them live.
template <class Tile, int Rows>
__device__ __forceinline__ void fetch_rows(void* shared_tile, const ChunkedPool& pool, int block, int head, int slot) {
  auto* const tile = static_cast<unsigned char*>(shared_tile);
  const unsigned char* const first = pool.at(block, head, slot);
  constexpr int chunks_per_row = Tile::chunks_per_row;
  if constexpr (32 % chunks_per_row == 0 && Tile::permuted == 8) {
    // A warp copies whole rows at a time: a lane keeps its column, and its next place is a constant away.
    constexpr int rows_at_once = 32 / chunks_per_row;
    const int row = lane_id() / chunks_per_row, chunk = lane_id() % chunks_per_row;
    const int place = Tile::offset(row, chunk * Tile::chunk);
    const std::uint64_t row_bytes = std::uint64_t{pool.slot_stride} * 16;
    const unsigned char* from =
        first +
        std::uint64_t{static_cast<std::uint32_t>(row) * pool.slot_stride + static_cast<std::uint32_t>(chunk)} * 16;
#pragma unroll
    for (int i = 0; i < Rows; i += rows_at_once, from += rows_at_once * row_bytes)
      ptx::cp_async_16(tile + 2 * Tile::below(place, i), from, true);
  } else {
#pragma unroll 2
    for (int i = 0; i < Rows * chunks_per_row; i += 32) {
      const int row = (i + lane_id()) / chunks_per_row, chunk = (i + lane_id()) % chunks_per_row;
      const std::uint32_t from = static_cast<std::uint32_t>(row) * pool.slot_stride + static_cast<std::uint32_t>(chunk);
      if (row < Rows)
        ptx::cp_async_16(tile + 2 * Tile::offset(row, chunk * Tile::chunk), first + std::uint64_t{from} * 16, true);
    }
  }
}

/// The same where rows lie in several blocks or are dead: lane r knows the place of the r-th and tells the others.
template <class Tile, int Rows>
__device__ __noinline__ void fetch_rows(void* shared_tile, const ChunkedPool& pool, int head, const PagedRow& mine) {
  auto* const tile = static_cast<unsigned char*>(shared_tile);
  const auto place = reinterpret_cast<std::uintptr_t>(pool.at(static_cast<int>(mine.block), head, mine.slot));
  const unsigned live = __ballot_sync(~0u, mine.live);
  constexpr int num_chunks = Rows * Tile::chunks_per_row;
#pragma unroll 2
  for (int i = 0; i < num_chunks; i += 32) {
    const int row = (i + lane_id()) / Tile::chunks_per_row, chunk = (i + lane_id()) % Tile::chunks_per_row;
    const auto* const from = reinterpret_cast<const unsigned char*>(__shfl_sync(~0u, place, row % Rows));
    if (row < Rows)
      ptx::cp_async_16(tile + 2 * Tile::offset(row, chunk * Tile::chunk), from + 16 * chunk, (live & 1u << row) != 0);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
