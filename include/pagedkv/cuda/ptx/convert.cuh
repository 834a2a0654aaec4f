// cvt.rn: two floats into one register of two 16-bit elements (sm_80, PTX ISA "cvt").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// `low` goes to the lower half, which is the first element in memory; rounds to nearest even. T is bf16 or f16.
template <class T>
__device__ std::uint32_t pack(float low, float high);

template <>
__device__ inline std::uint32_t pack<bf16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

template <>
__device__ inline std::uint32_t pack<f16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
