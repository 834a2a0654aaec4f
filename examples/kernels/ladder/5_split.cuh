// Rung 5, split: the keys of a sequence are cut over CTAs, and whoever comes last joins the pieces, in the same launch.
//
//   grid   one CTA per (sequence, KV head, split)
//   CTA    one warp: rung 4 over its split of the keys, then
//
//   partial  (max, sum, output not yet normalised) in fp32 to global memory   ->   fence   ->   count up
//            the CTA that counts to the end:  fence   ->   merge partials 0, 1, 2 ... in this order   ->   store
//
// Softmax can be computed in pieces: OnlineSoftmax::merge brings two to a common maximum (FlashDecoding). Cut fine
// enough, one sequence fills the GPU. No CTA waits for another, so it does not matter how many run at a time; one of
// them finds that it was the last. It merges in the order of the splits, not of arrival: the same input gives the same
// bits, whoever is late.
//
// The cut comes from the library's AttentionPlan: equal pieces, by the longest sequence that the host expects. The
// lengths themselves are read on the device; splits behind the end of a short sequence find nothing to do and leave.
//
// What it costs: equal pieces serve equal sequences. Where lengths differ, few CTAs have work and many were started for
// nothing; where they are equal, CTAs seldom fill the SMs evenly. The top of the ladder, cuda::decode, cuts what a
// batch has to read into one equal slice per CTA instead, and learns from the lengths, on the device, where each slice
// begins.
#pragma once

#include <cstdint>

#include "kernels/ladder/4_pipelined.cuh"
#include "kernels/ladder/group_tile.cuh"
#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/ptx/global.cuh"

namespace ladder {

/// Where pieces wait for each other. A partial is what the lanes of a warp hold, as they hold it: the warp that merges
/// has the same lanes. Between launches every counter is 0.
struct Scratch {
  View<float, 4, Space::device> out;              // [num_units * max_splits, head_dim / 16, lanes, 4]
  View<OnlineSoftmax, 3, Space::device> softmax;  // [num_units * max_splits, 2, lanes]
  View<unsigned, 1, Space::device> arrivals;      // [num_units], a unit is a KV head of a sequence
};

__device__ inline void store_partial(const Scratch& scratch, std::int64_t partial, const GroupState& state) {
  for (int head = 0; head < 2; ++head) scratch.softmax(partial, head, lane_id()) = state.softmax[head];
  for (int n = 0; n < head_dim / 16; ++n)
    for (int element = 0; element < 4; ++element) scratch.out(partial, n, lane_id(), element) = state.out[n][element];
}

/// Another SM wrote what is read here: past this SM's L1.
__device__ inline GroupState load_partial(const Scratch& scratch, std::int64_t partial) {
  GroupState state;
  for (int head = 0; head < 2; ++head) {
    float pair[2];
    ptx::load_past_l1(pair, &scratch.softmax(partial, head, lane_id()).max);
    state.softmax[head] = {.max = pair[0], .sum = pair[1]};
  }
  for (int n = 0; n < head_dim / 16; ++n) ptx::load_past_l1(state.out[n], scratch.out.at(partial, n, lane_id(), 0));
  return state;
}

__device__ inline void merge(GroupState& state, const GroupState& piece) {
  const OnlineSoftmax::Factors factors[2] = {state.softmax[0].merge(piece.softmax[0]),
                                             state.softmax[1].merge(piece.softmax[1])};
  for (int n = 0; n < head_dim / 16; ++n)
    for (int element = 0; element < 4; ++element)
      state.out[n][element] =
          factors[element % 2].own * state.out[n][element] + factors[element % 2].other * piece.out[n][element];
}

/// All partials of a unit, in the order of the splits.
__device__ inline GroupState merge_partials(const Scratch& scratch, std::int64_t first, int num_splits) {
  constexpr int in_flight = 4;  // partials that are asked for together
  GroupState state;
  for (int i = 0; i < num_splits; i += in_flight) {
    GroupState pieces[in_flight];
#pragma unroll
    for (int j = 0; j < in_flight; ++j)
      if (i + j < num_splits) pieces[j] = load_partial(scratch, first + i + j);
#pragma unroll
    for (const GroupState& piece : pieces) merge(state, piece);  // an empty one changes nothing
  }
  return state;
}

/// True in the last of `num_splits` warps to come, which then sees what the others have stored.
__device__ inline bool is_last(unsigned& arrivals, int num_splits) {
  __syncwarp();  // all lanes have stored
  unsigned count = 0;
  if (lane_id() == 0) {
    __threadfence();  // whoever sees the count sees what this warp has stored, and
    count = atomicInc(&arrivals, static_cast<unsigned>(num_splits - 1));
    __threadfence();  // whoever has seen the count sees what the others have; the last one has set it back to 0
  }
  const bool last = __shfl_sync(all_lanes, count, 0) == static_cast<unsigned>(num_splits - 1);
  __syncwarp();  // what lane 0 sees after its fence, the other lanes see
  return last;
}

template <class Problem>
__global__ void __launch_bounds__(lanes)
    split_kernel(const Problem problem, const AttentionPlan plan, const Scratch scratch) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  const int unit = static_cast<int>(blockIdx.x) / plan.max_splits;
  const int split = static_cast<int>(blockIdx.x) % plan.max_splits;
  const Work work = find_work(problem, unit, problem.kv_heads());
  const WorkItem item = plan.item(work.sequence, split, 1, work.kv_len);
  if (split >= item.num_splits) return;  // the plan allows longer sequences than this one

  // [split]
  GroupState state = attend_keys(*reinterpret_cast<Ring*>(shared_bytes), problem, work, item.keys);
  if (item.num_splits > 1) {
    const std::int64_t first = std::int64_t{unit} * plan.max_splits;
    store_partial(scratch, first + split, state);
    if (!is_last(scratch.arrivals(unit), item.num_splits)) return;
    state = merge_partials(scratch, first, item.num_splits);
  }
  store(problem, work, state);
  // [split]
}

}  // namespace ladder
