// swap_blocks: blocks out of device memory into pinned host memory, or back, while the GPU goes on computing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/storage/block_swap.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// A copy from or to pageable memory would make the host wait.
inline void require_pinned(const void* data) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data), "swap_blocks");
  require(attributes.type != cudaMemoryTypeUnregistered, "swap_blocks: host memory", "pinned", "pageable");
}

}  // namespace detail

/// Copies each pair's block from pool to pool, all layers, K and V, byte for byte. Destinations are distinct, and in
/// two views of one pool no block is both source and destination. The blocks of both pools have one order and no gaps.
/// Pairs that follow each other on both sides go together: bring them in order. Enqueues a copy for each such run, for
/// the copy engines, which leave the SMs alone; none of it waits. Sources are read and destinations written in the
/// order of the stream: give neither to others before that. Throws InvalidArgument, before anything is enqueued, where
/// pools differ, an id is no block's, or host memory is not pinned (see PinnedKvPool).
template <StorageType T, Space From, Space To>
requires(From == Space::device ||
         To == Space::device) void swap_blocks(std::span<const BlockPair> pairs, const KvLayers<T, From>& source,
                                               const KvLayers<T, To>& destination, cudaStream_t stream) {
  validate_swap(pairs, source, destination);
  if (pairs.empty() || source.num_layers == 0) return;
  if constexpr (From == Space::host) detail::require_pinned(source.first.k.data);
  if constexpr (To == Space::host) detail::require_pinned(destination.first.k.data);
  constexpr cudaMemcpyKind kind = From == Space::host ? cudaMemcpyHostToDevice
                                  : To == Space::host ? cudaMemcpyDeviceToHost
                                                      : cudaMemcpyDeviceToDevice;
  int device = 0, max_pitch = 0;
  check(cudaGetDevice(&device), "swap_blocks");
  check(cudaDeviceGetAttribute(&max_pitch, cudaDevAttrMaxPitch, device), "swap_blocks");
  for_each_copy(pairs, source, destination, static_cast<std::size_t>(max_pitch), [&](const StridedCopy& copy) {
    check(cudaMemcpy2DAsync(copy.destination, copy.destination_pitch, copy.source, copy.source_pitch, copy.width_bytes,
                            copy.height, kind, stream),
          "swap_blocks");
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
