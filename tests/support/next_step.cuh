// What stands for the rest of a layer in chains of steps: the next inputs, made of all bits of the last output.
#pragma once

#include <cstdint>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv_test {

template <class T>
using DeviceArrayView = pagedkv::View<T, 1, pagedkv::Space::device>;

/// The finaliser of SplitMix64: any bit changes all.
__device__ inline std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// A number that depends on the step and on every bit of `out`; all threads of one CTA.
__device__ inline std::uint64_t state_of(const DeviceArrayView<const pagedkv::bf16>& out, std::uint64_t step) {
  __shared__ unsigned long long sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < out.extents[0]; i += blockDim.x)
    atomicAdd(&sum, static_cast<unsigned long long>(mixed(static_cast<std::uint64_t>(i) << 16 | out(i).bits)));
  __syncthreads();
  return mixed(sum + step);
}

/// Numbers in (-bound, bound); arrays with different salts get different ones.
__device__ inline void fill_by_state(const DeviceArrayView<pagedkv::bf16>& array, std::uint64_t state,
                                     std::uint64_t salt, float bound) {
  for (std::int64_t i = threadIdx.x; i < array.extents[0]; i += blockDim.x) {
    const auto bits = static_cast<float>(mixed(state + salt + static_cast<std::uint64_t>(i)) >> 40);
    array(i) = pagedkv::from_float<pagedkv::bf16>(bound * (bits * 0x1p-23f - 1.f));
  }
}

}  // namespace pagedkv_test
