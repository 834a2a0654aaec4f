// Copy-on-write on the GPU: the valid rows of every copied block, in all layers, K and V, in one launch.
//
//   grid    x: copy,  y: 2 * tile of the block + (0 for K, 1 for V),  z: group of layers
//   CTA     one tile of [kv_heads, num_rows, pieces of a row], the same in every layer of its group: addresses are
//           worked out once. CTAs of dead copies end after one load
//
// Bytes: twice those of the valid rows, and 12 for each CTA.
#pragma once

#include <cstdint>

#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// How copies are cut into CTAs.
struct CopyGrid {
  std::int64_t num_copies;
  std::int64_t num_tiles;  // of the larger of a block's K and V
  int layers_per_cta;
  int num_groups;  // of layers
};

/// One layer for each CTA, until that makes more than policy.max_ctas of them: most may belong to dead copies.
template <class P>
constexpr CopyGrid make_copy_grid(std::int64_t num_copies, const KvLayers<P, Space::device>& pieces,
                                  const MovePolicy& policy) {
  const std::int64_t row = max(pieces.first.k.extents[3], pieces.first.v.extents[3]);
  const std::int64_t block_pieces = pieces.first.k.extents[1] * pieces.first.k.extents[2] * row;
  const std::int64_t num_tiles = ceil_div<std::int64_t>(block_pieces, policy.threads * policy.pieces_per_thread);
  const std::int64_t groups = clamp<std::int64_t>(policy.max_ctas / (2 * num_tiles * num_copies), 1, pieces.num_layers);
  const int layers_per_cta = static_cast<int>(ceil_div<std::int64_t>(pieces.num_layers, groups));
  return {.num_copies = num_copies,
          .num_tiles = num_tiles,
          .layers_per_cta = layers_per_cta,
          .num_groups = ceil_div(pieces.num_layers, layers_per_cta)};
}

template <class Config>
__global__ void __launch_bounds__(Config::threads)
    block_copy_kernel(const View<const BlockCopy, 1, Space::device> copies,
                      const KvLayers<typename Config::To, Space::device> layers, const PieceShape shape,
                      const int layers_per_cta) {
  using P = typename Config::To;
  ptx::launch_dependents();
  const BlockCopy copy = copies(blockIdx.x);
  const bool is_key = blockIdx.y % 2 == 0;
  const auto blocks = detail::pick(is_key, layers.first.k, layers.first.v);  // [.., kv_heads, block_size, pieces]
  const Divisor row_pieces = is_key ? shape.k_row : shape.v_row;
  PAGEDKV_ASSERT(copy.num_rows <= blocks.extents[2]);
  const int num_rows = max(copy.num_rows, 0), first_piece = static_cast<int>(blockIdx.y / 2) * Config::tile_pieces;
  const int num_pieces = static_cast<int>(blocks.extents[1] * blocks.extents[3]) * num_rows;
  if (first_piece >= num_pieces) {
    ptx::wait_for_previous_kernel();
    return;
  }
  const int first_layer = static_cast<int>(blockIdx.z) * layers_per_cta;
  const int num_layers = min(layers_per_cta, layers.num_layers - first_layer);
  const P* const source = blocks.at(to_index(copy.source), 0, 0, 0) + first_layer * layers.layer_stride;
  P* const destination = blocks.at(to_index(copy.destination), 0, 0, 0) + first_layer * layers.layer_stride;

  const auto nothing = [](int) { return 0; };
  const auto locate = [&](int i, int, const P*& from, P*& to) {
    const auto row = static_cast<unsigned>(row_pieces.quotient(i)), head = row / static_cast<unsigned>(num_rows);
    const unsigned slot = row - head * static_cast<unsigned>(num_rows);
    const std::int64_t offset = head * blocks.strides[1] + slot * blocks.strides[2] + row_pieces.remainder(i);
    from = source + offset;
    to = destination + offset;
  };
  const auto moves = detail::locate_tile<Config>(first_piece, num_pieces, nothing, locate);
  ptx::wait_for_previous_kernel();
  for (int layer = 0; layer < num_layers; ++layer) detail::move_tile<Config>(moves, layer * layers.layer_stride);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
