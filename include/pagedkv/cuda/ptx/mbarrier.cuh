// mbarrier: a barrier in shared memory that counts threads and the bytes of copies (sm_90, PTX ISA "mbarrier").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Lives in shared memory. Its phases follow each other: one ends when all expected arrivals have come and all expected
/// bytes have landed, and the next begins at once. Phase n (from 0 on) has parity n % 2. Not for anything else afterwards:
/// neither copied, nor its memory used again.
struct alignas(8) Mbarrier {
  std::uint64_t state;
};

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words

/// Opens phase 0, in which, as in every later one, `arrivals` arrivals are expected; one thread.
__device__ inline void mbarrier_init(Mbarrier& barrier, unsigned arrivals) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}

/// By the thread that has called mbarrier_init, before copies may use the barrier. Other threads see it after a barrier of
/// the usual kind.
__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// One arrival. What this thread has done before is seen by whoever waits for the phase.
__device__ inline void mbarrier_arrive(Mbarrier& barrier) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}

/// Lets the phase expect `bytes` more (below 2^20 in all), which copies will report, then arrives.
__device__ inline void mbarrier_arrive_expect_tx(Mbarrier& barrier, unsigned bytes) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}

/// Has the phase of this parity ended? The hardware may let the thread sleep a while before it says no. True for the
/// phase before the open one: who waits may be one phase late, not two. After a true the copied bytes can be read.
__device__ inline bool mbarrier_try_wait(Mbarrier& barrier, unsigned parity) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  std::uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(address), "r"(parity)
      : "memory");
  return ended != 0;
}

/// Waits until the phase of this parity has ended; for ever, if an arrival or a byte never comes.
__device__ inline void mbarrier_wait(Mbarrier& barrier, unsigned parity) {
  while (!mbarrier_try_wait(barrier, parity)) continue;
}

#endif

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
