// stmatrix: four 8x8 tiles of 16-bit elements from registers to shared memory (sm_90, PTX ISA "stmatrix").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Lane l points at row l % 8 of tile l / 8, eight elements from a multiple of 16 bytes; register r is tile r as a C fragment
/// of mma.m16n8k16 has it.
__device__ inline void stmatrix_x4(void* row, const std::uint32_t (&registers)[4]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(registers[0]),
               "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
               : "memory");
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
