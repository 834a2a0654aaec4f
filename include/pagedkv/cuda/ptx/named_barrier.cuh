// bar: barriers for a part of a CTA's warps, by number (PTX ISA "bar").
#pragma once

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Waits until `threads` threads, whole warps, have come to barrier `number` (1 to 15; 0 is __syncthreads'), those that
/// only arrived among them.
__device__ __forceinline__ void barrier_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/// Comes to the barrier and goes on.
__device__ __forceinline__ void barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
