// Which strided copies move blocks from one pool to another, and as few as can be: numbers only, whoever copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pagedkv/core/config.hpp"
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

/// `height` rows of `width_bytes`, each a pitch behind the one before.
struct StridedCopy {
  const void* source;
  void* destination;
  std::size_t width_bytes;
  std::size_t height;
  std::size_t source_pitch, destination_pitch;  // in bytes, at least width_bytes
};

namespace detail {

template <class T, Space S>
constexpr std::int64_t block_elements(const View<T, 4, S>& blocks) {
  return blocks.extents[1] * blocks.extents[2] * blocks.extents[3];
}

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

/// What a block has in all layers of K, of V, or of both: rows of `width` elements, a pitch apart.
template <class T>
struct BlockRows {
  T* first;             // of block 0
  std::int64_t stride;  // from block to block
  std::int64_t width;
  std::int64_t pitch;
  int height;

  template <Space S>
  static BlockRows of(const View<T, 4, S>& blocks, std::int64_t pitch, int height) {
    return {blocks.data, blocks.strides[0], block_elements(blocks), pitch, height};
  }

  T* row(BlockId block, int index) const { return first + to_index(block) * stride + index * pitch; }
  bool has_no_gaps() const { return stride == width; }
};

/// One copy where both pitches allow it, else one for each row.
template <class T, class U, class Copy>
void copy_run(const BlockRows<T>& source, const BlockRows<U>& destination, BlockPair first, std::size_t num_blocks,
              std::size_t max_pitch, Copy&& copy) {
  const std::size_t width = num_blocks * static_cast<std::size_t>(source.width) * sizeof(T);
  const auto from_pitch = static_cast<std::size_t>(source.pitch) * sizeof(T);
  const auto to_pitch = static_cast<std::size_t>(destination.pitch) * sizeof(T);
  const auto fits = [&](std::size_t pitch) { return pitch >= width && pitch <= max_pitch; };  // a negative one is huge
  const bool at_once = fits(from_pitch) && fits(to_pitch);
  for (int row = 0; row < source.height; row += at_once ? source.height : 1) {
    copy(StridedCopy{.source = source.row(first.source, row),
                     .destination = destination.row(first.destination, row),
                     .width_bytes = width,
                     .height = at_once ? static_cast<std::size_t>(source.height) : 1,
                     .source_pitch = at_once ? from_pitch : width,
                     .destination_pitch = at_once ? to_pitch : width});
  }
}

/// The elements from a layer's K to its V, where that is also the way from its V to the next layer's K; else 0.
template <class T, Space S>
constexpr std::int64_t common_pitch(const KvLayers<T, S>& layers) {
  const std::int64_t pitch = layers.first.v.data - layers.first.k.data;
  const bool is_common = block_elements(layers.first.k) == block_elements(layers.first.v) &&
                         layers.first.k.strides[0] == layers.first.v.strides[0] &&
                         (layers.num_layers == 1 || layers.layer_stride == 2 * pitch);
  return is_common && pitch > 0 ? pitch : 0;
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

/// Calls copy(StridedCopy) for all layers' K and V of pairs that validate_swap has let pass. Pairs that follow each
/// other on both sides, in pools without gaps between blocks, are copied together. In pools of KvLayout's order that is
/// one copy for each such run, as long as no pitch is above `max_pitch` bytes.
template <class T, class U, Space S, Space D, class Copy>
void for_each_copy(std::span<const BlockPair> pairs, const KvLayers<T, S>& source, const KvLayers<U, D>& destination,
                   std::size_t max_pitch, Copy&& copy) {
  static_assert(sizeof(T) == sizeof(U));
  using From = detail::BlockRows<T>;
  using To = detail::BlockRows<U>;
  const std::int64_t from_pitch = detail::common_pitch(source), to_pitch = detail::common_pitch(destination);
  const bool is_one = from_pitch > 0 && to_pitch > 0;
  const int height = source.num_layers * (is_one ? 2 : 1);
  const auto from_k = From::of(source.first.k, is_one ? from_pitch : source.layer_stride, height);
  const auto from_v = From::of(source.first.v, source.layer_stride, height);
  const auto to_k = To::of(destination.first.k, is_one ? to_pitch : destination.layer_stride, height);
  const auto to_v = To::of(destination.first.v, destination.layer_stride, height);
  const bool joins = from_k.has_no_gaps() && from_v.has_no_gaps() && to_k.has_no_gaps() && to_v.has_no_gaps();
  const auto follows = [&](std::size_t i) {
    return to_index(pairs[i].source) == to_index(pairs[i - 1].source) + 1 &&
           to_index(pairs[i].destination) == to_index(pairs[i - 1].destination) + 1;
  };
  for (std::size_t i = 0; i < pairs.size();) {
    std::size_t num_blocks = 1;
    while (joins && i + num_blocks < pairs.size() && follows(i + num_blocks)) ++num_blocks;
    detail::copy_run(from_k, to_k, pairs[i], num_blocks, max_pitch, copy);  // with V behind it where that is one copy
    if (!is_one) detail::copy_run(from_v, to_v, pairs[i], num_blocks, max_pitch, copy);
    i += num_blocks;
  }
}

}  // namespace v0
}  // namespace pagedkv
