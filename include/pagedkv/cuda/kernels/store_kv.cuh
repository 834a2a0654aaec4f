// New rows of K and V to their slots in one layer's cache, converted to the cache's type.
//
//   grid    x: tile of [num_rows, kv_heads, pieces of a row],  y: 0 for K, 1 for V
//   thread  looks up the slot of each of its pieces; dead rows move nothing
//
// Bytes: those of the rows, once as given and once as stored.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/storage/kv_view.hpp"
#include "pagedkv/storage/pieces.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Pieces of `Count` elements: given as X, stored as T.
template <class T, class X, int Count, MovePolicy Policy>
struct StoreConfig : MoveConfig<Piece<Count * sizeof(X)>, Piece<Count * sizeof(T)>, Policy> {
  using Stored = T;
  using Given = X;
  static constexpr int count = Count;
};

namespace detail {

template <class Config>
__device__ __forceinline__ typename Config::To convert(const typename Config::From& from) {
  if constexpr (std::is_same_v<typename Config::Given, typename Config::Stored>) {
    return from;
  } else {
    typename Config::Given x[Config::count];
    typename Config::Stored y[Config::count];
    typename Config::To to;
    memcpy(x, &from, sizeof x);
#pragma unroll
    for (int i = 0; i < Config::count; ++i) y[i] = from_float<typename Config::Stored>(to_float(x[i]));
    memcpy(&to, y, sizeof y);
    return to;
  }
}

/// A slot's block, and its offset there.
struct Place {
  std::int64_t block;
  int offset;
};

/// The fast division takes slots below 2^31, and that is nearly every pool's.
__device__ __forceinline__ Place place_of(Slot slot, const Divisor& block_size) {
  const auto low = static_cast<int>(slot);
  if (slot < std::int64_t{1} << 31) return {block_size.quotient(low), block_size.remainder(low)};
  return {slot / block_size.divisor, static_cast<int>(slot % block_size.divisor)};
}

}  // namespace detail

template <class Config>
__global__ void __launch_bounds__(Config::threads)
    kv_store_kernel(const View<const Slot, 1, Space::device> slots,
                    const KvView<typename Config::To, Space::device> layer,
                    const View<const typename Config::From, 3, Space::device> k,
                    const View<const typename Config::From, 3, Space::device> v, const PieceShape shape) {
  using From = typename Config::From;
  using To = typename Config::To;
  ptx::launch_dependents();
  const bool is_key = blockIdx.y == 0;
  const auto blocks = detail::pick(is_key, layer.k, layer.v);  // [num_blocks, kv_heads, block_size, pieces]
  const auto rows = detail::pick(is_key, k, v);                // [num_rows, kv_heads, pieces]
  const Divisor row_pieces = is_key ? shape.k_row : shape.v_row;
  const auto num_pieces = static_cast<int>(rows.extents[0] * rows.extents[1] * rows.extents[2]);
  const int first_piece = static_cast<int>(blockIdx.x) * Config::tile_pieces;
  if (first_piece >= num_pieces) {  // the grid is that of the longer rows, K's or V's
    ptx::wait_for_previous_kernel();
    return;
  }

  const auto slot_of = [&](int i) { return slots(detail::index_of(i, shape.kv_heads, row_pieces).row); };
  const auto locate = [&](int i, Slot slot, const From*& from, To*& to) {
    PAGEDKV_ASSERT(slot < blocks.extents[0] * blocks.extents[2]);
    const auto [row, head, piece] = detail::index_of(i, shape.kv_heads, row_pieces);
    const detail::Place place = detail::place_of(slot, shape.block_size);
    from = slot < 0 ? nullptr : rows.at(row, head, piece);
    to = blocks.at(place.block, head, place.offset, piece);
  };
  const auto moves = detail::locate_tile<Config>(first_piece, num_pieces, slot_of, locate);
  ptx::wait_for_previous_kernel();
  detail::move_tile<Config>(moves, [](const From& piece) { return detail::convert<Config>(piece); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
