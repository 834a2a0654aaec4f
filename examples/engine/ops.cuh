// The decoder's operations between matrix products: one CTA a row, arithmetic in float, any strides. Written to be
// read: each is bound by launch overhead in a small model and by memory in a large one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"

namespace engine {
namespace ops {

template <class T, int Rank = 2>
using Device = pagedkv::View<T, Rank, pagedkv::Space::device>;
using pagedkv::from_float;
using pagedkv::to_float;

inline constexpr int row_threads = 256;
inline constexpr int row_warps = row_threads / 32;

/// The sum over the CTA of every thread's `x`, in every thread; always added in the same order.
__device__ inline float cta_sum(float x) {
  __shared__ float sums[row_warps];
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < row_warps; ++warp) sum += sums[warp];
  return sum;
}

/// out[i] = from[rows[i]], as float.
///   from [any, width]   rows [num_rows]   out [num_rows, width]
template <class T>
__global__ void row_gather_kernel(const Device<const T> from, const Device<const std::int32_t, 1> rows,
                                  const Device<float> out) {
  const std::int64_t row = rows(blockIdx.x);
  for (std::int64_t i = threadIdx.x; i < out.extents[1]; i += row_threads) out(blockIdx.x, i) = to_float(from(row, i));
}

/// out = x / rms(x) * gain (Zhang and Sennrich 2019, arXiv:1910.07467).
///   x, out [num_rows, width]   gain [width]
template <class T>
__global__ void __launch_bounds__(row_threads)
    rms_norm_kernel(const Device<const float> x, const Device<const float, 1> gain, float eps, const Device<T> out) {
  const std::int64_t row = blockIdx.x, width = x.extents[1];
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += row_threads) sum += x(row, i) * x(row, i);
  const float scale = rsqrtf(cta_sum(sum) / static_cast<float>(width) + eps);
  for (std::int64_t i = threadIdx.x; i < width; i += row_threads)
    out(row, i) = from_float<T>(x(row, i) * scale * gain(i));
}

/// Turns every head of a row by the row's position (Su et al. 2021, arXiv:2104.09864), in the layout of Hugging Face's
/// checkpoints: element i turns with i + head_dim / 2.
///   x [num_rows, heads, head_dim]   positions [num_rows]   frequencies [head_dim / 2], radians a position
template <class T>
__global__ void head_turn_kernel(const Device<T, 3> x, const Device<const std::int32_t, 1> positions,
                                 const Device<const float, 1> frequencies) {
  const std::int64_t row = blockIdx.x, half = frequencies.extents[0];
  const auto position = static_cast<float>(positions(row));
  for (std::int64_t pair = threadIdx.x; pair < x.extents[1] * half; pair += row_threads) {
    const std::int64_t head = pair / half, i = pair % half;
    float sin, cos;
    sincosf(position * frequencies(i), &sin, &cos);
    T &low = x(row, head, i), &high = x(row, head, i + half);
    const float a = to_float(low), b = to_float(high);
    low = from_float<T>(a * cos - b * sin);
    high = from_float<T>(b * cos + a * sin);
  }
}

/// gate = silu(gate) * up (Shazeer 2020, arXiv:2002.05202).
template <class T>
__global__ void gate_multiply_kernel(const Device<T> gate, const Device<const T> up) {
  const std::int64_t row = blockIdx.x;
  for (std::int64_t i = threadIdx.x; i < gate.extents[1]; i += row_threads) {
    const float x = to_float(gate(row, i));
    gate(row, i) = from_float<T>(x / (1 + expf(-x)) * to_float(up(row, i)));
  }
}

/// x += y.
template <class T>
__global__ void row_add_kernel(const Device<float> x, const Device<const T> y) {
  const std::int64_t row = blockIdx.x;
  for (std::int64_t i = threadIdx.x; i < x.extents[1]; i += row_threads) x(row, i) += to_float(y(row, i));
}

/// Enqueues `kernel` with a CTA for each row, none for no rows. Throws CudaError where the launch fails.
template <class... Parameters, class... Arguments>
void launch_rows(void (*kernel)(Parameters...), std::int64_t num_rows, cudaStream_t stream,
                 const Arguments&... arguments) {
  if (num_rows == 0) return;
  kernel<<<static_cast<unsigned>(num_rows), row_threads, 0, stream>>>(arguments...);
  pagedkv::cuda::check(cudaGetLastError(), "engine: launch");
}

}  // namespace ops
}  // namespace engine
