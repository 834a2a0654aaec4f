// How a warpgroup of prefill_sm90 writes its rows: whole tiles by TMA from shared memory, others row by row.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/kernels/prefill_sm90_fetch.cuh"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/named_barrier.cuh"
#include "pagedkv/cuda/ptx/stmatrix.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A thread's two rows.
struct RowPair {
  int query[2];  // position in the sequence; dead rows stand where the last live one does
  int head[2];
  bool live[2];
};

template <class Config>
__device__ __forceinline__ RowPair rows_of(const PrefillCut& cut, const PrefillWork& work, int row_in_tile) {
  RowPair rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_in_tile + 8 * half, query = work.first_query + (row >> cut.packed_shift);
    rows.live[half] = query <= work.last_query;
    rows.query[half] = min(query, work.last_query) + work.offset;
    rows.head[half] = work.q_head + (row & ((1 << cut.packed_shift) - 1));
  }
  return rows;
}

/// Four words of four lanes, lane by lane word 0 to 3 of four chunks: afterwards a lane has all words of its own chunk.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&words)[4]) {
  const int lane = lane_id();
  const auto swap = [&](std::uint32_t& low, std::uint32_t& high, int step) {
    const bool keeps_high = (lane & step) != 0;
    const std::uint32_t received = __shfl_xor_sync(~0u, keeps_high ? low : high, step);
    (keeps_high ? low : high) = received;
  };
  swap(words[0], words[1], 1);
  swap(words[2], words[3], 1);
  swap(words[0], words[2], 2);
  swap(words[1], words[3], 2);
}

/// A row of which the quad of lanes holds a share of the sum each.
__device__ __forceinline__ OnlineSoftmax whole_row(const ScaledSoftmax& softmax) {
  OnlineSoftmax row = softmax.natural();
  row.sum += __shfl_xor_sync(~0u, row.sum, 1);
  row.sum += __shfl_xor_sync(~0u, row.sum, 2);
  return row;
}

__device__ __forceinline__ OnlineSoftmax::Finished finish_row(const ScaledSoftmax& softmax, float prior) {
  return whole_row(softmax).finish(prior);
}

/// Normalises all 64 rows, lays them down where the warpgroup's queries were, and lets TMA write them.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void store_box(typename Config::Element* staged, const Problem& problem, const V& variant,
                                          const PrefillCut& cut, const ptx::TensorMap& map, const PrefillWork& work,
                                          int row_in_tile, const ScaledSoftmax (&softmax)[2],
                                          const typename Config::Output& output) {
  using Tile = BoxedTile<Config::head_dim_v, 64>;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  const RowPair rows = rows_of<Config>(cut, work, row_in_tile);
  OnlineSoftmax::Finished finished[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    finished[half] = finish_row(softmax[half], prior_of(variant, rows.head[half]));
    if (!problem.lse.empty() && lane_id() % 4 == 0)
      problem.lse(work.first_token + (rows.query[half] - work.offset), rows.head[half]) = finished[half].lse;
  }
  const Coordinate place = quarters_down(lane_id());
  const int first = Tile::offset(warp_id() % 4 * 16 + place.row, place.column);
#pragma unroll
  for (int n = 0; n < Config::head_dim_v / 8; n += 2) {
    std::uint32_t words[4];  // of rows 0 to 7 and 8 to 15 of eight columns, then of the next eight
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const pair = &output[4 * n + 2 * i];
      words[i] = ptx::pack<typename Config::Element>(pair[0] * finished[i % 2].scale, pair[1] * finished[i % 2].scale);
    }
    ptx::stmatrix_x4(&staged[Tile::right_of(first, 8 * n)], words);
  }
  ptx::fence_proxy_async();
  ptx::barrier_sync(2 + Config::warpgroups + warpgroup, 128);
  if (threadIdx.x % 128 == 0) {
    const int token = static_cast<int>(work.first_token) + work.first_query + (warpgroup * 64 >> cut.packed_shift);
    for (int slab = 0; slab < Config::head_dim_v / Tile::columns_per_slab; ++slab)
      ptx::cp_async_bulk_tensor_5d_store(map, {0, work.q_head, token, slab, 0},
                                         &staged[slab * 64 * Tile::columns_per_slab]);
    ptx::bulk_store_commit();
  }
}

/// Normalises and writes the rows that exist.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void store(const Problem& problem, const V& variant, const PrefillCut& cut,
                                      const PrefillWork& work, int row_in_tile, const ScaledSoftmax (&softmax)[2],
                                      const typename Config::Output& output) {
  const RowPair rows = rows_of<Config>(cut, work, row_in_tile);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OnlineSoftmax::Finished finished = finish_row(softmax[half], prior_of(variant, rows.head[half]));
    const std::int64_t token = work.first_token + (rows.query[half] - work.offset);
    auto* const out = problem.out.at(token, rows.head[half], lane_id() % 4 * 8);
#pragma unroll
    for (int n = 0; n < Config::head_dim_v / 8; n += 4) {
      std::uint32_t words[4];  // of chunks n to n + 3
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = &output[4 * (n + i) + 2 * half];
        words[i] = ptx::pack<typename Config::Element>(pair[0] * finished.scale, pair[1] * finished.scale);
      }
      transpose_quad(words);
      if (rows.live[half]) *reinterpret_cast<uint4*>(out + n * 8) = uint4{words[0], words[1], words[2], words[3]};
    }
    if (rows.live[half] && !problem.lse.empty() && lane_id() % 4 == 0)
      problem.lse(token, rows.head[half]) = finished.lse;
  }
}

/// Leaves the rows that exist to prefill_merge, unnormalised.
template <class Config>
__device__ __forceinline__ void store_pieces(const Partials& partials, const PrefillCut& cut, const PrefillShare& work,
                                             int row_in_tile, const ScaledSoftmax (&softmax)[2],
                                             const typename Config::Output& output) {
  struct alignas(8) Two {
    float x, y;
  };
  const RowPair rows = rows_of<Config>(cut, work, row_in_tile);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OnlineSoftmax row = whole_row(softmax[half]);
    if (!rows.live[half]) continue;
    const std::int64_t token = work.first_token + (rows.query[half] - work.offset);
    const std::int64_t piece = piece_of_row(cut, work, token, rows.head[half]);
    float* const out = partials.outputs.data + piece * partials.outputs.strides[0] + lane_id() % 4 * 2;
#pragma unroll
    for (int n = 0; n < Config::head_dim_v / 8; ++n)
      *reinterpret_cast<Two*>(out + 8 * n) = {output[4 * n + 2 * half], output[4 * n + 2 * half + 1]};
    if (lane_id() % 4 == 0) partials.softmax(piece) = row;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
