// Copy-on-write on the GPU: the valid rows of every copied block, in all layers, K and V, in one launch.
//
//   grid  x: copy,  y: 2 * layer + (0 for K, 1 for V)
//   CTA   walks over [kv_heads, num_rows, pieces of a row]; a piece is 16 bytes where everything is aligned, else an
//         element
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Can rows of `view`, and of views `layer_stride` elements behind it, be moved as whole Pieces?
template <class Piece, class T>
bool consists_of(const View<T, 4, Space::device>& view, std::int64_t layer_stride) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Piece) / sizeof(T));
  return reinterpret_cast<std::uintptr_t>(view.data) % sizeof(Piece) == 0 && view.extents[3] % size == 0 &&
         view.strides[0] % size == 0 && view.strides[1] % size == 0 && view.strides[2] % size == 0 &&
         layer_stride % size == 0;
}

/// The same bytes as rows of Pieces.
template <class Piece, class T>
View<Piece, 4, Space::device> in_pieces(const View<T, 4, Space::device>& view) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Piece) / sizeof(T));
  View<Piece, 4, Space::device> pieces{.data = reinterpret_cast<Piece*>(view.data)};
  for (int d = 0; d < 4; ++d) {
    pieces.extents[d] = d == 3 ? view.extents[d] / size : view.extents[d];
    pieces.strides[d] = d == 3 ? 1 : view.strides[d] / size;
  }
  return pieces;
}

}  // namespace detail

template <class Piece>
__global__ void block_copy_kernel(const View<const BlockCopy, 1, Space::device> copies,
                                  const KvLayers<Piece, Space::device> layers) {
  const BlockCopy copy = copies(blockIdx.x);
  const KvView<Piece, Space::device> layer = layers.layer(static_cast<int>(blockIdx.y / 2));
  const View<Piece, 4, Space::device>& blocks = blockIdx.y % 2 == 0 ? layer.k : layer.v;
  const std::int64_t row_pieces = blocks.extents[3];
  const std::int64_t num_pieces = blocks.extents[1] * copy.num_rows * row_pieces;
  PAGEDKV_ASSERT(copy.num_rows <= layer.block_size());
  for (std::int64_t i = threadIdx.x; i < num_pieces; i += blockDim.x) {
    const std::int64_t piece = i % row_pieces, slot = i / row_pieces % copy.num_rows;
    const std::int64_t head = i / row_pieces / copy.num_rows;
    blocks(to_index(copy.destination), head, slot, piece) = blocks(to_index(copy.source), head, slot, piece);
  }
}

/// Enqueues one launch for all layers.
template <class Piece, class T>
void launch_block_copies(const View<const BlockCopy, 1, Space::device>& copies,
                         const KvLayers<T, Space::device>& layers, cudaStream_t stream) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Piece) / sizeof(T));
  const KvLayers<Piece, Space::device> pieces{
      .first = {.k = detail::in_pieces<Piece>(layers.first.k), .v = detail::in_pieces<Piece>(layers.first.v)},
      .num_layers = layers.num_layers,
      .layer_stride = layers.layer_stride / size};
  const dim3 grid(static_cast<unsigned>(copies.extents[0]), static_cast<unsigned>(2 * layers.num_layers));
  block_copy_kernel<<<grid, 128, 0, stream>>>(copies, pieces);
  check(cudaGetLastError(), "copy_blocks: launch");
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
