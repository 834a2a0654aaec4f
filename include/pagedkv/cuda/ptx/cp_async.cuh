// cp.async: 16 bytes from global to shared memory while the thread goes on (sm_80, PTX ISA "cp.async").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words
namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Starts copying 16 bytes; both addresses are multiples of 16. Where `live` is false, writes zeros and reads nothing.
/// Bypasses L1: a tile is read once per CTA.
__device__ inline void cp_async_16(void* shared, const void* global, bool live) {
  const auto destination = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int source_bytes = live ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(global), "r"(source_bytes)
               : "memory");
}

/// Closes the group of copies this thread has started since the last one; it may be empty.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `Pending` of this thread's newest groups are under way. Other threads see the bytes after a
/// barrier.
template <int Pending>
__device__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
#endif
