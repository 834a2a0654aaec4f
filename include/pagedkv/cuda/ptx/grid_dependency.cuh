// griddepcontrol: a kernel that starts before the one in front of it has ended (sm_90, PTX ISA "griddepcontrol").
#pragma once

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Lets the next kernel of the stream start as soon as every CTA of this one has come here or ended, if it was launched
/// with Launch::overlap_previous. It promises nothing about memory.
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the kernel in front has ended and all it wrote can be seen; so has, if that one waited too, everything
/// before it. At once in a kernel that was launched without overlap.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
