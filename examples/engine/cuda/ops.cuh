// The decoder's operations on whole rows: one CTA a row, 16 bytes of bf16 a thread at a time, arithmetic in float.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "engine/sampler.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/ptx/convert.cuh"

namespace engine {
namespace ops {

template <class T, int Rank = 2>
using Device = pagedkv::View<T, Rank, pagedkv::Space::device>;
using pagedkv::bf16;

/// Neighbours in a row, which a thread moves at once: widths are multiples, rows start at multiples of 16 bytes.
inline constexpr int pack = 8;
inline constexpr int max_row_threads = 1024;
inline constexpr int max_width = 2 * max_row_threads * pack;  // of a row whose values a CTA keeps in registers

struct Floats {
  float at[pack];
};

__device__ inline Floats load(const bf16* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Floats x;
#pragma unroll
  for (int i = 0; i < pack; ++i)  // the first of two elements is the lower half
    x.at[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  return x;
}
__device__ inline Floats load(const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
__device__ inline void store(bf16* to, const Floats& x) {
  uint4 bits;
  bits.x = pagedkv::ptx::pack<bf16>(x.at[0], x.at[1]);
  bits.y = pagedkv::ptx::pack<bf16>(x.at[2], x.at[3]);
  bits.z = pagedkv::ptx::pack<bf16>(x.at[4], x.at[5]);
  bits.w = pagedkv::ptx::pack<bf16>(x.at[6], x.at[7]);
  *reinterpret_cast<uint4*>(to) = bits;
}
__device__ inline void store(float* to, const Floats& x) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
}

/// The sum over the CTA of every thread's `x`, in every thread; always added in the same order. Once a kernel.
__device__ inline float cta_sum(float x) {
  __shared__ float sums[32];
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += sums[warp];
  return sum;
}

/// out[i] = table[tokens[i]]; a token below 0 is -1 - k: the k-th of `newest`, which the step before chose.
///   table [vocab, width]   tokens [num_rows]   out [num_rows, width]
template <class T>
__global__ void __launch_bounds__(max_row_threads)
    embed_kernel(const Device<const T> table, const Device<const std::int32_t, 1> tokens,
                 const Device<const Choice, 1> newest, const Device<float> out) {
  const std::int64_t given = tokens(blockIdx.x), token = given >= 0 ? given : newest(-1 - given).token;
  for (std::int64_t i = threadIdx.x * pack; i < out.extents[1]; i += blockDim.x * pack)
    store(out.at(blockIdx.x, i), load(table.at(token, i)));
}

/// out[i] = from[rows[i]].   from [any, width]   rows [num_rows]   out [num_rows, width]
template <class T>
__global__ void __launch_bounds__(max_row_threads)
    row_gather_kernel(const Device<const T> from, const Device<const std::int32_t, 1> rows, const Device<T> out) {
  const std::int64_t row = rows(blockIdx.x);
  for (std::int64_t i = threadIdx.x * pack; i < out.extents[1]; i += blockDim.x * pack)
    store(out.at(blockIdx.x, i), load(from.at(row, i)));
}

/// x += y where y is wanted; then out = x / rms(x) * gain (Zhang and Sennrich 2019, arXiv:1910.07467). out may be y.
///   x, y, out [num_rows, width], width at most max_width   gain [width]
template <class T>
__global__ void __launch_bounds__(max_row_threads)
    add_rms_norm_kernel(const Device<float> x, const Device<const T> y, const float* gain, float eps,
                        const Device<T> out) {
  const std::int64_t row = blockIdx.x, width = x.extents[1];
  constexpr int max_packs = max_width / pack / max_row_threads;
  Floats kept[max_packs];
  float sum = 0;
#pragma unroll
  for (int n = 0; n < max_packs; ++n) {
    const std::int64_t i = (n * blockDim.x + threadIdx.x) * pack;
    if (i >= width) break;
    kept[n] = load(x.at(row, i));
    if (!y.empty()) {
      const Floats more = load(y.at(row, i));
      for (int j = 0; j < pack; ++j) kept[n].at[j] += more.at[j];
      store(x.at(row, i), kept[n]);
    }
    for (int j = 0; j < pack; ++j) sum += kept[n].at[j] * kept[n].at[j];
  }
  const float scale = rsqrtf(cta_sum(sum) / static_cast<float>(width) + eps);
#pragma unroll
  for (int n = 0; n < max_packs; ++n) {
    const std::int64_t i = (n * blockDim.x + threadIdx.x) * pack;
    if (i >= width) break;
    const Floats factor = load(gain + i);
    for (int j = 0; j < pack; ++j) kept[n].at[j] *= scale * factor.at[j];
    store(out.at(row, i), kept[n]);
  }
}

/// x += y.
template <class T>
__global__ void __launch_bounds__(max_row_threads) row_add_kernel(const Device<float> x, const Device<const T> y) {
  for (std::int64_t i = threadIdx.x * pack; i < x.extents[1]; i += blockDim.x * pack) {
    Floats sum = load(x.at(blockIdx.x, i));
    const Floats more = load(y.at(blockIdx.x, i));
    for (int j = 0; j < pack; ++j) sum.at[j] += more.at[j];
    store(x.at(blockIdx.x, i), sum);
  }
}

/// gate = silu(gate) * up (Shazeer 2020, arXiv:2002.05202). The fast functions are off by a few units of a float's last
/// place, the result is rounded to T.
template <class T>
__global__ void __launch_bounds__(max_row_threads)
    gate_multiply_kernel(const Device<T> gate, const Device<const T> up) {
  for (std::int64_t i = threadIdx.x * pack; i < gate.extents[1]; i += blockDim.x * pack) {
    Floats x = load(gate.at(blockIdx.x, i));
    const Floats factor = load(up.at(blockIdx.x, i));
    for (int j = 0; j < pack; ++j) x.at[j] = __fdividef(x.at[j], 1 + __expf(-x.at[j])) * factor.at[j];
    store(gate.at(blockIdx.x, i), x);
  }
}

/// Enqueues `kernel` with a CTA for each row, none for no rows. Throws CudaError where the launch fails. To let it
/// overlap the matrix product in front saves nothing: cuBLAS's kernels let nobody start before they end.
template <class... Parameters, class... Arguments>
void launch_rows(void (*kernel)(Parameters...), std::int64_t num_rows, std::int64_t width, cudaStream_t stream,
                 const Arguments&... arguments) {
  if (num_rows == 0) return;
  const auto packs = static_cast<int>(pagedkv::ceil_div<std::int64_t>(width, pack));
  const int threads = std::min(max_row_threads, pagedkv::round_up(packs, 32));
  pagedkv::cuda::launch(kernel, {.grid = dim3(static_cast<unsigned>(num_rows)), .threads = threads},
                        pagedkv::cuda::Launch::after_previous, stream, "engine: launch", arguments...);
}

}  // namespace ops
}  // namespace engine
