// wgmma: a warpgroup multiplies tiles that lie in shared memory, asynchronously (sm_90a, PTX ISA "wgmma").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

// Between wgmma_fence() and the wait for its group a product owns its registers: nobody may touch them, and hold()
// keeps the compiler from moving what comes behind the wait in front of it, or what comes in front of a wait behind it.

/// What threads have done to registers of the products that follow happens before these.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// The products since the last commit are a group.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most `Groups` of the youngest groups are still under way.
template <int Groups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
}

template <int Registers>
__device__ __forceinline__ void hold(float (&registers)[Registers]) {
#pragma unroll
  for (int i = 0; i < Registers; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

/// Keeps waits that follow behind the computation of `value`, which is never negative: ptxas puts a wait as early as it
/// can, here in front of what was meant to be done meanwhile. A store that never happens depends on the value, and a
/// wait stays behind a store. `shared` is any address in shared memory.
__device__ __forceinline__ void keep_behind(float value, std::uint32_t shared) {
  asm volatile(
      "{\n"
      ".reg .pred never;\n"
      "setp.lt.f32 never, %0, 0f00000000;\n"
      "@never st.volatile.shared.u32 [%1], %1;\n"
      "}" ::"f"(value),
      "r"(shared)
      : "memory");
}

/// D [64, N] = A B + (accumulate ? D : 0) for 16 columns of A [64, 16] and rows of B [16, N], whose descriptors (see
/// tile/descriptor.hpp) are K-major; all 128 threads of a warpgroup. Warp w of it holds rows 16 w to 16 w + 15 of D as
/// C fragments of mma.m16n8k16, eight columns after eight: a thread has N / 2 elements. T is bf16 or f16.
template <class T, int Registers>
__device__ void wgmma_shared(float (&d)[Registers], std::uint64_t a, std::uint64_t b, bool accumulate);

/// The same for A from registers, as mma.m16n8k16 has it in each of the four warps, and for a B that is N-major.
template <class T, int Registers>
__device__ void wgmma_registers(float (&d)[Registers], const std::uint32_t (&a)[4], std::uint64_t b, bool accumulate);

// An asm statement names each register: lists of them, eight at a time.
#define PAGEDKV_FLOATS8(i)                                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define PAGEDKV_FLOATS32(i) PAGEDKV_FLOATS8(i), PAGEDKV_FLOATS8(i + 8), PAGEDKV_FLOATS8(i + 16), PAGEDKV_FLOATS8(i + 24)
#define PAGEDKV_LIST_32 PAGEDKV_FLOATS32(0)
#define PAGEDKV_LIST_40 PAGEDKV_LIST_32, PAGEDKV_FLOATS8(32)
#define PAGEDKV_LIST_48 PAGEDKV_LIST_40, PAGEDKV_FLOATS8(40)
#define PAGEDKV_LIST_56 PAGEDKV_LIST_48, PAGEDKV_FLOATS8(48)
#define PAGEDKV_LIST_64 PAGEDKV_LIST_32, PAGEDKV_FLOATS32(32)
#define PAGEDKV_LIST_88 PAGEDKV_LIST_64, PAGEDKV_FLOATS8(64), PAGEDKV_FLOATS8(72), PAGEDKV_FLOATS8(80)
#define PAGEDKV_LIST_96 PAGEDKV_LIST_88, PAGEDKV_FLOATS8(88)
#define PAGEDKV_LIST_128 PAGEDKV_LIST_96, PAGEDKV_FLOATS32(96)

#define PAGEDKV_NAMES32                                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define PAGEDKV_NAMES40 PAGEDKV_NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define PAGEDKV_NAMES48 PAGEDKV_NAMES40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define PAGEDKV_NAMES56 PAGEDKV_NAMES48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define PAGEDKV_NAMES64 PAGEDKV_NAMES56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define PAGEDKV_NAMES88                                                                              \
  PAGEDKV_NAMES64                                                                                    \
      ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
      "%82, %83, %84, %85, %86, %87"
#define PAGEDKV_NAMES96 PAGEDKV_NAMES88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define PAGEDKV_NAMES128                                                                               \
  PAGEDKV_NAMES96                                                                                      \
      ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// The last two operands of the first form are 1 (not negated) and 0 (K-major), those of the second 1 and 1 (N-major).
#define PAGEDKV_WGMMA(T, TYPE, N, REGISTERS, I0, I1, I2, I3, I4, I5)                                                 \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_shared<T, REGISTERS>(float(&d)[REGISTERS], std::uint64_t a, std::uint64_t b, \
                                                             bool accumulate) {                                      \
    asm volatile(                                                                                                    \
        "{\n"                                                                                                        \
        ".reg .pred accumulate;\n"                                                                                   \
        "setp.ne.b32 accumulate, %" #I2                                                                              \
        ", 0;\n"                                                                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PAGEDKV_NAMES##REGISTERS                \
        "}, %" #I0 ", %" #I1                                                                                         \
        ", accumulate, 1, 1, 0, 0;\n"                                                                                \
        "}"                                                                                                          \
        : PAGEDKV_LIST_##REGISTERS                                                                                   \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate))                                                          \
        : "memory");                                                                                                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_registers<T, REGISTERS>(float(&d)[REGISTERS], const std::uint32_t(&a)[4],    \
                                                                std::uint64_t b, bool accumulate) {                  \
    asm volatile(                                                                                                    \
        "{\n"                                                                                                        \
        ".reg .pred accumulate;\n"                                                                                   \
        "setp.ne.b32 accumulate, %" #I5                                                                              \
        ", 0;\n"                                                                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PAGEDKV_NAMES##REGISTERS                \
        "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4                                                         \
        ", accumulate, 1, 1, 1;\n"                                                                                   \
        "}"                                                                                                          \
        : PAGEDKV_LIST_##REGISTERS                                                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate))                      \
        : "memory");                                                                                                 \
  }
#define PAGEDKV_WGMMA_SIZES(T, TYPE)                        \
  PAGEDKV_WGMMA(T, TYPE, 64, 32, 32, 33, 34, 35, 36, 37)    \
  PAGEDKV_WGMMA(T, TYPE, 80, 40, 40, 41, 42, 43, 44, 45)    \
  PAGEDKV_WGMMA(T, TYPE, 96, 48, 48, 49, 50, 51, 52, 53)    \
  PAGEDKV_WGMMA(T, TYPE, 112, 56, 56, 57, 58, 59, 60, 61)   \
  PAGEDKV_WGMMA(T, TYPE, 128, 64, 64, 65, 66, 67, 68, 69)   \
  PAGEDKV_WGMMA(T, TYPE, 176, 88, 88, 89, 90, 91, 92, 93)   \
  PAGEDKV_WGMMA(T, TYPE, 192, 96, 96, 97, 98, 99, 100, 101) \
  PAGEDKV_WGMMA(T, TYPE, 256, 128, 128, 129, 130, 131, 132, 133)

PAGEDKV_WGMMA_SIZES(bf16, "bf16")
PAGEDKV_WGMMA_SIZES(f16, "f16")

#undef PAGEDKV_WGMMA_SIZES
#undef PAGEDKV_WGMMA
#undef PAGEDKV_LIST_32
#undef PAGEDKV_LIST_40
#undef PAGEDKV_LIST_48
#undef PAGEDKV_LIST_56
#undef PAGEDKV_LIST_64
#undef PAGEDKV_LIST_88
#undef PAGEDKV_LIST_96
#undef PAGEDKV_LIST_128
#undef PAGEDKV_NAMES32
#undef PAGEDKV_NAMES40
#undef PAGEDKV_NAMES48
#undef PAGEDKV_NAMES56
#undef PAGEDKV_NAMES64
#undef PAGEDKV_NAMES88
#undef PAGEDKV_NAMES96
#undef PAGEDKV_NAMES128
#undef PAGEDKV_FLOATS8
#undef PAGEDKV_FLOATS32

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
