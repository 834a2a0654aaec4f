// What happens to a row of q, k and v between two matrix products, in one kernel: bias, norms, rotary embedding, and K
// and V into the paged cache.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/cuda/ops.cuh"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/store_kv.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace engine {
namespace ops {

/// One layer's share of a step.
struct RopeStore {
  Device<bf16> qkv;                      // [num_rows, (q_heads + 2 * kv_heads) * head_dim]
  const float* bias;                     // [(q_heads + 2 * kv_heads) * head_dim], or null
  const float *q_norm, *k_norm;          // [head_dim], or null
  float eps;                             // of the norms
  Device<const float2> turns;            // [num_rows, head_dim / 2], cosine and sine
  Device<const pagedkv::Slot, 1> slots;  // [num_rows]; below 0 the row is dead, and left as it is
  pagedkv::KvView<bf16, pagedkv::Space::device> kv;
  pagedkv::Divisor block_size;
  int q_heads, kv_heads;
};

inline constexpr int rope_threads = 256;

/// q stays where it is, turned; k and v go to the cache alone.
///   grid    a CTA for each row
///   lanes   head_dim / 16 a head, each with 8 elements of the lower half and the 8 of the upper that they turn with
/// Su et al. 2021, arXiv:2104.09864, in the layout of Hugging Face's checkpoints; norms of heads: Qwen3,
/// arXiv:2505.09388.
template <int HeadDim>
__global__ void __launch_bounds__(rope_threads, 4) rope_store_kernel(const RopeStore step) {
  constexpr int head_lanes = HeadDim / 2 / pack, half = HeadDim / 2;
  const std::int64_t row = blockIdx.x;
  const pagedkv::Slot slot = step.slots(row);
  const int num_heads = step.q_heads + 2 * step.kv_heads;
  const int first = static_cast<int>(threadIdx.x) % head_lanes * pack;  // of this lane's elements
  const unsigned group = ((1u << head_lanes) - 1) << (threadIdx.x % 32 / head_lanes * head_lanes);
  pagedkv::ptx::launch_dependents();  // attention may start, and waits before it reads
  if (slot < 0) return;
  const pagedkv::cuda::detail::Place place = pagedkv::cuda::detail::place_of(slot, step.block_size);
  Floats cos, sin;
  for (int i = 0; i < pack; ++i) {
    const float2 turn = step.turns(row, first + i);
    cos.at[i] = turn.x;
    sin.at[i] = turn.y;
  }
  for (int head = static_cast<int>(threadIdx.x) / head_lanes; head < num_heads; head += rope_threads / head_lanes) {
    const bool is_q = head < step.q_heads, is_v = head >= step.q_heads + step.kv_heads;
    const int column = head * HeadDim + first;
    Floats low = load(step.qkv.at(row, column)), high = load(step.qkv.at(row, column + half));
    if (step.bias != nullptr) {
      const Floats low_bias = load(step.bias + column), high_bias = load(step.bias + column + half);
      for (int i = 0; i < pack; ++i) low.at[i] += low_bias.at[i], high.at[i] += high_bias.at[i];
    }
    const float* const gain = is_q ? step.q_norm : step.k_norm;
    if (!is_v && gain != nullptr) {
      float sum = 0;
      for (int i = 0; i < pack; ++i) sum += low.at[i] * low.at[i] + high.at[i] * high.at[i];
      for (int lane = head_lanes / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(group, sum, lane);
      const float scale = rsqrtf(sum / HeadDim + step.eps);
      const Floats low_gain = load(gain + first), high_gain = load(gain + first + half);
      for (int i = 0; i < pack; ++i) low.at[i] *= scale * low_gain.at[i], high.at[i] *= scale * high_gain.at[i];
    }
    if (!is_v) {
      for (int i = 0; i < pack; ++i) {
        const float a = low.at[i], b = high.at[i];
        low.at[i] = a * cos.at[i] - b * sin.at[i];
        high.at[i] = b * cos.at[i] + a * sin.at[i];
      }
    }
    bf16* to = step.qkv.at(row, column);
    if (is_v)
      to = step.kv.v.at(place.block, head - step.q_heads - step.kv_heads, place.offset, first);
    else if (!is_q)
      to = step.kv.k.at(place.block, head - step.q_heads, place.offset, first);
    store(to, low);
    store(to + half, high);
  }
}

}  // namespace ops
}  // namespace engine
