// How the warps of a CTA, and then the CTAs of a row, put their pieces of decode_sm80's output together.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/decode_walk.cuh"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/global.cuh"
#include "pagedkv/cuda/tile/fragment.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

/// One piece of the rows of an item, as far as one warp has come; sums are the lane's own share.
template <class Config>
struct DecodeState {
  OnlineSoftmax softmax[Config::octets][2];
  typename Config::Output output;  // [head_dim_v / 16][octets][4]
};

/// Four columns of a row and its softmax, of one piece or of several merged ones.
template <class Config>
struct RowQuad {
  OnlineSoftmax softmax;
  float out[Config::quad] = {};

  // fmaf is spelt out: which product a compiler fuses must not differ between the places that merge.
  __device__ __forceinline__ void merge(const RowQuad& piece) {
    if (piece.softmax.max == -infinity) return;  // its columns may never have been written
    const auto [own, other] = softmax.merge(piece.softmax);
#pragma unroll
    for (int c = 0; c < Config::quad; ++c) out[c] = fmaf(own, out[c], other * piece.out[c]);
  }
};

/// Where (row of the pass, column) of a warp's output lies in its stage: eight columns stay together, and the four pairs of
/// rows that a warp writes at once meet different banks.
template <class Config>
__device__ __forceinline__ int exchange_offset(int row, int column) {
  constexpr int groups = Config::head_dim_v / 8, permuted = groups % 4 == 0 ? 4 : 2;
  return row * Config::head_dim_v + (column / 8 ^ row / 2 % permuted) * 8 + column % 8;
}

/// Puts the lane's part of the rows [first, first + rows_per_pass) where the other warps can read it.
template <class Config>
__device__ __forceinline__ void put_output(typename Config::Stage& stage, const typename Config::Output& output,
                                           int first) {
  auto* const exchange = reinterpret_cast<float*>(&stage);  // [rows_per_pass, head_dim_v]
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
    if (octet * 8 < first || octet * 8 >= first + Config::rows_per_pass) continue;
#pragma unroll
    for (int d = 0; d < Config::head_dim_v / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Coordinate place = fragment_c(lane_id(), i);  // row: of O^T, a column of the output
        exchange[exchange_offset<Config>(octet * 8 - first + place.column, 16 * d + place.row)] = output[d][octet][i];
      }
    }
  }
}

struct alignas(16) FourFloats {
  float x[4];
};

/// All pieces at once: one maximum, then every piece weighed by it, in order.
template <class Config, int N>
__device__ __forceinline__ RowQuad<Config> join(const RowQuad<Config> (&pieces)[N]) {
  RowQuad<Config> total;
#pragma unroll
  for (const auto& piece : pieces) total.softmax.max = max(total.softmax.max, piece.softmax.max);
#pragma unroll
  for (const auto& piece : pieces) {
    const float weight = total.softmax.weight(piece.softmax.max);
    total.softmax.sum = fmaf(weight, piece.softmax.sum, total.softmax.sum);
#pragma unroll
    for (int c = 0; c < Config::quad; ++c)  // columns of a piece that saw nothing may never have been written
      total.out[c] = fmaf(weight, weight == 0.f ? 0.f : piece.out[c], total.out[c]);
  }
  return total;
}

/// One row's four columns, of all warps.
template <class Config>
__device__ __forceinline__ RowQuad<Config> join_warps(const typename Config::SharedMemory& shared, int stage, int first,
                                                      int row, int column) {
  RowQuad<Config> pieces[Config::warps];
#pragma unroll
  for (int warp = 0; warp < Config::warps; ++warp) {
    const auto* const exchange = reinterpret_cast<const float*>(&shared.ring[warp][stage]);
    const auto four = *reinterpret_cast<const FourFloats*>(exchange + exchange_offset<Config>(row - first, column));
    pieces[warp] = {shared.softmax[warp][row], {four.x[0], four.x[1], four.x[2], four.x[3]}};
  }
  return join<Config>(pieces);
}

template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void finish_row(const Problem& problem, const V& variant, const DecodeItem& item,
                                           const DecodeCut& cut, int kv_head, int row, int column,
                                           const RowQuad<Config>& total) {
  using T = typename Config::Element;
  struct alignas(8) Four {
    std::uint32_t pairs[2];
  };
  const int packed = item.row_begin + row, group_size = static_cast<int>(cut.group_size.divisor);
  const std::int64_t token = item.first_token + cut.group_size.quotient(packed);
  const int q_head = kv_head * group_size + cut.group_size.remainder(packed);
  const auto [scale, lse] = total.softmax.finish(prior_of(variant, q_head));
  *reinterpret_cast<Four*>(problem.out.at(token, q_head, column)) = {
      ptx::pack<T>(scale * total.out[0], scale * total.out[1]),
      ptx::pack<T>(scale * total.out[2], scale * total.out[3])};
  if (column == 0 && !problem.lse.empty()) problem.lse(token, q_head) = lse;
}

/// The pieces of a row of keys, and the tiles of partials where they wait for each other: two for each slice. Only its first
/// and its last row may have pieces elsewhere: the first piece of the last row waits in one tile, its piece of a row that
/// began earlier in the other. Where pieces are units, there is a tile for each of them behind these two, which then hold
/// the total of a row that is all the slice's own, by turns.
struct DecodePieces {
  int num, mine;                // of the item's rows and this head; which of them is at hand
  int first_owner, num_owners;  // slices that hold them
  int own;                      // slice
  bool are_units;
  std::int64_t first_slot;

  __device__ __forceinline__ std::int64_t slot(int piece) const {
    return piece == 0 && !are_units ? first_owner : first_slot + piece;
  }
  __device__ __forceinline__ std::int64_t total_slot(int up_to) const { return 2 * std::int64_t{own} + up_to % 2; }
};

/// The rows that a piece belongs to; in shared memory, so that they can be finished when others are under way.
struct DecodeRows {
  DecodeItem item;
  int head;
  DecodePieces pieces;
};

template <int MaxRuns>
__device__ __forceinline__ DecodeRows rows_at(const DecodeCursor& cursor, const DecodeWork<MaxRuns>& work,
                                              const DecodeCut& cut) {
  const Slices& slices = work.slices;
  const int own = static_cast<int>(blockIdx.x), num_units = cursor.item.units.size();
  DecodePieces pieces{.num = 1,
                      .mine = 0,
                      .first_owner = own,
                      .num_owners = 1,
                      .own = own,
                      .are_units = cut.unit_pieces,
                      .first_slot = slices.num_slices};
  if (work.cuts_rows) {
    const std::int64_t end = slices.begin(own + 1), row_begin = end - cursor.left - cursor.unit;
    if (row_begin < slices.begin(own) || row_begin + num_units > end) {
      pieces.first_owner = slices.owner(row_begin);
      pieces.num_owners = slices.owner(row_begin + num_units - 1) - pieces.first_owner + 1;
    }
    pieces.first_slot += cut.unit_pieces ? slices.num_slices + row_begin : pieces.first_owner;
  }
  pieces.num = cut.unit_pieces ? num_units : pieces.num_owners;
  pieces.mine = cut.unit_pieces ? cursor.unit : own - pieces.first_owner;
  return {cursor.item, cursor.head, pieces};
}

/// Does fn(row, column) for four columns at a time of the rows [first, end), all threads together.
template <class Config, class Fn>
__device__ __forceinline__ void for_each_quad(int first, int end, Fn&& fn) {
  constexpr int quads = Config::head_dim_v / Config::quad;
  for (int i = static_cast<int>(threadIdx.x); i < (end - first) * quads; i += Config::threads)
    fn(first + i / quads, i % quads * Config::quad);
}

template <class Config>
__device__ __forceinline__ void store_partial(const Partials& partials, std::int64_t slot, int row, int column,
                                              const RowQuad<Config>& piece) {
  const std::int64_t index = slot * Config::rows + row;
  *reinterpret_cast<FourFloats*>(partials.outputs.at(index, column)) = {piece.out[0], piece.out[1], piece.out[2],
                                                                        piece.out[3]};
  if (column == 0) partials.softmax(index) = piece.softmax;
}

template <class Config>
__device__ __forceinline__ RowQuad<Config> load_partial(const Partials& partials, std::int64_t slot, int row,
                                                        int column) {
  const std::int64_t index = slot * Config::rows + row;
  RowQuad<Config> piece;
  float softmax[2];
  ptx::load_past_l1(softmax, &partials.softmax(index).max);
  ptx::load_past_l1(piece.out, partials.outputs.at(index, column));
  piece.softmax = {softmax[0], softmax[1]};
  return piece;
}

/// Joins load(0) to load(num - 1) to a total, in this order; many are on their way at a time. `one_by_one`: with the bits of
/// whoever folds piece after piece.
template <class Config, class Load>
__device__ __forceinline__ void join_in_order(RowQuad<Config>& total, int num, bool one_by_one, Load&& load) {
#pragma unroll 1
  for (int first = 0; first < num; first += Config::joined_at_once) {
    RowQuad<Config> some[Config::joined_at_once];
#pragma unroll
    for (int i = 0; i < Config::joined_at_once; ++i)
      if (first + i < num) some[i] = load(first + i);
    if (!one_by_one) {
      total.merge(join<Config>(some));
      continue;
    }
#pragma unroll
    for (int i = 0; i < Config::joined_at_once; ++i) total.merge(some[i]);
  }
}

/// The end of a piece, all warps together: join their outputs; then finish the row, or fold the piece into the total of
/// the row, or leave it to whichever CTA comes last.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void end_piece(typename Config::SharedMemory& shared, int stage, const Problem& problem,
                                          const V& variant, const DecodeCut& cut, const Partials& partials,
                                          const DecodeRows& rows, DecodeState<Config>& state) {
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      OnlineSoftmax& softmax = state.softmax[octet][j];
      for (int step = 4; step < 32; step *= 2) softmax.sum += __shfl_xor_sync(~0u, softmax.sum, step);
      if (lane_id() < 4) shared.softmax[warp_id()][octet * 8 + fragment_c(lane_id(), j).column] = softmax;
    }
  }
#pragma unroll
  for (int first = 0; first < Config::rows; first += Config::rows_per_pass) {
    put_output<Config>(shared.ring[warp_id()][stage], state.output, first);
    __syncthreads();
    const DecodePieces& pieces = rows.pieces;
    for_each_quad<Config>(first, min(rows.item.num_rows, first + Config::rows_per_pass), [&](int row, int column) {
      RowQuad<Config> quad = join_warps<Config>(shared, stage, first, row, column);
      if (pieces.num_owners > 1) return store_partial<Config>(partials, pieces.slot(pieces.mine), row, column, quad);
      // All pieces are this CTA's, in order, and these columns this thread's to fold.
      if (pieces.mine > 0) {
        RowQuad<Config> total = load_partial<Config>(partials, pieces.total_slot(pieces.mine - 1), row, column);
        total.merge(quad);
        quad = total;
      }
      if (pieces.mine < pieces.num - 1)
        return store_partial<Config>(partials, pieces.total_slot(pieces.mine), row, column, quad);
      finish_row<Config>(problem, variant, rows.item, cut, rows.head, row, column, quad);
    });
    __syncthreads();
  }
}

/// Rows whose pieces are all there: whoever came last merges and finishes them.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void merge_rows(const Problem& problem, const V& variant, const DecodeCut& cut,
                                           const Partials& partials, const DecodeRows& rows) {
  const DecodePieces& pieces = rows.pieces;
  for_each_quad<Config>(0, rows.item.num_rows, [&](int row, int column) {
    RowQuad<Config> total;
    join_in_order<Config>(total, pieces.num, pieces.are_units,
                          [&](int piece) { return load_partial<Config>(partials, pieces.slot(piece), row, column); });
    finish_row<Config>(problem, variant, rows.item, cut, rows.head, row, column, total);
  });
}

/// The same, bit for bit, at the end of a CTA's slice, when the rings are free: as many pieces as they have room for are on
/// their way at a time, where there are more than registers hold.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void merge_rows_at_end(typename Config::SharedMemory& shared, const Problem& problem,
                                                  const V& variant, const DecodeCut& cut, const Partials& partials,
                                                  const DecodeRows& rows) {
  constexpr int columns = Config::head_dim_v, quads_per_row = columns / Config::quad;
  constexpr int num_rows = Config::threads / quads_per_row;  // at a time, a quad to each thread
  constexpr auto room = static_cast<int>(sizeof(shared.ring) / (sizeof(float) * columns + sizeof(OnlineSoftmax)));
  constexpr int num_pieces = room / num_rows / Config::joined_at_once * Config::joined_at_once;  // at a time
  static_assert(num_rows > 0 && num_pieces > 0);
  auto* const outputs = reinterpret_cast<float*>(&shared.ring);                      // [num_pieces, num_rows, columns]
  auto* const softmax = reinterpret_cast<OnlineSoftmax*>(outputs + room * columns);  // [num_pieces, num_rows]

  if (rows.pieces.num <= Config::joined_at_once) return merge_rows<Config>(problem, variant, cut, partials, rows);
  const DecodePieces pieces = rows.pieces;  // out of shared memory, which would be read again after each copy
  const int all_rows = rows.item.num_rows, thread = static_cast<int>(threadIdx.x);
  const int own_row = thread / quads_per_row, column = thread % quads_per_row * Config::quad;
  for (int row_begin = 0; row_begin < all_rows; row_begin += num_rows) {
    const bool has_quad = own_row < min(num_rows, all_rows - row_begin);
    RowQuad<Config> total;
    for (int first = 0; first < pieces.num; first += num_pieces) {
      const int count = min(num_pieces, pieces.num - first);
      for (int piece = 0; has_quad && piece < count; ++piece) {
        const std::int64_t index = pieces.slot(first + piece) * Config::rows + row_begin + own_row;
        ptx::cp_async_16(&outputs[(piece * num_rows + own_row) * columns + column], partials.outputs.at(index, column),
                         true);
      }
      ptx::cp_async_commit();
      for (int i = thread; i < count * num_rows; i += Config::threads) {
        const int row = row_begin + i % num_rows;
        if (row >= all_rows) continue;
        float words[2];
        ptx::load_past_l1(words, &partials.softmax(pieces.slot(first + i / num_rows) * Config::rows + row).max);
        softmax[i] = {words[0], words[1]};
      }
      ptx::cp_async_wait<0>();
      __syncthreads();
      if (has_quad) {
        join_in_order<Config>(total, count, pieces.are_units, [&](int piece) {
          const int place = piece * num_rows + own_row;
          const auto four = *reinterpret_cast<const FourFloats*>(&outputs[place * columns + column]);
          return RowQuad<Config>{softmax[place], {four.x[0], four.x[1], four.x[2], four.x[3]}};
        });
      }
      __syncthreads();
    }
    if (has_quad) finish_row<Config>(problem, variant, rows.item, cut, rows.head, row_begin + own_row, column, total);
  }
}

/// One thread, behind a barrier that follows the stores of all others: counts this CTA in. Is it the last?
__device__ __forceinline__ bool arrive(const Partials& partials, const DecodePieces& pieces) {
  const auto last = static_cast<unsigned>(pieces.num_owners - 1);
  return ptx::increment_wrapping(partials.arrivals(pieces.first_owner), last) == last;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
