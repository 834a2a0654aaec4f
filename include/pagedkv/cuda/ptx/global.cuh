// Global memory that the CTAs of one launch share: loads past this SM's L1 (PTX ISA "cache operators") and a counter that
// orders what was written before it (PTX ISA "atom").
#pragma once

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Two floats from an address that is a multiple of 8.
__device__ inline void load_past_l1(float (&x)[2], const float* address) {
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "l"(address) : "memory");
}

/// Four floats from an address that is a multiple of 16.
__device__ inline void load_past_l1(float (&x)[4], const float* address) {
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(address)
               : "memory");
}

/// Adds 1 and returns what was there; from `last` the counter goes back to 0. All that this thread has seen is seen by
/// whoever finds the counter raised.
__device__ inline unsigned increment_wrapping(unsigned& counter, unsigned last) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(&counter), "r"(last) : "memory");
  return old;
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
