// setmaxnreg: a warpgroup gives registers back, or takes what others gave (sm_90a, PTX ISA "setmaxnreg").
#pragma once

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// All warps of the warpgroup; `Count` is a multiple of 8, from 24 to 256, and no more than the threads have now.
template <int Count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

/// The same for more of them; waits until others have given enough.
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
