// movmatrix: transposes an 8x8 matrix of 16-bit elements that lies in a warp's registers (PTX ISA "movmatrix", sm_75).
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Lane l brings elements 2 * (l % 4) and the next of row l / 4 and gets those of column l / 4. All lanes of the warp
/// must call it.
__device__ inline std::uint32_t movmatrix_transposed(std::uint32_t pair) {
  std::uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
