// Partials: where the pieces of a row wait for each other when several CTAs share its keys, and who joins them.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/ptx/global.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Scratch memory in fp32; lives in L2 as long as it is small. Between calls every counter is 0.
struct Partials {
  View<float, 2, Space::device> outputs;          // [capacity, head_dim_v], unnormalised
  View<OnlineSoftmax, 1, Space::device> softmax;  // [capacity]
  View<unsigned, 1, Space::device> arrivals;      // [capacity], CTAs that have done their share of a group of rows

  PAGEDKV_HD std::int64_t capacity() const { return softmax.extents[0]; }
};

/// Partials that tell by themselves whether they are there: between calls, and until its piece is posted, every word is
/// `absent`. Whoever needs a piece asks for it again and again, and so waits neither for a fence nor for a counter
/// behind it (as NCCL's low-latency protocol does, with flags of its own beside the data).
struct AwaitedPartials {
  static constexpr int at_once = 8;           // tiles that are looked at together, even behind the last one in use
  static constexpr int slack = at_once * 16;  // rows behind the capacity that may so be read

  View<float, 1, Space::device> outputs;          // [capacity * head_dim_v], unnormalised: dense rows of the call's own
  View<OnlineSoftmax, 1, Space::device> softmax;  // [capacity]

  PAGEDKV_HD std::int64_t capacity() const { return softmax.extents[0]; }
};

/// A NaN that arithmetic never makes: it makes 0x7fffffff (PTX ISA "floating point", NaN payloads).
inline constexpr std::uint32_t absent = ~std::uint32_t{0};

/// Called by all threads of a CTA when its partials are written: true in the last of `num_ctas` CTAs to come, which
/// then sees the partials of the others. The counter is back at 0 for the next launch. `is_last` is in shared memory.
__device__ inline bool is_last_to_arrive(unsigned& arrivals, int num_ctas, bool& is_last) {
  __syncthreads();  // all of this CTA's partials are written
  if (threadIdx.x == 0) {
    const auto last = static_cast<unsigned>(num_ctas - 1);
    is_last = ptx::increment_wrapping(arrivals, last) == last;
  }
  __syncthreads();
  return is_last;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
