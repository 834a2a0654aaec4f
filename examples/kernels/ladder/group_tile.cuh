// The sums of rungs 3 to 5 on tensor cores: a warp, a tile of keys in shared memory, and all query heads of a KV head.
#pragma once

#include <cstdint>

#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/ldmatrix.cuh"
#include "pagedkv/cuda/ptx/mma_sm80.cuh"
#include "pagedkv/cuda/ptx/movmatrix.cuh"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace ladder {

inline constexpr int key_tile = 32;  // keys of one pass: a lane can look up the block of one each
inline constexpr int max_group = 8;  // query heads of a KV head: N of the mma; fewer leave columns empty
using Tile = cuda::SwizzledTile<head_dim>;

struct KeyValueTile {
  alignas(128) bf16 keys[key_tile * head_dim];    // Tile [key_tile, head_dim]
  alignas(128) bf16 values[key_tile * head_dim];  // Tile [key_tile, head_dim]
};

using Queries = std::uint32_t[head_dim / 16][2];  // B fragments of Q^T [head_dim, 8 heads]
using Scores = float[key_tile / 16][4];           // C fragments of S^T [key_tile, 8 heads]
using Weights = std::uint32_t[key_tile / 16][2];  // B fragments of P^T [key_tile, 8 heads]

/// What a lane knows of its group: a quarter of the lanes hold the same two heads, and add up their sums at the end.
struct GroupState {
  OnlineSoftmax softmax[2];          // of heads 2 (lane % 4) and the next; sums of the lane's own keys
  float out[head_dim / 16][4] = {};  // C fragments of O^T [head_dim, 8 heads], unnormalised
};

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % lanes; }

template <class Problem>
__device__ void load_queries(Queries& queries, const Problem& problem, const Work& work) {
  const int group = problem.group_size();
  for (int d = 0; d < head_dim; d += 16) {
    for (int half = 0; half < 2; ++half) {
      const cuda::Coordinate place = cuda::fragment_b(lane_id(), 2 * half);
      const bool exists = place.column < group;
      const bf16* const q = problem.q.at(work.token, work.head * group + (exists ? place.column : 0), d + place.row);
      queries[d / 16][half] = exists ? *reinterpret_cast<const std::uint32_t*>(q) : 0u;
    }
  }
}

/// Logits of one tile; a key that does not exist weighs nothing.
__device__ inline void score(Scores& logits, const KeyValueTile& tile, const Queries& queries, float scale,
                             int num_keys) {
  const cuda::Coordinate place = cuda::quarters_down(lane_id());
#pragma unroll
  for (auto& fragment : logits) fragment[0] = fragment[1] = fragment[2] = fragment[3] = 0.f;
#pragma unroll
  for (int d = 0; d < head_dim; d += 16) {
#pragma unroll
    for (int key = 0; key < key_tile; key += 16) {
      std::uint32_t k[4];
      ptx::ldmatrix_x4(k, &tile.keys[Tile::offset(key + place.row, d + place.column)]);
      ptx::mma_m16n8k16<bf16>(logits[key / 16], k, queries[d / 16][0], queries[d / 16][1]);
    }
  }
#pragma unroll
  for (int n = 0; n < key_tile / 16; ++n) {
#pragma unroll
    for (int element = 0; element < 4; ++element) {
      const int key = 16 * n + cuda::fragment_c(lane_id(), element).row;
      logits[n][element] = key < num_keys ? scale * logits[n][element] : -infinity;
    }
  }
}

/// Logits become weights, turned for the second product; the output so far follows the maximum.
__device__ inline void soften(Weights& weights, Scores& logits, GroupState& state) {
#pragma unroll
  for (int head = 0; head < 2; ++head) {
    OnlineSoftmax& softmax = state.softmax[head];
    float top = -infinity;
#pragma unroll
    for (auto& fragment : logits) top = pagedkv::max(top, pagedkv::max(fragment[head], fragment[head + 2]));
#pragma unroll
    for (int step = 4; step < lanes; step *= 2) top = pagedkv::max(top, __shfl_xor_sync(all_lanes, top, step));
    const float scale = softmax.raise(top);
#pragma unroll
    for (auto& fragment : state.out) {
      fragment[head] *= scale;
      fragment[head + 2] *= scale;
    }
#pragma unroll
    for (auto& fragment : logits) {
      fragment[head] = softmax.weight(fragment[head]);
      fragment[head + 2] = softmax.weight(fragment[head + 2]);
      softmax.sum += fragment[head] + fragment[head + 2];
    }
  }
#pragma unroll
  for (int n = 0; n < key_tile / 16; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half)  // keys 0 .. 7, then 8 .. 15 of the sixteen
      weights[n][half] = ptx::movmatrix_transposed(ptx::pack<bf16>(logits[n][2 * half], logits[n][2 * half + 1]));
  }
}

__device__ inline void accumulate(GroupState& state, const KeyValueTile& tile, const Weights& weights) {
  const cuda::Coordinate place = cuda::quarters_across(lane_id());
#pragma unroll
  for (int key = 0; key < key_tile; key += 16) {
#pragma unroll
    for (int d = 0; d < head_dim; d += 16) {
      std::uint32_t v[4];
      ptx::ldmatrix_x4_transposed(v, &tile.values[Tile::offset(key + place.row, d + place.column)]);
      ptx::mma_m16n8k16<bf16>(state.out[d / 16], v, weights[key / 16][0], weights[key / 16][1]);
    }
  }
}

/// One tile, of which the first `num_keys` keys exist; the others are zeros.
__device__ inline void attend_tile(GroupState& state, const KeyValueTile& tile, const Queries& queries, float scale,
                                   int num_keys) {
  // [tile]
  Scores logits;
  Weights weights;
  score(logits, tile, queries, scale, num_keys);  // S^T = K Q^T
  soften(weights, logits, state);                 // P^T, and what the new maximum does to the output so far
  accumulate(state, tile, weights);               // O^T += V^T P^T
  // [tile]
}

/// The sums of the lanes that hold the same heads.
__device__ inline void add_up(GroupState& state) {
  for (OnlineSoftmax& softmax : state.softmax)
    for (int step = 4; step < lanes; step *= 2) softmax.sum += __shfl_xor_sync(all_lanes, softmax.sum, step);
}

template <class Problem>
__device__ void store(const Problem& problem, const Work& work, const GroupState& state) {
  const int group = problem.group_size();
  const float scale[2] = {state.softmax[0].finish().scale, state.softmax[1].finish().scale};
  for (int element = 0; element < 4; ++element) {
    const cuda::Coordinate place = cuda::fragment_c(lane_id(), element);
    if (place.column >= group) continue;
    bf16* const out = problem.out.at(work.token, work.head * group + place.column, place.row);
    for (int n = 0; n < head_dim / 16; ++n) out[16 * n] = from_float<bf16>(scale[element % 2] * state.out[n][element]);
  }
}

}  // namespace ladder
