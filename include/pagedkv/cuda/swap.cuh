// swap_blocks: blocks out of device memory into pinned host memory, or back, while the GPU goes on computing.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/kernels/swap_blocks.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/storage/block_swap.hpp"
#include "pagedkv/storage/kv_view.hpp"
#include "pagedkv/storage/pieces.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// The address of pinned host memory on the other side of the bus. Pageable memory has none.
template <class T>
T* mapped_address(T* data) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data), "swap_blocks");
  require(attributes.type != cudaMemoryTypeUnregistered, "swap_blocks: host memory", "pinned", "pageable");
  require(attributes.devicePointer != nullptr, "swap_blocks: host memory", "mapped for this device", "not mapped");
  return static_cast<T*>(attributes.devicePointer);
}

/// The same layers as the GPU addresses them.
template <class T, Space S>
KvLayers<T, Space::device> on_device(const KvLayers<T, S>& layers) {
  const auto seen = [](const View<T, 4, S>& blocks) {
    View<T, 4, Space::device> view{.data = blocks.data};
    if constexpr (S == Space::host) view.data = mapped_address(blocks.data);
    std::copy_n(blocks.extents, 4, view.extents);
    std::copy_n(blocks.strides, 4, view.strides);
    return view;
  };
  return {.first = {.k = seen(layers.first.k), .v = seen(layers.first.v)},
          .num_layers = layers.num_layers,
          .layer_stride = layers.layer_stride};
}

/// Layers whose blocks are rows.
template <class P, MovePolicy Policy = choose_swap(), class T>
void launch_block_swap(std::span<const BlockPair> pairs, const KvLayers<T, Space::device>& source,
                       const KvLayers<T, Space::device>& destination, cudaStream_t stream) {
  using Config = MoveConfig<P, P, Policy>;
  const KvLayers<P, Space::device> from = in_pieces<P>(source), to = in_pieces<P>(destination);
  const SwapShape shape = make_swap_shape(from, Config::tile_pieces);
  for (std::size_t first = 0; first < pairs.size(); first += SwapList::max_pairs) {
    SwapList list;
    list.size = static_cast<int>(min<std::size_t>(pairs.size() - first, SwapList::max_pairs));
    std::copy_n(pairs.begin() + static_cast<std::ptrdiff_t>(first), list.size, list.pairs);
    const LaunchShape grid{.grid = dim3(static_cast<unsigned>(min(Policy.max_ctas, list.size * shape.num_tiles))),
                           .threads = Config::threads};
    launch(block_swap_kernel<Config>, grid, Launch::after_previous, stream, "swap_blocks: launch", list, from, to,
           shape);
  }
}

}  // namespace detail

/// Copies each pair's block from pool to pool, all layers, K and V, byte for byte. Destinations are distinct, and in
/// two views of one pool no block is both source and destination. The blocks of both pools have one order and no
/// gaps. Enqueues a kernel for each 256 pairs, which reads and writes host memory by itself, on at most 32 SMs
/// (choose_swap()): other streams compute beside it. The pairs are read before this returns; a capture keeps them,
/// and a replay copies what the blocks hold then. 16 bytes at a time where pointers and strides allow, else an
/// element, which is slow on a bus. Sources are read and destinations written in the order of the stream: give
/// neither to others before that. Throws InvalidArgument, before anything is enqueued, where pools differ, an id is
/// no block's, or host memory is not pinned (see PinnedKvPool).
template <StorageType T, Space From, Space To>
requires(From == Space::device ||
         To == Space::device) void swap_blocks(std::span<const BlockPair> pairs, const KvLayers<T, From>& source,
                                               const KvLayers<T, To>& destination, cudaStream_t stream) {
  validate_swap(pairs, source, destination);
  if (pairs.empty() || source.num_layers == 0) return;
  const auto from = detail::on_device(blocks_as_rows(source)), to = detail::on_device(blocks_as_rows(destination));
  constexpr int count = 16 / sizeof(T);
  if (consists_of(from, count) && consists_of(to, count))
    detail::launch_block_swap<Piece<16>>(pairs, from, to, stream);
  else
    detail::launch_block_swap<Piece<sizeof(T)>>(pairs, from, to, stream);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
