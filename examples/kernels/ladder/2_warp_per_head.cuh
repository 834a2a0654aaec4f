// Rung 2, a warp per head: 32 lanes share every dot product, rows are read in one run, and the softmax goes along.
//
//   grid   one CTA per (sequence, query head)
//   CTA    one warp
//   lane   columns 4 lane .. 4 lane + 3 of q, of each key, of each value and of the output: 8 bytes, 256 a warp
//
// Each lane multiplies its four columns, five exchanges add up the warp, and every lane knows the logit. OnlineSoftmax
// keeps the maximum so far; where a new key raises it, what was summed up shrinks by the factor that raise() returns
// (arXiv:1805.02867). So the keys are read once, and no logit is ever stored.
//
// What it costs: per key and head, five exchanges and some twenty instructions to use 512 bytes, and the next key is
// not asked for before this one is done. And each query head reads for itself: with four query heads to a KV head the
// same keys travel from L2 four times.
//
// What the next rung removes: both. The query heads of a KV head are one small matrix, and tensor cores multiply
// matrices.
#pragma once

#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/online_softmax.hpp"

namespace ladder {

inline constexpr int columns_per_lane = head_dim / lanes;

struct alignas(8) Columns {
  bf16 x[columns_per_lane];
};

__device__ inline Columns load_columns(const bf16* row) {
  return *reinterpret_cast<const Columns*>(row + columns_per_lane * static_cast<int>(threadIdx.x));
}

__device__ inline float warp_sum(float x) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

template <class Problem>
__global__ void __launch_bounds__(lanes) warp_per_head_kernel(const Problem problem) {
  const Work work = find_work(problem, static_cast<int>(blockIdx.x), problem.q_heads());
  const int kv_head = work.head / problem.group_size();
  const Columns q = load_columns(problem.q.at(work.token, work.head, 0));

  // [online]
  OnlineSoftmax softmax;
  float out[columns_per_lane] = {};
  for (int key = 0; key < work.kv_len; ++key) {
    const Columns k = load_columns(find_row(problem, problem.kv.k, work.sequence, kv_head, key));
    const Columns v = load_columns(find_row(problem, problem.kv.v, work.sequence, kv_head, key));
    float dot = 0.f;
    for (int c = 0; c < columns_per_lane; ++c) dot += to_float(q.x[c]) * to_float(k.x[c]);
    const float logit = problem.scale * warp_sum(dot);

    const float scale = softmax.raise(logit), weight = softmax.weight(logit);
    softmax.sum += weight;
    for (int c = 0; c < columns_per_lane; ++c) out[c] = scale * out[c] + weight * to_float(v.x[c]);
  }
  // [online]

  const float scale = softmax.finish().scale;  // 0 for a sequence without keys
  Columns result;
  for (int c = 0; c < columns_per_lane; ++c) result.x[c] = from_float<bf16>(scale * out[c]);
  *reinterpret_cast<Columns*>(problem.out.at(work.token, work.head, columns_per_lane * static_cast<int>(threadIdx.x))) =
      result;
}

}  // namespace ladder
