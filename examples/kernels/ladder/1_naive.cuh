// Rung 1, naive: the formula of attention as it stands, one thread for every number of the output.
//
//   grid   one CTA per (sequence, query head)
//   CTA    head_dim threads; thread d computes out[d]
//
//   x_j = scale * q . k_j         w_j = exp(x_j - max x)         out[d] = sum of w_j v_j[d] / sum of w_j
//
// What it costs: nobody tells anybody anything. Each of the 128 threads computes every x_j from all of q and k_j, once
// for the maximum and once more for the weights: 256 times the products that the formula needs. All threads of a warp
// ask for the same element at the same time, so a request that could fetch 512 bytes fetches 2. Memory is idle; the GPU
// is busy with repeating itself.
//
// What the next rung removes: the repetition. The threads of a warp share one dot product, and one pass over the keys
// suffices.
#pragma once

#include "kernels/ladder/work.cuh"
#include "pagedkv/core/math.hpp"

namespace ladder {

template <class Problem>
__device__ float naive_logit(const Problem& problem, const Work& work, int kv_head, int key) {
  const bf16* const q = problem.q.at(work.token, work.head, 0);                        // [head_dim]
  const bf16* const k = find_row(problem, problem.kv.k, work.sequence, kv_head, key);  // [head_dim]
  float dot = 0.f;
#pragma unroll 8
  for (int d = 0; d < head_dim; ++d) dot += to_float(q[d]) * to_float(k[d]);
  return problem.scale * dot;
}

template <class Problem>
__global__ void __launch_bounds__(head_dim) naive_kernel(const Problem problem) {
  const Work work = find_work(problem, static_cast<int>(blockIdx.x), problem.q_heads());
  const int kv_head = work.head / problem.group_size(), d = static_cast<int>(threadIdx.x);

  // [formula]
  float top = -infinity;
  for (int key = 0; key < work.kv_len; ++key) top = pagedkv::max(top, naive_logit(problem, work, kv_head, key));

  float sum = 0.f, out = 0.f;
  for (int key = 0; key < work.kv_len; ++key) {
    const float weight = pagedkv::exp(naive_logit(problem, work, kv_head, key) - top);
    const bf16* const v = find_row(problem, problem.kv.v, work.sequence, kv_head, key);  // [head_dim]
    sum += weight;
    out += weight * to_float(v[d]);
  }
  problem.out(work.token, work.head, d) = from_float<bf16>(work.kv_len == 0 ? 0.f : out / sum);
  // [formula]
}

}  // namespace ladder
