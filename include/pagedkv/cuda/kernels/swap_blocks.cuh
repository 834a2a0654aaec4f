// Swaps: blocks of one pool to blocks of another, K and V of all layers; one of the two may lie in host memory.
//
//   grid    a few CTAs, which take tiles in turns: they fill the bus, and leave the other SMs to those who compute
//   CTA     a tile of a pair's pieces, in the order [num_layers, pieces of a block's K, then of its V]
//
// The pairs come with the launch: there is nothing to upload and nothing that must outlive the call. Bytes: those of
// the blocks, each over the bus once; what a warp moves together is whole packets of it.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/storage/block_swap.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// What one launch swaps: 2 KiB of the 4 that a kernel's parameters may have on every GPU.
struct SwapList {
  static constexpr int max_pairs = 256;

  BlockPair pairs[max_pairs];
  int size = 0;
};

/// A pair's pieces, of all layers, and the tiles that they fill.
struct SwapShape {
  Divisor layer_pieces;  // K and V of a block in one layer
  int num_pieces;
  int num_tiles;
};

/// Layers whose blocks are rows (blocks_as_rows) of pieces. Throws InvalidArgument where a block has too many.
template <class P>
SwapShape make_swap_shape(const KvLayers<P, Space::device>& layers, int tile_pieces) {
  const std::int64_t layer_pieces = layers.first.k.extents[3] + layers.first.v.extents[3];
  const std::int64_t num_pieces = layer_pieces * layers.num_layers;
  constexpr std::int64_t max_pieces = 2'000'000'000;  // the kernel counts them, to the end of a tile, in 31 bits
  require(num_pieces <= max_pieces, "swap_blocks: pieces of a block in all layers, at most", max_pieces, num_pieces);
  return {.layer_pieces = Divisor(static_cast<int>(layer_pieces)),
          .num_pieces = static_cast<int>(num_pieces),
          .num_tiles = static_cast<int>(ceil_div<std::int64_t>(num_pieces, tile_pieces))};
}

template <class Config>
__global__ void __launch_bounds__(Config::threads)
    block_swap_kernel(const __grid_constant__ SwapList list,
                      const KvLayers<typename Config::From, Space::device> source,
                      const KvLayers<typename Config::To, Space::device> destination, const SwapShape shape) {
  using P = typename Config::To;
  const int num_tiles = list.size * shape.num_tiles;
  const int k_pieces = static_cast<int>(source.first.k.extents[3]);
  for (int tile = static_cast<int>(blockIdx.x); tile < num_tiles; tile += static_cast<int>(gridDim.x)) {
    const BlockPair pair = list.pairs[tile / shape.num_tiles];
    const P* const from_k = source.first.k.at(to_index(pair.source), 0, 0, 0);
    const P* const from_v = source.first.v.at(to_index(pair.source), 0, 0, 0);
    P* const to_k = destination.first.k.at(to_index(pair.destination), 0, 0, 0);
    P* const to_v = destination.first.v.at(to_index(pair.destination), 0, 0, 0);
    const auto nothing = [](int) { return 0; };
    const auto locate = [&](int i, int, const P*& from, P*& to) {
      const int layer = shape.layer_pieces.quotient(i), piece = shape.layer_pieces.remainder(i);
      const bool is_key = piece < k_pieces;
      const int in_run = is_key ? piece : piece - k_pieces;
      from = (is_key ? from_k : from_v) + layer * source.layer_stride + in_run;
      to = (is_key ? to_k : to_v) + layer * destination.layer_stride + in_run;
    };
    const int first_piece = tile % shape.num_tiles * Config::tile_pieces;
    const auto moves = detail::locate_tile<Config>(first_piece, shape.num_pieces, nothing, locate);
    detail::move_tile<Config>(moves);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
