// Decode attention in plain fp32, against which every timed call is checked: no tensor cores, no splits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/memory.cuh"
#include "support/graph.cuh"

namespace bench {

namespace detail {

/// grid [rows of q, q_heads], 32 warps. A warp takes every 32nd key, a lane every 32nd column; the warps are merged
/// at the end. Row r is query r % q_len of sequence r / q_len, causal. expected [num_rows, q_heads, HeadDim].
template <int HeadDim, class Problem>
__global__ void __launch_bounds__(1024) reference_kernel(Problem problem, int q_len, float* expected) {
  constexpr int columns = pagedkv::ceil_div(HeadDim, 32), warps = 32;
  __shared__ float max_of[warps], sum_of[warps], out_of[warps][HeadDim];
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int sequence = row / q_len, kv_head = head / problem.group_size(), block_size = problem.kv.block_size();
  const int num_keys = problem.tables.kv_len(sequence) - q_len + row % q_len + 1;
  float q[columns], out[columns] = {}, max = -pagedkv::infinity, sum = 0;
  for (int c = 0; c < columns; ++c)
    q[c] = c * 32 + lane < HeadDim ? pagedkv::to_float(problem.q(row, head, c * 32 + lane)) : 0.f;
  for (int key = warp; key < num_keys; key += warps) {
    const int block = problem.tables.block_ids(sequence, key / block_size), slot = key % block_size;
    float logit = 0;
    for (int c = 0; c < columns; ++c)
      if (c * 32 + lane < HeadDim) logit += q[c] * pagedkv::to_float(problem.kv.k(block, kv_head, slot, c * 32 + lane));
    for (int step = 16; step > 0; step /= 2) logit += __shfl_xor_sync(~0u, logit, step);
    logit *= problem.scale;
    const float new_max = pagedkv::max(max, logit), old = expf(max - new_max), weight = expf(logit - new_max);
    max = new_max;
    sum = sum * old + weight;
    for (int c = 0; c < columns; ++c)
      if (c * 32 + lane < HeadDim)
        out[c] = out[c] * old + weight * pagedkv::to_float(problem.kv.v(block, kv_head, slot, c * 32 + lane));
  }
  max_of[warp] = max;
  sum_of[warp] = sum;
  for (int c = 0; c < columns; ++c)
    if (c * 32 + lane < HeadDim) out_of[warp][c * 32 + lane] = out[c];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= HeadDim) return;
  float top = -pagedkv::infinity, total = 0, value = 0;
  for (int w = 0; w < warps; ++w) top = pagedkv::max(top, max_of[w]);
  for (int w = 0; w < warps; ++w) {
    const float share = sum_of[w] > 0 ? expf(max_of[w] - top) : 0.f;
    total += share * sum_of[w];
    value += share * out_of[w][column];
  }
  expected[(static_cast<std::size_t>(row) * gridDim.y + head) * HeadDim + column] = value / total;
}

}  // namespace detail

/// Relative L2 distance of problem.out from the truth over its first `num_rows` rows; NaN where any row of all was left
/// unwritten, i.e. still holds the NaN that poison() put there. Every sequence has q_len queries and a key.
template <int HeadDim, class Problem>
double relative_error(const Problem& problem, int q_len, int num_rows) {
  using Output = typename Problem::Output;
  const auto row_size = static_cast<std::size_t>(problem.q_heads()) * HeadDim;
  const pagedkv::cuda::DeviceArray<float> expected(static_cast<std::size_t>(num_rows) * row_size);
  const dim3 grid(static_cast<unsigned>(num_rows), static_cast<unsigned>(problem.q_heads()));
  detail::reference_kernel<HeadDim><<<grid, 1024>>>(problem, q_len, expected.data());
  check(cudaGetLastError(), "relative_error");
  std::vector<float> truth(expected.size());
  std::vector<Output> out(static_cast<std::size_t>(problem.num_tokens()) * row_size);
  check(cudaMemcpy(truth.data(), expected.data(), expected.size_bytes(), cudaMemcpyDeviceToHost), "relative_error");
  check(cudaMemcpy(out.data(), problem.out.data, out.size() * sizeof(Output), cudaMemcpyDeviceToHost),
        "relative_error");
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double x = pagedkv::to_float(out[i]);
    if (std::isnan(x)) return x;
    if (i >= truth.size()) continue;
    difference += (x - truth[i]) * (x - truth[i]);
    norm += double{truth[i]} * truth[i];
  }
  return std::sqrt(difference / norm);
}

/// All ones are a NaN in every storage type.
template <class Problem>
void poison(const Problem& problem) {
  const auto size = static_cast<std::size_t>(problem.num_tokens()) * problem.q_heads() * problem.head_dim_v();
  check(cudaMemset(problem.out.data, 0xff, size * sizeof(*problem.out.data)), "poison");
  check(cudaDeviceSynchronize(), "poison");
}

}  // namespace bench
