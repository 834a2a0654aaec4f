// What all kernels that move rows of K and V share: a tile of pieces, each thread's loads before its first store.
//
//   CTA     a tile: `threads * pieces_per_thread` pieces of a run, in the order of the run
//   thread  piece i, i + threads, i + 2 threads, ...: first all addresses, which need nothing of the kernel in front;
//           then all loads; then all stores. Bytes in flight are what hides the latency of memory
//
// Every CTA waits for the kernel in front, also one that has nothing to move: who waits for this kernel waits for all.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// From and To are what one load takes and one store writes; they are alike where nothing is converted.
template <class FromPiece, class ToPiece, MovePolicy Policy>
struct MoveConfig {
  using From = FromPiece;
  using To = ToPiece;
  static constexpr int threads = Policy.threads, pieces_per_thread = Policy.pieces_per_thread;
  static constexpr int tile_pieces = threads * pieces_per_thread;
};

/// The shape of a layer whose elements are pieces, to divide by.
struct PieceShape {
  Divisor k_row, v_row;  // pieces of a row
  Divisor kv_heads, block_size;
};

template <class P, Space S>
PieceShape make_piece_shape(const KvView<P, S>& layer) {
  return {.k_row = Divisor(layer.head_dim()),
          .v_row = Divisor(layer.head_dim_v()),
          .kv_heads = Divisor(layer.kv_heads()),
          .block_size = Divisor(layer.block_size())};
}

namespace detail {

/// Where piece i of [num_rows, kv_heads, pieces of a row] is.
struct PieceIndex {
  int row, head, piece;
};

__device__ __forceinline__ PieceIndex index_of(int i, const Divisor& kv_heads, const Divisor& row_pieces) {
  const int head_row = row_pieces.quotient(i);
  return {kv_heads.quotient(head_row), kv_heads.remainder(head_row), row_pieces.remainder(i)};
}

/// K or V. Field by field: a reference to one of two kernel parameters puts both on the stack.
template <class T, int Rank>
__device__ __forceinline__ View<T, Rank, Space::device> pick(bool first, const View<T, Rank, Space::device>& a,
                                                             const View<T, Rank, Space::device>& b) {
  View<T, Rank, Space::device> picked;
  picked.data = first ? a.data : b.data;
#pragma unroll
  for (int d = 0; d < Rank; ++d) {
    picked.extents[d] = first ? a.extents[d] : b.extents[d];
    picked.strides[d] = first ? a.strides[d] : b.strides[d];
  }
  return picked;
}

/// A thread's share of a tile: addresses, null where there is nothing to move.
template <class Config>
struct Moves {
  const typename Config::From* from[Config::pieces_per_thread];
  typename Config::To* to[Config::pieces_per_thread];
};

/// The addresses of the tile's pieces, of a run of num_pieces: look_up(i) reads what piece i needs from tables, then
/// locate(i, found, from, to) does the sums; it leaves `from` null where the piece is dead. Apart, and without a branch
/// around either, so that the loads of all pieces, and then their sums, are under way together. The tile is not empty.
template <class Config, class LookUp, class Locate>
__device__ __forceinline__ Moves<Config> locate_tile(int first_piece, int num_pieces, LookUp&& look_up,
                                                     Locate&& locate) {
  const int last = num_pieces - 1 - first_piece;  // in the tile
  const auto piece = [](int n) { return n * Config::threads + static_cast<int>(threadIdx.x); };
  decltype(look_up(0)) found[Config::pieces_per_thread];
#pragma unroll
  for (int n = 0; n < Config::pieces_per_thread; ++n) found[n] = look_up(first_piece + min(piece(n), last));
  Moves<Config> moves;
#pragma unroll
  for (int n = 0; n < Config::pieces_per_thread; ++n) {
    moves.from[n] = nullptr;
    locate(first_piece + min(piece(n), last), found[n], moves.from[n], moves.to[n]);
    if (piece(n) > last) moves.from[n] = nullptr;
  }
  return moves;
}

/// All loads, then all stores, `offset` pieces behind the addresses. convert(from) makes a To.
template <class Config, class Convert>
__device__ __forceinline__ void move_tile(const Moves<Config>& moves, Convert&& convert, std::int64_t offset = 0) {
  typename Config::From pieces[Config::pieces_per_thread];
#pragma unroll
  for (int n = 0; n < Config::pieces_per_thread; ++n) {
    if (moves.from[n] != nullptr) pieces[n] = moves.from[n][offset];
  }
#pragma unroll
  for (int n = 0; n < Config::pieces_per_thread; ++n) {
    if (moves.from[n] != nullptr) moves.to[n][offset] = convert(pieces[n]);
  }
}

/// The same where nothing is converted.
template <class Config>
__device__ __forceinline__ void move_tile(const Moves<Config>& moves, std::int64_t offset = 0) {
  move_tile<Config>(
      moves, [](const typename Config::From& piece) { return piece; }, offset);
}

}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
