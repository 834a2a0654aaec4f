// Global memory that the CTAs of one launch share: loads past this SM's L1 (PTX ISA "cache operators"), a counter that
// orders what was written before it (PTX ISA "atom"), and words that need no order, since each tells by itself whether it
// is there (PTX ISA "memory consistency model", relaxed).
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

/// Two floats, each seen whole or not yet by poll(). The address is a multiple of 8.
__device__ inline void post(float* address, const float (&x)[2]) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(x[0]), "f"(x[1]) : "memory");
}

/// Four floats. The address is a multiple of 16.
__device__ inline void post(float* address, const float (&x)[4]) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x[0]), "f"(x[1]), "f"(x[2]),
               "f"(x[3])
               : "memory");
}

/// What is there now, of what other CTAs post().
__device__ inline void poll(float (&x)[2], const float* address) {
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(x[0]), "=f"(x[1]) : "l"(address) : "memory");
}
__device__ inline void poll(float (&x)[4], const float* address) {
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
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
