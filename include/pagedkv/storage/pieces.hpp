// Pieces: rows of K and V as runs of equal groups of bytes: what only moves them need not know what they mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// `Bytes` bytes (1, 2, 4, 8 or 16) that move in one instruction.
template <std::size_t Bytes>
struct alignas(Bytes) Piece {
  using Word =
      std::conditional_t<Bytes == 1, std::uint8_t, std::conditional_t<Bytes == 2, std::uint16_t, std::uint32_t>>;
  Word words[Bytes / sizeof(Word)];
};

/// Can rows of `view`, and of views `offset` elements behind it, be moved `count` elements at a time?
template <class T, int Rank, Space S>
bool consists_of(const View<T, Rank, S>& view, int count, std::int64_t offset = 0) {
  bool whole = reinterpret_cast<std::uintptr_t>(view.data) % (static_cast<std::size_t>(count) * sizeof(T)) == 0;
  whole &= view.extents[Rank - 1] % count == 0 && view.strides[Rank - 1] == 1 && offset % count == 0;
  for (int d = 0; d < Rank - 1; ++d) whole &= view.strides[d] % count == 0;
  return whole;
}

/// The same bytes as rows of pieces; consists_of() holds for as many elements as a piece has.
template <class P, class T, int Rank, Space S>
auto in_pieces(const View<T, Rank, S>& view) {
  using Element = std::conditional_t<std::is_const_v<T>, const P, P>;
  constexpr auto count = static_cast<std::int64_t>(sizeof(P) / sizeof(T));
  View<Element, Rank, S> pieces{.data = reinterpret_cast<Element*>(view.data)};
  for (int d = 0; d < Rank; ++d) {
    const bool is_row = d == Rank - 1;
    pieces.extents[d] = is_row ? view.extents[d] / count : view.extents[d];
    pieces.strides[d] = is_row ? 1 : view.strides[d] / count;
  }
  return pieces;
}

/// Can K and V of all layers?
template <class T, Space S>
bool consists_of(const KvLayers<T, S>& layers, int count) {
  return consists_of(layers.first.k, count, layers.layer_stride) &&
         consists_of(layers.first.v, count, layers.layer_stride);
}

template <class P, class T, Space S>
auto in_pieces(const KvLayers<T, S>& layers) {
  using Element = std::conditional_t<std::is_const_v<T>, const P, P>;
  constexpr auto count = static_cast<std::int64_t>(sizeof(P) / sizeof(T));
  return KvLayers<Element, S>{.first = {.k = in_pieces<P>(layers.first.k), .v = in_pieces<P>(layers.first.v)},
                              .num_layers = layers.num_layers,
                              .layer_stride = layers.layer_stride / count};
}

}  // namespace v0
}  // namespace pagedkv
