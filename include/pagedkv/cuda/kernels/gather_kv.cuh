// Rows of K and V out of the blocks of a batch into two contiguous arrays, one sequence behind the other.
//
//   grid    x: tile of [num_rows, kv_heads, pieces of a row] of the output,  y: 0 for K, 1 for V
//   CTA     finds the sequences of its rows by bisection: work is cut by output, so lengths of any mix are balanced
//
// Bytes: twice those of the rows, and the table entries.
#pragma once

#include <cstdint>

#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Sequences [begin, end).
struct SequenceRange {
  int begin, end;
};

/// The owner of output row `row` among `among`, where begins(among.begin) <= row < begins(among.end): the one sequence
/// s with begins(s) <= row < begins(s + 1), whatever the number of empty ones.
template <Space S>
PAGEDKV_HD constexpr int find_sequence(const View<const std::int32_t, 1, S>& begins, SequenceRange among, int row) {
  while (among.end - among.begin > 1) {
    const int middle = among.begin + (among.end - among.begin) / 2;
    (begins(middle) <= row ? among.begin : among.end) = middle;
  }
  return among.begin;
}

/// The owners of rows first .. last: nearly always one, and then no row is looked for again.
template <Space S>
PAGEDKV_HD constexpr SequenceRange find_sequences(const View<const std::int32_t, 1, S>& begins, int first, int last) {
  if (begins.empty()) return {0, 1};
  const int num_seqs = static_cast<int>(begins.extents[0]) - 1, sequence = find_sequence(begins, {0, num_seqs}, first);
  return {sequence, last < begins(sequence + 1) ? sequence + 1 : num_seqs};
}

/// A row's block, negative where it is gone, and its offset there.
struct GatheredRow {
  std::int32_t block;
  int offset;
};

}  // namespace detail

template <class Config>
__global__ void __launch_bounds__(Config::threads)
    kv_gather_kernel(const TablesView<Space::device> tables, const View<const std::int32_t, 1, Space::device> begins,
                     const KvView<const typename Config::From, Space::device> layer,
                     const View<typename Config::To, 3, Space::device> k,
                     const View<typename Config::To, 3, Space::device> v, const PieceShape shape) {
  using P = typename Config::To;
  ptx::launch_dependents();
  const bool is_key = blockIdx.y == 0;
  const auto blocks = detail::pick(is_key, layer.k, layer.v);  // [num_blocks, kv_heads, block_size, pieces]
  const auto rows = detail::pick(is_key, k, v);                // [num_rows, kv_heads, pieces]
  const Divisor row_pieces = is_key ? shape.k_row : shape.v_row;
  const std::int64_t fill = begins.empty() ? tables.kv_len(0) : begins(begins.extents[0] - 1);
  const auto num_pieces = static_cast<int>(min(rows.extents[0], fill) * rows.extents[1] * rows.extents[2]);
  const int first_piece = static_cast<int>(blockIdx.x) * Config::tile_pieces;
  if (first_piece >= num_pieces) {
    ptx::wait_for_previous_kernel();
    return;
  }

  const auto row_of = [&](int i) { return detail::index_of(i, shape.kv_heads, row_pieces).row; };
  const int last_piece = first_piece + min(Config::tile_pieces, num_pieces - first_piece) - 1;
  const auto owners = detail::find_sequences(begins, row_of(first_piece), row_of(last_piece));
  const int begin = begins.empty() ? 0 : begins(owners.begin);
  const auto look_up = [&](int sequence, int position) {
    return detail::GatheredRow{tables.block_ids(sequence, shape.block_size.quotient(position)),
                               shape.block_size.remainder(position)};
  };
  const auto look_up_in_one = [&](int i) { return look_up(owners.begin, row_of(i) - begin); };
  const auto look_up_in_many = [&](int i) {
    const int sequence = detail::find_sequence(begins, owners, row_of(i));
    return look_up(sequence, row_of(i) - begins(sequence));
  };
  const auto locate = [&](int i, detail::GatheredRow found, const P*& from, P*& to) {
    PAGEDKV_ASSERT(found.block < blocks.extents[0]);
    const auto [row, head, piece] = detail::index_of(i, shape.kv_heads, row_pieces);
    from = found.block < 0 ? nullptr : blocks.at(found.block, head, found.offset, piece);
    to = rows.at(row, head, piece);
  };
  const auto moves = owners.end - owners.begin == 1
                         ? detail::locate_tile<Config>(first_piece, num_pieces, look_up_in_one, locate)
                         : detail::locate_tile<Config>(first_piece, num_pieces, look_up_in_many, locate);
  ptx::wait_for_previous_kernel();
  detail::move_tile<Config>(moves);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
