// How the warps of a CTA, and then the CTAs of a row, put their pieces of decode_sm80's output together.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
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
  const int lane = Config::octets == 1 ? lane_id() : lane_id_behind_loop();
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
    if (octet * 8 < first || octet * 8 >= first + Config::rows_per_pass) continue;
#pragma unroll
    for (int d = 0; d < Config::head_dim_v / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Coordinate place = fragment_c(lane, i);  // row: of O^T, a column of the output
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

/// Where a row goes, and what its rule adds.
template <class Config>
struct RowPlace {
  typename Config::Element* out;  // of column 0
  float* lse;                     // null: not wanted
  float prior;

  __device__ __forceinline__ void finish(const RowQuad<Config>& total, int column) const {
    using T = typename Config::Element;
    struct alignas(8) Four {
      std::uint32_t pairs[2];
    };
    const auto [scale, row_lse] = total.softmax.finish(prior);
    *reinterpret_cast<Four*>(out + column) = {ptx::pack<T>(scale * total.out[0], scale * total.out[1]),
                                              ptx::pack<T>(scale * total.out[2], scale * total.out[3])};
    if (column == 0 && lse != nullptr) *lse = row_lse;
  }
};

template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ RowPlace<Config> place_of_row(const Problem& problem, const V& variant,
                                                         const DecodeItem& item, const DecodeCut& cut, int kv_head,
                                                         int row) {
  const int packed = item.row_begin + row, group_size = static_cast<int>(cut.group_size.divisor);
  const std::int64_t token = item.first_token + cut.group_size.quotient(packed);
  const int q_head = kv_head * group_size + cut.group_size.remainder(packed);
  return {problem.out.at(token, q_head, 0), problem.lse.empty() ? nullptr : problem.lse.at(token, q_head),
          prior_of(variant, q_head)};
}

/// The pieces of a row of keys, and the tiles of partials where they are awaited, one behind the other. A slice can share
/// its first and its last row with others. A row shared by the slices f to l has the tiles from 2 f on; the next one that
/// is shared begins in slice l at the earliest, so its tiles lie behind. Where pieces are units, each of the batch has a
/// tile of its own; two tiles a slice in front of them hold the total of a row that is all the slice's own, by turns.
///
/// A CTA merges what those in front of it have left: the last one of a row all of its pieces, or, of more than 16, the
/// totals of groups that have been merged before, all groups at once; those have the tiles behind the pieces. CTAs start
/// in the order of their numbers, so that those in front are under way, whatever else runs on the GPU (as in CUB's scan).
struct DecodePieces {
  int num, mine;                // of the item's rows and this head; which of them is at hand
  int first_owner, num_owners;  // slices that hold them
  int own;                      // slice
  bool are_units;
  std::int64_t first_tile;

  __device__ __forceinline__ std::int64_t total_tile() const { return 2 * std::int64_t{own}; }
  __device__ __forceinline__ bool are_shared() const { return num_owners > 1; }
  __device__ __forceinline__ bool end_here() const { return own == first_owner + num_owners - 1; }
};

/// What of a row's pieces this CTA merges at the end of its slice.
struct DecodeMerge {
  std::int64_t first_tile, totals;  // of its pieces or group; of the totals of all groups
  int num = 0, num_groups = 1;      // tiles; 0: nothing
  int group = 0;
};

__device__ __forceinline__ DecodeMerge merge_of(const DecodePieces& pieces) {
  DecodeMerge merge{.first_tile = pieces.first_tile, .totals = pieces.first_tile + pieces.num};
  if (!pieces.are_shared()) return merge;
  if (pieces.are_units || pieces.num <= 16) {
    if (pieces.end_here()) merge.num = pieces.num;
    return merge;
  }
  const int size = 8 * ceil_div(pieces.num, 64);
  merge.num_groups = ceil_div(pieces.num, size);
  merge.group = pieces.mine / size;
  const int first = merge.group * size, last = min(first + size, pieces.num) - 1;
  merge.first_tile += first;
  if (pieces.mine == last) merge.num = last + 1 - first;
  return merge;
}

/// The rows that a piece belongs to; in shared memory, where threads that have no use for them spend no register.
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
                      .first_tile = 0};
  if (work.cuts_rows) {
    const std::int64_t end = slices.begin(own + 1), row_begin = end - cursor.left - cursor.unit;
    if (row_begin < slices.begin(own) || row_begin + num_units > end) {
      pieces.first_owner = slices.owner(row_begin);
      pieces.num_owners = slices.owner(row_begin + num_units - 1) - pieces.first_owner + 1;
    }
    pieces.first_tile = 2 * std::int64_t{cut.unit_pieces ? slices.num_slices : pieces.first_owner};
    if (cut.unit_pieces) pieces.first_tile += row_begin;
  }
  pieces.num = cut.unit_pieces ? num_units : pieces.num_owners;
  pieces.mine = cut.unit_pieces ? cursor.unit : own - pieces.first_owner;
  return {cursor.item, cursor.head, pieces};
}

/// Does fn(row, column) for four columns at a time of the rows [first, end), all threads together.
template <class Config, class Fn>
__device__ __forceinline__ void for_each_quad(int first, int end, Fn&& fn) {
  constexpr int quads = Config::head_dim_v / Config::quad;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (end - first) * quads; i += Config::threads)
    fn(first + i / quads, i % quads * Config::quad);
}

/// Have all words of a piece come? `absent` is the largest word.
template <class Config>
__device__ __forceinline__ bool is_there(const RowQuad<Config>& piece) {
  using pagedkv::detail::float_bits;
  std::uint32_t largest = max(float_bits(piece.softmax.max), float_bits(piece.softmax.sum));
#pragma unroll
  for (const float word : piece.out) largest = max(largest, float_bits(word));
  return largest != absent;
}

/// Four columns of a row in the tiles of partials from `first` on.
template <class Config>
struct PartialQuads {
  static constexpr int tile_floats = Config::rows * Config::head_dim_v;

  float* out;
  OnlineSoftmax* softmax;

  __device__ __forceinline__ PartialQuads(const AwaitedPartials& partials, std::int64_t first, int row, int column)
      : out(partials.outputs.data + first * tile_floats + row * Config::head_dim_v + column),
        softmax(partials.softmax.data + first * Config::rows + row) {}

  __device__ __forceinline__ void post(int tile, const RowQuad<Config>& piece, bool with_softmax) const {
    ptx::post(out + tile * tile_floats, piece.out);
    if (with_softmax) ptx::post(&softmax[tile * Config::rows].max, {piece.softmax.max, piece.softmax.sum});
  }
  /// What is there of a piece.
  __device__ __forceinline__ void poll(int tile, RowQuad<Config>& piece) const {
    float words[2];
    ptx::poll(words, &softmax[tile * Config::rows].max);
    ptx::poll(piece.out, out + tile * tile_floats);
    piece.softmax = {words[0], words[1]};
  }
  __device__ __forceinline__ void forget(int tile, bool with_softmax) const {
    const float none = pagedkv::detail::bits_float(absent);
    ptx::post(out + tile * tile_floats, {none, none, none, none});
    if (with_softmax) ptx::post(&softmax[tile * Config::rows].max, {none, none});
  }
};

/// The end of a piece, all warps together: join their outputs; then finish the row, or fold the piece into the total of
/// the row, or post it for the CTA that merges.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void end_piece(typename Config::SharedMemory& shared, int stage, const Problem& problem,
                                          const V& variant, const DecodeCut& cut, const AwaitedPartials& partials,
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
    const int end = min(rows.item.num_rows, first + Config::rows_per_pass);
    const bool adds_to_total = !pieces.are_shared() && pieces.mine > 0;
    const int new_total = pieces.mine % 2;
    const std::int64_t total_tile = pieces.total_tile();
    for_each_quad<Config>(first, end, [&](int row, int column) {
      RowQuad<Config> quad = join_warps<Config>(shared, stage, first, row, column);
      if (pieces.are_shared()) {
        const PartialQuads<Config> quads(partials, pieces.first_tile + pieces.mine, row, column);
        return quads.post(0, quad, column == 0);
      }
      // All pieces are this CTA's, in order, and these columns this thread's to fold.
      const PartialQuads<Config> totals(partials, total_tile, row, column);
      if (adds_to_total) {
        RowQuad<Config> total;
        do totals.poll(1 - new_total, total);
        while (!is_there(total));
        total.merge(quad);
        quad = total;
      }
      if (pieces.mine < pieces.num - 1) return totals.post(new_total, quad, column == 0);
      place_of_row<Config>(problem, variant, rows.item, cut, rows.head, row).finish(quad, column);
    });
    __syncthreads();  // `rows` may be others from here on
    if (!adds_to_total) continue;
    for_each_quad<Config>(first, end, [&](int row, int column) {
      PartialQuads<Config>(partials, total_tile, row, column).forget(1 - new_total, column == 0);
    });
  }
}

/// Merges the pieces in `num` tiles from `first_tile` on, a warp for each row, as soon as all are there; eight are looked
/// at at a time. The rows end here, or what they come to goes to one more tile. Units are folded one after the other, with
/// the bits of a CTA that owns them all.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void merge_tiles(const Problem& problem, const V& variant, const DecodeCut& cut,
                                            const AwaitedPartials& partials, const DecodeRows& rows,
                                            std::int64_t first_tile, int num, bool ends, std::int64_t total_tile) {
  constexpr int at_once = AwaitedPartials::at_once;
  const bool are_units = rows.pieces.are_units;
#pragma unroll 1
  for (int row = warp_id(); row < rows.item.num_rows; row += Config::warps) {
    const RowPlace<Config> place = place_of_row<Config>(problem, variant, rows.item, cut, rows.head, row);
#pragma unroll 1
    for (int column = Config::quad * lane_id(); column < Config::head_dim_v; column += 32 * Config::quad) {
      RowQuad<Config> total;
#pragma unroll 1
      for (int first = 0; first < num; first += at_once) {
        const PartialQuads<Config> quads(partials, first_tile + first, row, column);
        RowQuad<Config> some[at_once];
        unsigned missing;
        do {
          missing = 0;
#pragma unroll
          for (int i = 0; i < at_once; ++i) quads.poll(i, some[i]);  // behind the last one, too: all at once
#pragma unroll
          for (int i = 0; i < at_once; ++i) missing |= is_there(some[i]) ? 0u : 1u << i;
        } while ((missing & ((1u << min(num - first, at_once)) - 1)) != 0);
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          if (first + i >= num) some[i].softmax = {};
        if (are_units) {
#pragma unroll
          for (const RowQuad<Config>& unit : some) total.merge(unit);
        } else {
          total.merge(join<Config>(some));
        }
      }
      if (ends)
        place.finish(total, column);
      else
        PartialQuads<Config>(partials, total_tile, row, column).post(0, total, column == 0);
    }
    __syncwarp();  // nobody asks for these pieces any more
#pragma unroll 1
    for (int column = Config::quad * lane_id(); column < Config::head_dim_v; column += 32 * Config::quad) {
      const PartialQuads<Config> quads(partials, first_tile, row, column);
#pragma unroll 4
      for (int i = 0; i < num; ++i) quads.forget(i, column == 0);
    }
  }
}

/// All threads, at the end of the CTA's slice.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void merge_rows(const Problem& problem, const V& variant, const DecodeCut& cut,
                                           const AwaitedPartials& partials, const DecodeRows& rows,
                                           const DecodeMerge& merge) {
  std::int64_t first_tile = merge.first_tile;
  int num = merge.num;
#pragma unroll 1
  for (bool ends = merge.num_groups == 1;; ends = true) {
    merge_tiles<Config>(problem, variant, cut, partials, rows, first_tile, num, ends, merge.totals + merge.group);
    if (ends || !rows.pieces.end_here()) return;
    first_tile = merge.totals;
    num = merge.num_groups;
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
