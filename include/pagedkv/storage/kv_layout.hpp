// KvLayout: shape and strides of a pool of K and V. The only file that knows the order of the axes.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// Order of a block's axes in memory, outermost first. HND: one head's slots are one contiguous run, which is what a
/// kernel that works on one KV head likes; NHD: one token's heads are.
enum class KvOrder { hnd, nhd };

/// A pool in memory is [num_layers][K, V][num_blocks][block], each block dense in `order`.
struct KvLayout {
  int num_layers = 1;
  std::int64_t num_blocks = 0;
  int kv_heads = 0;
  int block_size = 0;
  int head_dim = 0;
  int head_dim_v = 0;  // 0: like head_dim
  KvOrder order = KvOrder::hnd;

  constexpr int value_dim() const { return head_dim_v == 0 ? head_dim : head_dim_v; }
  constexpr std::int64_t key_elements() const {
    return num_blocks * kv_heads * block_size * head_dim;
  }  // one layer's K
  constexpr std::int64_t value_elements() const { return num_blocks * kv_heads * block_size * value_dim(); }
  constexpr std::int64_t layer_elements() const { return key_elements() + value_elements(); }
  constexpr std::int64_t num_elements() const { return num_layers * layer_elements(); }
  static constexpr std::int64_t max_elements = std::int64_t{1} << 60;  // of up to 4 bytes: sizes in bytes fit, too

  /// This layout. Throws InvalidArgument unless every count is at least 1 (num_blocks included) and 64 bits hold every
  /// size.
  const KvLayout& validated() const {
    require(num_layers >= 1, "KvLayout: num_layers", "at least 1", num_layers);
    require(num_blocks >= 1, "KvLayout: num_blocks", "at least 1", num_blocks);
    require(kv_heads >= 1, "KvLayout: kv_heads", "at least 1", kv_heads);
    require(block_size >= 1, "KvLayout: block_size", "at least 1", block_size);
    require(head_dim >= 1, "KvLayout: head_dim", "at least 1", head_dim);
    require(head_dim_v >= 0, "KvLayout: head_dim_v", "0 (like head_dim) or more", head_dim_v);
    std::int64_t elements = 1;
    for (const std::int64_t count : {std::int64_t{num_layers}, num_blocks, std::int64_t{kv_heads},
                                     std::int64_t{block_size}, std::int64_t{head_dim} + value_dim()}) {
      require(count <= max_elements / elements, "KvLayout: elements of all layers", "at most 2^60", "more");
      elements *= count;
    }
    return *this;
  }
};

/// K or V of one layer: logical axes [num_blocks, kv_heads, block_size, dim] whatever the order in memory.
template <Space S = Space::host, class T>
constexpr View<T, 4, S> block_view(T* data, const KvLayout& layout, int dim) {
  const std::int64_t heads = layout.kv_heads, slots = layout.block_size;
  View<T, 4, S> view{.data = data, .extents = {layout.num_blocks, heads, slots, dim}};
  const bool hnd = layout.order == KvOrder::hnd;
  view.strides[0] = heads * slots * dim;
  view.strides[1] = hnd ? slots * dim : dim;
  view.strides[2] = hnd ? dim : heads * dim;
  view.strides[3] = 1;
  return view;
}

/// All layers of a pool that starts at `data` and has the memory order of KvLayout.
template <Space S = Space::host, class T>
constexpr KvLayers<T, S> layers_view(T* data, const KvLayout& layout) {
  return {.first = {.k = block_view<S>(data, layout, layout.head_dim),
                    .v = block_view<S>(data + layout.key_elements(), layout, layout.value_dim())},
          .num_layers = layout.num_layers,
          .layer_stride = layout.layer_elements()};
}

}  // namespace v0
}  // namespace pagedkv
