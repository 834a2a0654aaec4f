// KvView: one layer's K and V as every kernel sees them; KvLayers: the same for all layers at one stride.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv {
inline namespace v0 {

/// One layer's cache. Build it from a pool, or from raw pointers and strides if you own the memory: any order of the
/// first three axes, K and V with different strides, several layers interleaved; only the last stride must be 1.
template <class T, Space S = Space::host>
struct KvView {
  View<T, 4, S> k;  // [num_blocks, kv_heads, block_size, head_dim]
  View<T, 4, S> v;  // [num_blocks, kv_heads, block_size, head_dim_v]

  PAGEDKV_HD constexpr std::int64_t num_blocks() const { return k.extents[0]; }
  PAGEDKV_HD constexpr int kv_heads() const { return static_cast<int>(k.extents[1]); }
  PAGEDKV_HD constexpr int block_size() const { return static_cast<int>(k.extents[2]); }
  PAGEDKV_HD constexpr int head_dim() const { return static_cast<int>(k.extents[3]); }
  PAGEDKV_HD constexpr int head_dim_v() const { return static_cast<int>(v.extents[3]); }

  template <std::same_as<const T> ConstT>
  PAGEDKV_HD constexpr operator KvView<ConstT, S>() const {
    return {.k = k, .v = v};
  }

  /// Throws InvalidArgument unless K and V agree and rows of head_dim are contiguous.
  void validate() const {
    require(!k.empty() && !v.empty(), "kv: k and v pointers", "not null", "null");
    require(k.extents[0] >= 1, "kv: num_blocks", "at least 1", k.extents[0]);
    require(k.extents[1] >= 1, "kv: kv_heads", "at least 1", k.extents[1]);
    require(k.extents[2] >= 1, "kv: block_size", "at least 1", k.extents[2]);
    require(k.extents[3] >= 1, "kv: head_dim", "at least 1", k.extents[3]);
    require(v.extents[0] == k.extents[0], "kv.v: num_blocks like kv.k's,", k.extents[0], v.extents[0]);
    require(v.extents[1] == k.extents[1], "kv.v: kv_heads like kv.k's,", k.extents[1], v.extents[1]);
    require(v.extents[2] == k.extents[2], "kv.v: block_size like kv.k's,", k.extents[2], v.extents[2]);
    require(v.extents[3] >= 1, "kv.v: head_dim_v", "at least 1", v.extents[3]);
    require(k.strides[3] == 1, "kv.k: stride of head_dim", 1, k.strides[3]);
    require(v.strides[3] == 1, "kv.v: stride of head_dim", 1, v.strides[3]);
  }
};

/// The layers of one pool: layer i lies i * layer_stride elements behind the first.
template <class T, Space S = Space::host>
struct KvLayers {
  KvView<T, S> first;
  int num_layers = 1;
  std::int64_t layer_stride = 0;

  PAGEDKV_HD constexpr KvView<T, S> layer(int index) const {
    KvView<T, S> view = first;
    view.k.data += index * layer_stride;
    view.v.data += index * layer_stride;
    return view;
  }
};

/// Throws InvalidArgument unless rows of K or V, [num_rows, kv_heads, dim], can be stored in blocks of that many heads and
/// that dim. `what` names the rows.
template <class X, class T, Space S>
void validate_rows(const char* what, const View<X, 3, S>& rows, const View<T, 4, S>& blocks) {
  const auto check = [what](bool holds, const char* name, auto expected, auto got) {
    if (!holds) require(false, std::string(what) + name, expected, got);
  };
  if (rows.extents[0] == 0) return;
  check(!rows.empty(), " pointer", "not null", "null");
  check(rows.extents[1] == blocks.extents[1], " kv_heads like the cache's,", blocks.extents[1], rows.extents[1]);
  check(rows.extents[2] == blocks.extents[3], " head_dim like the cache's,", blocks.extents[3], rows.extents[2]);
  check(rows.strides[2] == 1, " stride of head_dim", 1, rows.strides[2]);
}

}  // namespace v0
}  // namespace pagedkv
