// Choosing tokens on the GPU: the rules of Sampler, in its order, without a sort. One CTA a draw.
//
//   pass 1   the highest logit, the first that has it, and the sum of exponentials: all that greedy choice needs
//   pass 2   a histogram of the row: tokens are strewn over 4096 bins by their distance from the highest logit, and
//            each bin sums their weights, exp(-distance / temperature), in fixed point: exact sums, in whatever order
//   pass 3   for each cut (the k-th token, the end of the nucleus, the draw itself): the few tokens of the bin in which
//            the cut lies are put in order, the likeliest first
//
// A bin of too many tokens is strewn over 4096 finer ones, twice at most; what lies together even then is as good as
// equal, and goes in order of the ids. What the host and this disagree in is the rounding of weights: one is 24 bits of
// a float here, and below 2^-44 of the highest nothing.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "engine/cuda/ops.cuh"
#include "engine/cuda/sampler_row.cuh"
#include "engine/sampler.hpp"
#include "pagedkv/core/math.hpp"

namespace engine {
namespace ops {

/// Draw as the GPU reads it.
struct DrawInput {
  double random = 0;            // uniform in [0, 1)
  std::int32_t logit_row = -1;  // below 0: nothing is chosen
  float temperature = 0;
  std::int32_t top_k = 0;
  float top_p = 1, min_p = 0;
};

namespace sampling {

/// Pass 1. Leaves highest, lowest, token, log_sum and is_bad in shared memory.
__device__ __noinline__ inline void look_at(const float* logits, int vocab) {
  SharedMemory& shared = memory();
  const Row row{.logits = logits, .vocab = vocab};
  float highest = -FLT_MAX, lowest = FLT_MAX, sum = 0;  // a sum that is 0 at the end is one of minus infinities
  int token = 0;
  row.for_each_four([&](const float4& four, int first) {
    const float most = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
    if (most > highest) {
      sum *= __expf(highest - most);
      highest = most;
      token = first + (four.x == most ? 0 : four.y == most ? 1 : four.z == most ? 2 : 3);
    }
    lowest = fminf(lowest, fminf(fminf(four.x, four.y), fminf(four.z, four.w)));
    // Becomes NaN where a logit is, and for infinity less infinity.
    sum += __expf(four.x - highest) + __expf(four.y - highest) + __expf(four.z - highest) + __expf(four.w - highest);
  });
  auto whole_sum = static_cast<double>(sum);
  const auto join = [&](float other_highest, float other_lowest, int other_token, double other_sum) {
    const float both = fmaxf(highest, other_highest);
    whole_sum = whole_sum * exp(double{highest} - both) + other_sum * exp(double{other_highest} - both);
    if (other_highest > highest || (other_highest == highest && other_token < token)) token = other_token;
    highest = both;
    lowest = fminf(lowest, other_lowest);
  };
  for (int step = 16; step > 0; step /= 2) {
    const float other_highest = __shfl_down_sync(0xffffffffu, highest, step);
    const float other_lowest = __shfl_down_sync(0xffffffffu, lowest, step);
    const int other_token = __shfl_down_sync(0xffffffffu, token, step);
    join(other_highest, other_lowest, other_token, __shfl_down_sync(0xffffffffu, whole_sum, step));
  }
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    shared.warp_highest[warp] = highest;
    shared.warp_lowest[warp] = lowest;
    shared.warp_token[warp] = token;
    shared.warp_sum[warp] = whole_sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < threads / 32; ++w)
      join(shared.warp_highest[w], shared.warp_lowest[w], shared.warp_token[w], shared.warp_sum[w]);
    shared.highest = highest;
    shared.lowest = lowest;
    shared.token = token;
    shared.log_sum = highest + log(whole_sum);
    shared.is_bad = !(whole_sum > 0);  // or NaN
  }
  __syncthreads();
}

/// Pass 2, for the whole row or a range of it. Returns the weight of what is at least min_p as likely as the likeliest.
__device__ __noinline__ inline Weight fill_bins(const Row row, const Range range, float min_p) {
  SharedMemory& shared = memory();
  for (int bin = static_cast<int>(threadIdx.x); bin < num_bins; bin += threads)
    shared.weight_low[bin] = shared.weight_high[bin] = shared.count[bin] = 0;
  __syncthreads();
  Weight likely = 0;
  row.for_each_weighing([&](float logit, float weight, int) {
    const Weight fixed = Row::fixed(weight);
    if (weight >= min_p) likely += fixed;
    float place = row.place(logit);
    if (range.narrow(place)) add(static_cast<int>(place), fixed, row.counts);
  });
  Weight total = 0;
  cta_sum_before(likely, shared.warp_weight, total);
  return total;
}

/// Finds the bin in which the cut lies, `before` and `count_before` lying in front of the range. All threads get it by
/// shared.bin, with what lies in front of it.
__device__ __noinline__ inline void find_bin(const Cut cut, Weight before, unsigned count_before) {
  SharedMemory& shared = memory();
  Weight weight = 0, total_weight;
  unsigned count = 0, total_count;
  const int first = static_cast<int>(threadIdx.x) * bins_per_thread;
  for (int i = 0; i < bins_per_thread; ++i) {
    weight += weight_of(first + i);
    count += shared.count[first + i];
  }
  before += cta_sum_before(weight, shared.warp_weight, total_weight);
  count_before += cta_sum_before(count, shared.warp_count, total_count);
  for (int i = 0; i < bins_per_thread; ++i) {
    const Weight upto = before + weight_of(first + i);
    const unsigned count_upto = count_before + shared.count[first + i];
    const Weight lower = cut.counts ? count_before : before, upper = cut.counts ? count_upto : upto;
    if (lower <= cut.target && cut.target < upper) {  // true of one bin of all
      shared.bin = first + i;
      shared.before = before;
      shared.count_before = count_before;
    }
    before = upto;
    count_before = count_upto;
  }
  __syncthreads();
}

/// Lists the tokens of a bin, as far as there is room. Returns their number.
__device__ __noinline__ inline int list(const Row row, const Range range) {
  SharedMemory& shared = memory();
  if (threadIdx.x == 0) shared.num_listed = 0;
  __syncthreads();
  row.for_each_weighing([&](float logit, float weight, int token) {
    float place = row.place(logit);
    if (!range.narrow(place)) return;
    const int i = atomicAdd(&shared.num_listed, 1);
    if (i >= max_listed) return;
    shared.listed_weight[i] = Row::fixed(weight);
    shared.listed_logit[i] = logit;
    shared.listed_token[i] = token;
  });
  __syncthreads();
  return shared.num_listed;
}

/// The cut among the few tokens of a bin, all listed: each of them asks what lies in front of it.
__device__ __noinline__ inline void choose_listed(const Cut cut) {
  SharedMemory& shared = memory();
  for (int i = static_cast<int>(threadIdx.x); i < shared.num_listed; i += threads) {
    const float logit = shared.listed_logit[i];
    const int token = shared.listed_token[i];
    Weight before = shared.before;
    unsigned count_before = shared.count_before;
    for (int j = 0; j < shared.num_listed; ++j) {
      const float other = shared.listed_logit[j];
      if (other < logit || (other == logit && shared.listed_token[j] >= token)) continue;
      before += shared.listed_weight[j];
      ++count_before;
    }
    const Weight lower = cut.counts ? count_before : before;
    const Weight width = cut.counts ? 1 : shared.listed_weight[i];
    if (lower <= cut.target && cut.target - lower < width) {
      shared.token = token;
      shared.upto = before + shared.listed_weight[i];
    }
  }
  __syncthreads();
}

/// The cut among tokens that are as good as equal, in order of their ids: each takes an equal part of the bin.
__device__ __noinline__ inline void choose_equal(const Row row, const Range range, const Cut cut, Weight bin_weight,
                                                 unsigned bin_count) {
  SharedMemory& shared = memory();
  const Weight each = bin_weight / bin_count;
  const Weight rank = pagedkv::min<Weight>(
      cut.counts ? cut.target - shared.count_before : (cut.target - shared.before) / pagedkv::max<Weight>(each, 1),
      bin_count - 1);
  const int share = pagedkv::ceil_div(row.vocab, threads), first = static_cast<int>(threadIdx.x) * share;
  const int last = pagedkv::min(first + share, row.vocab);
  const auto is_inside = [&](int token) {
    float place = row.place(row.logits[token]);
    return row.weight(row.logits[token]) >= least_weight && range.narrow(place);
  };
  unsigned count = 0, total;
  for (int token = first; token < last; ++token) count += is_inside(token);
  Weight before = cta_sum_before(count, shared.warp_count, total);
  for (int token = first; token < last; ++token)
    if (is_inside(token) && before++ == rank) {
      shared.token = token;
      shared.upto = shared.before + (rank + 1) * each;
    }
  __syncthreads();
}

/// Finds the token where the cut lies and leaves it in shared.token, the weight up to it in shared.upto. The bins are
/// those of the whole row, when it is called and when it returns.
__device__ inline void find(const Row row, const Cut cut, float min_p) {
  SharedMemory& shared = memory();
  Range range;
  find_bin(cut, 0, 0);
  range.enter(shared.bin);
  int num_inside = list(row, range);
  while (num_inside > max_listed && range.levels < max_levels) {
    const Weight before = shared.before;
    const unsigned count_before = shared.count_before;
    fill_bins(row, range, min_p);
    find_bin(cut, before, count_before);
    range.enter(shared.bin);
    num_inside = list(row, range);
  }
  if (num_inside <= max_listed)
    choose_listed(cut);
  else
    choose_equal(row, range, cut, weight_of(shared.bin), static_cast<unsigned>(num_inside));
  if (range.levels > 1) fill_bins(row, Range{}, min_p);
}

/// What follows pass 1 where a temperature is wanted. Leaves the token in shared memory.
__device__ inline void draw(const Row row, const DrawInput& input) {
  SharedMemory& shared = memory();
  const Weight likely = fill_bins(row, Range{}, input.min_p);
  Weight weight = 0, kept = 0;
  unsigned count = 0, num_weighing = 0;
  for (int bin = static_cast<int>(threadIdx.x) * bins_per_thread, i = 0; i < bins_per_thread; ++i, ++bin) {
    weight += weight_of(bin);
    count += shared.count[bin];
  }
  cta_sum_before(weight, shared.warp_weight, kept);
  cta_sum_before(count, shared.warp_count, num_weighing);
  // Each rule keeps a beginning of one order, so the weight that is kept says all.
  if (input.top_k > 0 && static_cast<unsigned>(input.top_k) < num_weighing) {
    find(row, {.target = static_cast<Weight>(input.top_k - 1), .counts = true}, input.min_p);
    kept = shared.upto;
  }
  if (input.top_p < 1) {
    const auto least = static_cast<Weight>(ceil(double{input.top_p} * static_cast<double>(kept)));
    find(row, {.target = pagedkv::min(least, kept) - pagedkv::min<Weight>(least, 1), .counts = false}, input.min_p);
    kept = shared.upto;
  }
  kept = pagedkv::min(kept, likely);
  const auto target = static_cast<Weight>(input.random * static_cast<double>(kept));
  find(row, {.target = pagedkv::min(target, kept - 1), .counts = false}, input.min_p);
}

}  // namespace sampling

/// choices[i] = what draws[i] asks for; where it asks for nothing the old choice stays. Logits that are no numbers give
/// token 0 with a log-probability of NaN.
///   logits [rows, vocab], rows at multiples of 16 bytes   draws [num_draws]   choices [num_draws]
template <class Logit>
__global__ void __launch_bounds__(sampling::threads, 2)
    choose_kernel(const Device<const Logit> logits, const Device<const DrawInput, 1> draws,
                  const Device<Choice, 1> choices) {
  const sampling::SharedMemory& shared = sampling::memory();
  const DrawInput input = draws(blockIdx.x);
  if (input.logit_row < 0) return;
  const Logit* const row = logits.at(input.logit_row, 0);
  const auto vocab = static_cast<int>(logits.extents[1]);
  sampling::look_at(row, vocab);
  const bool is_bad = shared.is_bad;
  if (!is_bad && input.temperature > 0) {
    constexpr float log2_e = 1.44269504f;
    const float range = fminf(shared.highest - shared.lowest, sampling::weight_range * input.temperature);
    sampling::draw({.logits = row,
                    .vocab = vocab,
                    .highest = shared.highest,
                    .inverse_temperature = fminf(log2_e / input.temperature, FLT_MAX),
                    .bins_per_logit = fminf(sampling::num_bins / range, FLT_MAX),
                    .counts = input.top_k > 0},
                   input);
  }
  if (threadIdx.x == 0)
    choices(blockIdx.x) = {.token = is_bad ? 0 : shared.token,
                           .logprob = is_bad ? nan("") : row[shared.token] - shared.log_sum};
}

}  // namespace ops
}  // namespace engine
