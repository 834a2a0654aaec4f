// The rows that prefill_sm90 left in pieces, one for each share of their keys, become rows of the output.
//
//   grid   a warp for each row of [num_tokens, q_heads]; rows of sequences that are not prefill's end at once
//   lane   four columns at a time
//
// Bytes: 4 head_dim_v for each piece, out of L2 while they are few.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/gather_kv.cuh"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/global.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

inline constexpr int prefill_merge_threads = 128;

/// Pieces are joined in the order of the keys. `min_q_len`: of the sequences that were prefill's.
template <class Problem, AttentionVariant V>
__global__ void __launch_bounds__(prefill_merge_threads)
    prefill_merge_kernel(const Problem problem, const V variant, const Partials partials, int num_splits,
                         int min_q_len) {
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  const std::int64_t row = std::int64_t{blockIdx.x} * (prefill_merge_threads / 32) + detail::warp_id();
  const auto token = static_cast<int>(row / problem.q_heads());
  const int q_head = static_cast<int>(row % problem.q_heads()), lane = detail::lane_id();
  const auto& begins = problem.tables.query_begin;
  const int num_seqs = problem.tables.num_seqs();
  if (token < begins(0) || token >= begins(num_seqs)) return;
  if (problem.tables.q_len(detail::find_sequence(begins, {0, num_seqs}, token)) < min_q_len) return;

  const std::int64_t first = row * num_splits;
  OnlineSoftmax total;
  for (int split = 0; split < num_splits; ++split) total.max = max(total.max, partials.softmax(first + split).max);
  for (int split = 0; split < num_splits; ++split) {
    const OnlineSoftmax piece = partials.softmax(first + split);
    total.sum += piece.sum * total.weight(piece.max);
  }
  const auto [scale, lse] = total.finish(prior_of(variant, q_head));
  if (lane == 0 && !problem.lse.empty()) problem.lse(token, q_head) = lse;

  for (int column = 4 * lane; column < problem.head_dim_v(); column += 128) {
    float sums[4] = {};
    for (int split = 0; split < num_splits; ++split) {
      const float weight = total.weight(partials.softmax(first + split).max);
      if (weight == 0.f) continue;  // a piece that saw nothing was never written
      float part[4];
      ptx::load_past_l1(part, partials.outputs.data + (first + split) * partials.outputs.strides[0] + column);
      for (int i = 0; i < 4; ++i) sums[i] = fmaf(weight, part[i], sums[i]);
    }
    using T = typename Problem::Output;
    struct alignas(8) Four {
      std::uint32_t pairs[2];
    };
    *reinterpret_cast<Four*>(problem.out.at(token, q_head, column)) = {ptx::pack<T>(scale * sums[0], scale * sums[1]),
                                                                       ptx::pack<T>(scale * sums[2], scale * sums[3])};
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
