// mma.sync.m16n8k16: a warp multiplies 16x16 by 16x8 16-bit elements and adds in fp32 (sm_80, PTX ISA "mma").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// c += a * b; which lane holds which element: cuda/tile/fragment.hpp. All lanes of the warp must call it. T is bf16 or
/// f16.
template <class T>
__device__ void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <>
__device__ inline void mma_m16n8k16<bf16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                          std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma_m16n8k16<f16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
