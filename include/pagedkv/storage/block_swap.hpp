// What a swap moves: pairs of blocks of two pools whose blocks are alike, each block's K, and its V, one run of bytes.
#pragma once

#include <cstdint>
#include <span>

#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// Block `source` of one pool goes to block `destination` of another.
struct BlockPair {
  BlockId source;
  BlockId destination;
};

namespace detail {

/// Is a block one run of elements, heads outside slots or slots outside heads?
template <class T, Space S>
constexpr bool is_dense_block(const View<T, 4, S>& blocks) {
  const std::int64_t heads = blocks.extents[1], slots = blocks.extents[2], dim = blocks.extents[3];
  const bool hnd = blocks.strides[2] == dim && (heads == 1 || blocks.strides[1] == slots * dim);
  const bool nhd = blocks.strides[1] == dim && (slots == 1 || blocks.strides[2] == heads * dim);
  return hnd || nhd;
}

template <class T, class U, Space S, Space D>
void require_same_blocks(const char* what, const View<T, 4, S>& source, const View<U, 4, D>& destination) {
  for (int d = 1; d < 4; ++d) {
    require(source.extents[d] == destination.extents[d], what, source.extents[d], destination.extents[d]);
    require(source.strides[d] == destination.strides[d] || source.extents[d] == 1, what, source.strides[d],
            destination.strides[d]);
  }
  require(is_dense_block(source), what, "without gaps", "with gaps");
}

}  // namespace detail

/// Throws InvalidArgument unless blocks of `source` can become blocks of `destination`, byte for byte: the same layers,
/// and each block's K, and its V, one run of bytes of the same order and shape in both; and unless every id is a
/// block's.
template <class T, class U, Space S, Space D>
void validate_swap(std::span<const BlockPair> pairs, const KvLayers<T, S>& source, const KvLayers<U, D>& destination) {
  source.first.validate();
  destination.first.validate();
  require(source.num_layers == destination.num_layers, "swap_blocks: layers of both pools", source.num_layers,
          destination.num_layers);
  detail::require_same_blocks("swap_blocks: K of a block in both pools", source.first.k, destination.first.k);
  detail::require_same_blocks("swap_blocks: V of a block in both pools", source.first.v, destination.first.v);
  const auto require_block = [](const char* what, BlockId id, std::int64_t num_blocks) {
    require(to_index(id) >= 0 && to_index(id) < num_blocks, what, num_blocks, to_index(id));
  };
  for (const BlockPair& pair : pairs) {
    require_block("swap_blocks: source block below", pair.source, source.first.num_blocks());
    require_block("swap_blocks: destination block below", pair.destination, destination.first.num_blocks());
  }
}

/// The same bytes as blocks of one head and one slot: a block's K, and its V, is a single long row. For layers that
/// validate_swap has let pass.
template <class T, Space S>
constexpr KvLayers<T, S> blocks_as_rows(const KvLayers<T, S>& layers) {
  const auto as_rows = [](View<T, 4, S> blocks) {
    blocks.extents[3] *= blocks.extents[1] * blocks.extents[2];
    blocks.extents[1] = blocks.extents[2] = 1;
    blocks.strides[1] = blocks.strides[2] = 0;
    return blocks;
  };
  return {.first = {.k = as_rows(layers.first.k), .v = as_rows(layers.first.v)},
          .num_layers = layers.num_layers,
          .layer_stride = layers.layer_stride};
}

}  // namespace v0
}  // namespace pagedkv
