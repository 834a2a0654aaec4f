// What the passes of choose_kernel share: a row of logits and its weights, bins, and the memory of a CTA.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

namespace engine {
namespace ops {

inline constexpr int max_sampled_vocab = 1 << 19;  // sums of weights stay below 2^63

namespace sampling {

using Weight = unsigned long long;  // in units of 2^-44
inline constexpr int threads = 512, num_bins = 4096, bins_per_thread = num_bins / threads, max_listed = 1024;
inline constexpr int max_levels = 3;
inline constexpr float least_weight = 0x1p-44f, weight_range = 30.5f;  // its natural logarithm

struct SharedMemory {
  unsigned weight_low[num_bins], weight_high[num_bins];  // a 64-bit sum, of which the hardware adds 32 bits at a time
  unsigned count[num_bins];
  Weight listed_weight[max_listed];
  float listed_logit[max_listed];
  int listed_token[max_listed];
  Weight warp_weight[threads / 32];
  unsigned warp_count[threads / 32];
  double warp_sum[threads / 32];
  float warp_highest[threads / 32], warp_lowest[threads / 32];
  int warp_token[threads / 32];
  // What one thread found and all read:
  int bin, num_listed, token;
  Weight before, upto;  // weight in front of the bin; up to and with the token
  unsigned count_before;
  double log_sum;
  float highest, lowest;
  bool is_bad;
};

/// The CTA's. A function that were given a reference could not know that it is shared memory it adds to.
__device__ inline SharedMemory& memory() {
  extern __shared__ uint4 choose_memory[];
  return *reinterpret_cast<SharedMemory*>(choose_memory);
}

/// One row of logits and how its tokens weigh.
struct Row {
  const float* logits;
  int vocab;
  float highest = 0, inverse_temperature = 0, bins_per_logit = 0;
  bool counts = false;  // are tokens counted, too, for top-k?

  __device__ float weight(float logit) const {  // 1 for the highest, whatever the temperature
    const float distance = highest - logit;
    float weight;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(weight) : "f"(-distance * inverse_temperature));
    return distance > 0 ? weight : 1.f;
  }
  /// Of a weight from least_weight to 1, exactly or cut off.
  __device__ static Weight fixed(float weight) {
    const unsigned bits = __float_as_uint(weight), exponent = bits >> 23;
    return Weight{(bits & 0x7fffffu) | 0x800000u} << 21 >> (127 - exponent);
  }
  /// Where a token lies on the scale of bins; within [0, num_bins).
  __device__ float place(float logit) const {
    return fminf((highest - logit) * bins_per_logit, num_bins * (1.f - 0x1p-24f));
  }

  /// Calls f(four logits, the first's token) for the tokens that are this thread's, in order of their ids. Behind the
  /// end of the row there is nothing, minus infinity.
  template <class F>
  __device__ void for_each_four(F&& f) const {
    constexpr int ahead = 4;  // loads in flight
    const int num_packs = vocab / 4;
    const auto* const packs = reinterpret_cast<const float4*>(logits);
    for (int first = static_cast<int>(threadIdx.x); first < num_packs; first += ahead * threads) {
      float4 pack[ahead];
#pragma unroll
      for (int n = 0; n < ahead; ++n)
        if (first + n * threads < num_packs) pack[n] = __ldg(packs + first + n * threads);
#pragma unroll
      for (int n = 0; n < ahead; ++n) {
        if (first + n * threads >= num_packs) break;
        f(pack[n], 4 * (first + n * threads));
      }
    }
    const int rest = 4 * num_packs;
    const auto logit = [&](int token) { return token < vocab ? logits[token] : -INFINITY; };
    if (rest < vocab && threadIdx.x == 0)
      f(make_float4(logit(rest), logit(rest + 1), logit(rest + 2), -INFINITY), rest);
  }

  /// Calls f(logit, weight, token) for those that weigh anything.
  template <class F>
  __device__ void for_each_weighing(F&& f) const {
    for_each_four([&](const float4& four, int token) {
      const float of_four[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float of_one = weight(of_four[i]);
        if (of_one >= least_weight) f(of_four[i], of_one, token + i);
      }
    });
  }
};

/// A run of the order from likely to unlikely: the tokens of one bin of one bin ... of the row.
struct Range {
  int bins[max_levels] = {};
  int levels = 0;

  __device__ void enter(int bin) {
#pragma unroll
    for (int level = 0; level < max_levels; ++level)  // an index known at compile time keeps the bins in registers
      if (level == levels) bins[level] = bin;
    ++levels;
  }

  /// Is it in here? Then `place` becomes its place on the scale of the next finer bins. All steps are exact.
  __device__ bool narrow(float& place) const {
#pragma unroll
    for (int level = 0; level < max_levels; ++level) {
      if (level == levels) break;
      const auto bin = static_cast<int>(place);
      if (bin != bins[level]) return false;
      place = (place - static_cast<float>(bin)) * num_bins;
    }
    return true;
  }
};

/// Which token a cut shall find: the first that takes the sum of weights, or the number of tokens, beyond `target`.
struct Cut {
  Weight target;
  bool counts;
};

__device__ inline void add(int bin, Weight weight, bool counts) {
  SharedMemory& shared = memory();
  const auto low = static_cast<unsigned>(weight);
  const unsigned before = atomicAdd(&shared.weight_low[bin], low);
  const unsigned high = static_cast<unsigned>(weight >> 32) + (before + low < before ? 1u : 0u);
  if (high > 0) atomicAdd(&shared.weight_high[bin], high);
  if (counts) atomicAdd(&shared.count[bin], 1u);
}

__device__ inline Weight weight_of(int bin) {
  const SharedMemory& shared = memory();
  return (Weight{shared.weight_high[bin]} << 32) + shared.weight_low[bin];
}

/// The sum of every thread's x in front of this one's; `total` is that of all.
template <class T>
__device__ T cta_sum_before(T x, T* warp_sums, T& total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T upto = x;
  for (unsigned step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += other;
  }
  __syncthreads();  // warp_sums may still be read
  if (lane == 31) warp_sums[warp] = upto;
  __syncthreads();
  T before = 0;
  total = 0;
  for (unsigned w = 0; w < threads / 32; ++w) {
    if (w == warp) before = total;
    total += warp_sums[w];
  }
  return before + upto - x;
}

}  // namespace sampling
}  // namespace ops
}  // namespace engine
