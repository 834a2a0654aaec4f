// ldmatrix: four 8x8 matrices of 16-bit elements from shared memory into a warp's registers (PTX ISA "ldmatrix").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Lane l points at row l % 8 of matrix l / 8: 8 elements, 16-byte aligned. Register m receives, of matrix m, elements
/// 2 * (lane % 4) and the next of row lane / 4. All lanes of the warp must call it.
__device__ inline void ldmatrix_x4(std::uint32_t (&registers)[4], const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

/// The same with every matrix transposed on its way.
__device__ inline void ldmatrix_x4_transposed(std::uint32_t (&registers)[4], const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
