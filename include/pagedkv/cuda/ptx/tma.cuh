// TMA: one thread lets the hardware copy a box of a tensor into shared memory (sm_90, PTX ISA "cp.async.bulk.tensor").
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/cuda/ptx/mbarrier.cuh"

namespace pagedkv {
inline namespace v0 {
namespace ptx {

/// Describes a tensor in global memory and the box that one copy takes out of it: the bits that the driver encodes
/// (CUtensorMap). Reaches a kernel as a `const __grid_constant__` parameter.
struct alignas(64) TensorMap {
  std::uint64_t bits[16];
};

#if defined(__CUDACC__)  // elsewhere the tests' warp emulator speaks these words

/// Fetches the map itself ahead of the first copy.
__device__ inline void prefetch_tensormap(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// A policy for copies: what they bring into L2 goes first when room is needed.
__device__ inline std::uint64_t l2_evict_first() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// Starts copying the box at the given coordinates, innermost axis first, and goes on. What lies outside the tensor
/// arrives as zeros, so that all bytes of the box are reported to `barrier` whatever the coordinates. `shared` is a multiple
/// of 128, of 8 rows of a box where the map permutes.
__device__ inline void cp_async_bulk_tensor_5d(void* shared, const TensorMap& map, const int (&at)[5],
                                               Mbarrier& barrier, std::uint64_t l2_policy) {
  const auto destination = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const auto counter = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile(  // a CTA alone is a cluster: shared::cluster is its own shared memory
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(destination),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(counter), "l"(l2_policy)
      : "memory");
}

/// The same, for what will be read again: L2 keeps it as it keeps everything.
__device__ inline void cp_async_bulk_tensor_5d(void* shared, const TensorMap& map, const int (&at)[5],
                                               Mbarrier& barrier) {
  const auto destination = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const auto counter = static_cast<std::uint32_t>(__cvta_generic_to_shared(&barrier));
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(destination),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(counter)
      : "memory");
}

/// Starts copying a box from shared memory to the given coordinates, and goes on. All of it must lie in the tensor. What
/// threads have written to shared memory goes along where fence_proxy_async() and a barrier are in between.
__device__ inline void cp_async_bulk_tensor_5d_store(const TensorMap& map, const int (&at)[5], const void* shared) {
  const auto source = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4, %5}], [%6];" ::"l"(&map),
               "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(source)
               : "memory");
}

/// The stores that this thread has started since the last commit are a group.
__device__ inline void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Waits until the stores of all this thread's groups have read shared memory, which may then be written again.
__device__ inline void bulk_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

/// Waits until they have been written, which must be before the thread ends.
__device__ inline void bulk_store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// What this thread has read from or written to shared memory before happens before the copies it starts afterwards.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
