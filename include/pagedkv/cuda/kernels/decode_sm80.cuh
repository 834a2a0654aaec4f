// Decode attention on tensor cores of sm_80 and up: K and V stream through shared memory once, one launch, no plan.
//
//   grid   as many CTAs as fit on the GPU; each takes one slice of the batch's keys (decode_slices.hpp), which it finds from the
//          lengths. A row whose keys lie in several slices is merged by the last of their CTAs to arrive
//   CTA    tiles of 16 keys a warp, side by side; warps meet only where the keys of a row end in this slice
//   warp   owns a ring of stages, 16 keys and values each: while one is computed, cp.async fills the others, across the ends
//          of rows, heads and sequences. Warps never wait for each other to load
//   lane   looks up one of the 16 keys; of the sums it holds what mma.m16n8k16 gives it
//
//   S^T [16 keys, rows] = K [16 keys, head_dim] Q^T            the packed query heads (and queries) of a KV head are the narrow
//   O^T [head_dim_v, rows] += V^T [head_dim_v, 16 keys] P^T    side of the product: 8 rows cost 8, not 16
//
// P^T leaves the first product with keys down a lane's registers and enters the second with keys across: movmatrix turns it.
// Bytes per key and KV head: 2 (head_dim + head_dim_v), read once. FlashDecoding's split of the keys, the softmax of
// arXiv:1805.02867, blocks through the table of PagedAttention (arXiv:2309.06180).
#pragma once

#include <cstdint>
#include <type_traits>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/global.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/cuda/ptx/ldmatrix.cuh"
#include "pagedkv/cuda/ptx/mma_sm80.cuh"
#include "pagedkv/cuda/ptx/movmatrix.cuh"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Everything the kernel knows at compile time. T is bf16 or f16, of Q, K, V and the output.
template <class T, int HeadDim, int HeadDimV, DecodePolicy Policy>
struct DecodeSm80Config {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "mma.sync takes bf16 and f16");
  static_assert(HeadDim % 16 == 0 && HeadDimV % 16 == 0, "mma.m16n8k16 takes head_dim in steps of 16");
  static_assert(Policy.rows % 8 == 0, "mma.m16n8k16 takes packed rows in steps of 8");

  using Element = T;
  static constexpr int head_dim = HeadDim, head_dim_v = HeadDimV;
  static constexpr int rows = Policy.rows, octets = rows / 8;
  static constexpr int warps = Policy.warps, threads = 32 * warps, stages = Policy.stages;
  static constexpr int chunk = 16, key_tile = chunk * warps;  // keys of a warp's step, of a CTA's
  static constexpr int ctas_per_sm = Policy.ctas_per_sm;
  static constexpr int quad = 4;  // columns of the output that a thread merges at a time

  using KeyTile = SwizzledTile<HeadDim>;
  using ValueTile = SwizzledTile<HeadDimV>;
  struct Stage {
    alignas(128) T keys[chunk * HeadDim];     // KeyTile [chunk, head_dim]
    alignas(128) T values[chunk * HeadDimV];  // ValueTile [chunk, head_dim_v]
  };
  // Where warps meet, the stage that each has just read holds its unnormalised output, as many rows as fit.
  static constexpr int rows_per_pass = min(rows, static_cast<int>(sizeof(Stage) / (4 * HeadDimV)) / 8 * 8);
  static constexpr int max_runs = 1024;  // of items, whose units are summed by one warp each

  struct SharedMemory {
    Stage ring[warps][stages];
    OnlineSoftmax softmax[warps][rows];  // where warps meet
    bool is_last;                        // to arrive
  };
  static_assert(sizeof(Stage[warps][stages]) >= max_runs * sizeof(std::int64_t),
                "the ring holds the sums of runs first");

  // What a lane holds of its warp's 16 keys and of all rows; columns 2 (lane % 4) and the next of each octet are its rows.
  using Queries = std::uint32_t[octets][HeadDim / 16][2];  // B fragments of Q^T [head_dim, rows]
  using Scores = float[octets][4];                         // C fragments of S^T [16 keys, rows]
  using Weights = std::uint32_t[octets][2];                // B fragments of P^T [16 keys, rows]
  using Output = float[HeadDimV / 16][octets][4];          // C fragments of O^T [head_dim_v, rows]
};

namespace detail {

/// The part of the batch's keys that one CTA attends to, and who attends to the rest of its first and last row.
struct DecodeSlice {
  Slices slices;
  bool cuts_rows = false;  // may a row's keys lie in several slices?
  std::int64_t begin = 0;  // linear unit
  std::int64_t left = 0;   // units from there
  std::int64_t item = 0;   // of the first unit
  int head = 0, unit = 0;
};

template <class Problem, AttentionVariant V>
__device__ __forceinline__ DecodeItem load_item(const Problem& problem, const V& variant, const DecodeCut& cut,
                                                std::int64_t index) {
  const int sequence = static_cast<int>(index / cut.tiles_per_seq);
  return make_item(cut, variant, index, problem.tables.q_len(sequence), problem.tables.kv_len(sequence));
}

/// Items are summed in runs: 32 items, more where there would be too many runs.
template <class Config>
__device__ __forceinline__ std::int64_t items_per_run(const DecodeCut& cut) {
  return 32 * ceil_div(cut.num_items(), std::int64_t{32 * Config::max_runs});
}

/// Where a linear unit lies. All warps find the same.
template <class Config, class Problem, AttentionVariant V>
__device__ DecodeSlice locate(const Problem& problem, const V& variant, const DecodeCut& cut,
                              const std::int64_t* run_units, std::int64_t target) {
  const std::int64_t heads = cut.kv_heads, run_items = items_per_run<Config>(cut);
  std::int64_t before = 0, item = 0;  // units of one head before `item`
  for (int run = 0; (before + run_units[run]) * heads <= target; ++run, item += run_items) before += run_units[run];
  for (;; item += 32) {
    const std::int64_t mine = item + lane_id();
    const int units = mine < cut.num_items() ? load_item(problem, variant, cut, mine).units.size() : 0;
    std::int64_t up_to = units;  // inclusive sum over lanes
    for (int step = 1; step < 32; step *= 2) {
      const std::int64_t other = __shfl_up_sync(~0u, up_to, step);
      if (lane_id() >= step) up_to += other;
    }
    const unsigned reached = __ballot_sync(~0u, (before + up_to) * heads > target);
    if (reached == 0) {
      before += __shfl_sync(~0u, up_to, 31);
      continue;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1;
    const int row_units = __shfl_sync(~0u, units, lane);
    const std::int64_t rest = target - (before + __shfl_sync(~0u, up_to, lane) - row_units) * heads;
    DecodeSlice place;
    place.begin = target;
    place.item = item + lane;
    place.head = static_cast<int>(rest / row_units);
    place.unit = static_cast<int>(rest % row_units);
    place.left = row_units - place.unit;  // of this row and head
    return place;
  }
}

/// This CTA's slice, from lengths alone.
template <class Config, class Problem, AttentionVariant V>
__device__ DecodeSlice find_slice(typename Config::SharedMemory& shared, const Problem& problem, const V& variant,
                                  const DecodeCut& cut) {
  auto* const run_units = reinterpret_cast<std::int64_t*>(&shared.ring);  // [num_runs], before anything is fetched
  const std::int64_t run_items = items_per_run<Config>(cut);
  const int num_runs = static_cast<int>(ceil_div(cut.num_items(), run_items));
  for (int run = warp_id(); run < num_runs; run += Config::warps) {
    std::int64_t units = 0;
    const std::int64_t end = min((run + 1) * run_items, cut.num_items());
    for (std::int64_t item = run * run_items + lane_id(); item < end; item += 32)
      units += load_item(problem, variant, cut, item).units.size();
    for (int step = 16; step > 0; step /= 2) units += __shfl_xor_sync(~0u, units, step);
    if (lane_id() == 0) run_units[run] = units;
  }
  __syncthreads();

  std::int64_t num_units = 0;
  for (int run = 0; run < num_runs; ++run) num_units += run_units[run];
  const Slices slices = make_slices(cut, num_units * cut.kv_heads);
  const int slice = static_cast<int>(blockIdx.x);
  DecodeSlice mine;
  if (slice < slices.num_slices) {
    mine = locate<Config>(problem, variant, cut, run_units, slices.begin(slice));
    std::int64_t end = slices.begin(slice + 1);
    mine.cuts_rows = may_cut_rows(cut, slices);
    if (!mine.cuts_rows) {  // both ends move up to the end of a row
      const auto round_up_to_row = [&](const DecodeSlice& place) {
        return place.unit == 0 ? place.begin : place.begin + place.left;
      };
      if (end < slices.num_units) end = round_up_to_row(locate<Config>(problem, variant, cut, run_units, end));
      const std::int64_t begin = round_up_to_row(mine);
      if (begin < end && begin != mine.begin) mine = locate<Config>(problem, variant, cut, run_units, begin);
      mine.begin = begin;
      mine.cuts_rows = false;
    }
    mine.left = end - mine.begin;
    mine.slices = slices;
  }
  __syncthreads();  // the ring is free
  return mine;
}

/// Walks over a slice, one tile of keys (key_tile) at a time.
struct DecodeCursor {
  DecodeItem item;
  std::int64_t index;     // of the item
  std::int64_t position;  // of the unit, linear
  std::int64_t left;      // units of the slice from here
  int head, unit;         // unit: of this item and head
  int key;                // where the tile begins
};

__device__ __forceinline__ int tile_key(const DecodeCursor& cursor, const DecodeCut& cut) {
  return cursor.item.units[cursor.unit] * cut.unit_keys;
}

template <class Problem, AttentionVariant V>
__device__ __forceinline__ DecodeCursor start(const DecodeSlice& slice, const Problem& problem, const V& variant,
                                              const DecodeCut& cut) {
  DecodeCursor cursor{{}, slice.item, slice.begin, slice.left, slice.head, slice.unit, 0};
  cursor.item = load_item(problem, variant, cut, cursor.index);
  cursor.key = tile_key(cursor, cut);
  return cursor;
}

/// Is the next tile one of the same unit?
template <class Config>
__device__ __forceinline__ bool unit_goes_on(const DecodeCursor& cursor, const DecodeCut& cut) {
  const int next = cursor.key + Config::key_tile;
  return next % cut.unit_keys != 0 && next < cursor.item.kv_len;
}

template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void advance(DecodeCursor& cursor, const Problem& problem, const V& variant,
                                        const DecodeCut& cut) {
  if (unit_goes_on<Config>(cursor, cut)) {
    cursor.key += Config::key_tile;
    return;
  }
  ++cursor.position;
  --cursor.left;
  if (++cursor.unit == cursor.item.units.size()) {
    cursor.unit = 0;
    if (++cursor.head == cut.kv_heads && cursor.left > 0) {
      cursor.head = 0;
      do cursor.item = load_item(problem, variant, cut, ++cursor.index);
      while (cursor.item.units.size() == 0);
    }
  }
  cursor.key = tile_key(cursor, cut);
}

/// The keys of a warp's step.
template <class Config>
__device__ __forceinline__ KeyRange chunk_of(const DecodeCursor& cursor) {
  const int begin = cursor.key + warp_id() * Config::chunk;
  return {begin, begin + Config::chunk};
}

/// Fills a warp's ring ahead of the sums. The table entry of a step is read one step before its keys are fetched.
template <class Config, class Problem, AttentionVariant V>
struct DecodeLoader {
  const Problem& problem;
  const V& variant;
  const DecodeCut& cut;
  DecodeCursor cursor;
  PagedRow row;

  __device__ __forceinline__ DecodeLoader(const DecodeSlice& slice, const Problem& problem_, const V& variant_,
                                          const DecodeCut& cut_)
      : problem(problem_), variant(variant_), cut(cut_), cursor(start(slice, problem_, variant_, cut_)) {
    look_up();
  }

  /// A key that nobody can see, or whose block is gone, is dead: its table entry may hold any bits.
  __device__ __forceinline__ void look_up() {
    row = {};
    const int key = chunk_of<Config>(cursor).begin + lane_id() % Config::chunk;
    if (cursor.left <= 0 || !cursor.item.sees({key, key + 1})) return;
    const int block_size = problem.kv.block_size();
    row.block = problem.tables.block_ids(cursor.item.sequence, key / block_size);
    row.slot = key % block_size;
    row.live = row.block >= 0 && row.block < problem.kv.num_blocks();
  }

  /// Starts the copies of the next step, K and V in a group each; the groups of a step that has no keys are empty.
  __device__ __forceinline__ void fetch(typename Config::Stage& stage) {
    const bool live = cursor.left > 0 && cursor.item.sees(chunk_of<Config>(cursor));
    if (live) fetch_rows<typename Config::KeyTile, Config::chunk, 8>(stage.keys, 0, problem.kv.k, cursor.head, row);
    ptx::cp_async_commit();
    if (live) fetch_rows<typename Config::ValueTile, Config::chunk, 8>(stage.values, 0, problem.kv.v, cursor.head, row);
    ptx::cp_async_commit();
    if (cursor.left <= 0) return;
    advance<Config>(cursor, problem, variant, cut);
    look_up();
  }
};

/// What a lane knows of its rows: two of each octet.
template <class Config>
struct LaneRows {
  int query_position[Config::octets][2];
  int q_head[Config::octets][2];
  bool live[Config::octets][2];
};

template <class Config>
__device__ __forceinline__ LaneRows<Config> lane_rows(const DecodeItem& item, int kv_head, int group_size) {
  LaneRows<Config> rows;
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = octet * 8 + fragment_c(lane_id(), j).column, packed = item.row_begin + row;
      rows.live[octet][j] = row < item.num_rows;
      rows.query_position[octet][j] = packed / group_size + item.offset;
      rows.q_head[octet][j] = kv_head * group_size + packed % group_size;
    }
  }
  return rows;
}

/// Q^T of the item's rows, straight into registers; rows that do not exist are zeros.
template <class Config, class Problem>
__device__ __forceinline__ void load_queries(typename Config::Queries& queries, const Problem& problem,
                                             const DecodeItem& item, int kv_head) {
  const int group_size = problem.group_size();
  const std::int64_t first_token = problem.tables.query_begin(item.sequence);
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
    const Coordinate place = fragment_b(lane_id(), 0);  // row of Q^T: a column of Q
    const int row = octet * 8 + place.column, packed = item.row_begin + row;
    const bool live = row < item.num_rows;
    const auto* const q = problem.q.at(first_token + (live ? packed / group_size : 0),
                                       kv_head * group_size + (live ? packed % group_size : 0), place.row);
#pragma unroll
    for (int d = 0; d < Config::head_dim / 16; ++d) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        queries[octet][d][half] = live ? *reinterpret_cast<const std::uint32_t*>(q + 16 * d + 8 * half) : 0u;
    }
  }
}

/// One piece of the rows of an item, as far as one warp has come; sums are the lane's own share.
template <class Config>
struct DecodeState {
  OnlineSoftmax softmax[Config::octets][2];
  typename Config::Output output;  // [head_dim_v / 16][octets][4]
};

/// S^T = K Q^T for the 16 keys of a stage, in two chains of products.
template <class Config>
__device__ __forceinline__ void score(typename Config::Scores& scores, const typename Config::Queries& queries,
                                      const typename Config::Stage& stage) {
  using Tile = typename Config::KeyTile;
  const Coordinate k_row = quarters_down(lane_id());
  typename Config::Scores odd = {};
#pragma unroll
  for (auto& fragment : scores) fragment[0] = fragment[1] = fragment[2] = fragment[3] = 0.f;
#pragma unroll
  for (int d = 0; d < Config::head_dim / 16; ++d) {
    std::uint32_t k[4];
    ptx::ldmatrix_x4(k, &stage.keys[Tile::offset(k_row.row, 16 * d + k_row.column)]);
#pragma unroll
    for (int octet = 0; octet < Config::octets; ++octet)
      ptx::mma_m16n8k16<typename Config::Element>(d % 2 == 0 ? scores[octet] : odd[octet], k, queries[octet][d][0],
                                                  queries[octet][d][1]);
  }
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[octet][i] += odd[octet][i];
}

/// Products become logits; what a row may not see becomes -inf, whatever its bits were. The rule is asked only about
/// rows and keys that exist.
template <class Config, AttentionVariant V>
__device__ __forceinline__ void apply_rule(typename Config::Scores& scores, const V& variant, float scale,
                                           const LaneRows<Config>& rows, const DecodeItem& item, int first_key) {
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + fragment_c(lane_id(), i).row;
      const Position position{rows.query_position[octet][i % 2], key, rows.q_head[octet][i % 2], item.sequence};
      const bool visible = rows.live[octet][i % 2] && item.sees({key, key + 1}) && variant.visible(position);
      scores[octet][i] = visible ? variant.logit(scores[octet][i] * scale, position) : -infinity;
    }
  }
}

/// Online softmax over 16 keys: logits become weights, rounded for the tensor cores; the output so far follows the
/// maximum.
template <class Config>
__device__ __forceinline__ void soften(typename Config::Weights& weights, const typename Config::Scores& logits,
                                       DecodeState<Config>& state) {
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
    float scale[2], weight[4];
    bool rises = false;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float top = max(logits[octet][j], logits[octet][2 + j]);
      for (int step = 4; step < 32; step *= 2) top = max(top, __shfl_xor_sync(~0u, top, step));
      OnlineSoftmax& softmax = state.softmax[octet][j];
      rises |= top > softmax.max;
      scale[j] = softmax.raise(top);
      weight[j] = softmax.weight(logits[octet][j]);
      weight[2 + j] = softmax.weight(logits[octet][2 + j]);
      softmax.sum += weight[j] + weight[2 + j];
    }
    if (__any_sync(~0u, rises)) {  // elsewhere every factor is 1, or its row still empty
#pragma unroll
      for (auto& dims : state.output)
#pragma unroll
        for (int i = 0; i < 4; ++i) dims[octet][i] *= scale[i % 2];
    }
    using T = typename Config::Element;
    weights[octet][0] = ptx::movmatrix_transposed(ptx::pack<T>(weight[0], weight[1]));
    weights[octet][1] = ptx::movmatrix_transposed(ptx::pack<T>(weight[2], weight[3]));
  }
}

/// O^T += V^T P^T for the 16 keys of a stage.
template <class Config>
__device__ __forceinline__ void accumulate(typename Config::Output& output, const typename Config::Weights& weights,
                                           const typename Config::Stage& stage) {
  using Tile = typename Config::ValueTile;
  const Coordinate v_row = quarters_across(lane_id());  // transposed on its way: A of V^T
#pragma unroll
  for (int d = 0; d < Config::head_dim_v / 16; ++d) {
    std::uint32_t v[4];
    ptx::ldmatrix_x4_transposed(v, &stage.values[Tile::offset(v_row.row, 16 * d + v_row.column)]);
#pragma unroll
    for (int octet = 0; octet < Config::octets; ++octet)
      ptx::mma_m16n8k16<typename Config::Element>(output[d][octet], v, weights[octet][0], weights[octet][1]);
  }
}

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

/// One row's four columns, of all warps, merged in the order of the warps.
template <class Config>
__device__ __forceinline__ RowQuad<Config> join_warps(const typename Config::SharedMemory& shared, int stage, int first,
                                                      int row, int column) {
  RowQuad<Config> total;
#pragma unroll
  for (int warp = 0; warp < Config::warps; ++warp) {
    RowQuad<Config> piece;
    piece.softmax = shared.softmax[warp][row];
    const auto* const exchange = reinterpret_cast<const float*>(&shared.ring[warp][stage]);
#pragma unroll
    for (int c = 0; c < Config::quad; ++c) piece.out[c] = exchange[exchange_offset<Config>(row - first, column + c)];
    total.merge(piece);
  }
  return total;
}

template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void finish_row(const Problem& problem, const V& variant, const DecodeItem& item,
                                           int kv_head, int row, int column, const RowQuad<Config>& total) {
  using T = typename Config::Element;
  struct alignas(8) Four {
    std::uint32_t pairs[2];
  };
  const int packed = item.row_begin + row, group_size = problem.group_size();
  const std::int64_t token = problem.tables.query_begin(item.sequence) + packed / group_size;
  const int q_head = kv_head * group_size + packed % group_size;
  const auto [scale, lse] = total.softmax.finish(prior_of(variant, q_head));
  *reinterpret_cast<Four*>(problem.out.at(token, q_head, column)) = {
      ptx::pack<T>(scale * total.out[0], scale * total.out[1]),
      ptx::pack<T>(scale * total.out[2], scale * total.out[3])};
  if (column == 0 && !problem.lse.empty()) problem.lse(token, q_head) = lse;
}

/// The pieces of one row of keys, and where they wait for each other.
struct DecodePieces {
  int num = 1, mine = 0;                // of the item's rows and this head; which of them is at hand
  int first_owner = 0, num_owners = 1;  // slices that hold them
  std::int64_t first_position = 0;      // linear unit at which they begin
  bool are_units = false;
  std::int64_t num_slices = 0;

  /// The tile of partials that a piece goes to. Of a slice, only its first and its last row may have pieces elsewhere;
  /// where pieces are units, each slice also has a place for the total of the row it works on.
  __device__ __forceinline__ std::int64_t slot(int piece) const {
    if (are_units) return num_slices + first_position + piece;
    return 2 * std::int64_t{first_owner + piece} + (piece == 0 ? 1 : 0);
  }
};

__device__ __forceinline__ DecodePieces pieces_at(const DecodeCursor& cursor, const DecodeSlice& slice,
                                                  const DecodeCut& cut) {
  const int own = static_cast<int>(blockIdx.x), num_units = cursor.item.units.size();
  int last_owner = own;
  DecodePieces pieces{.first_owner = own, .first_position = cursor.position - cursor.unit};
  if (slice.cuts_rows) {
    pieces.first_owner = slice.slices.owner(pieces.first_position);
    last_owner = slice.slices.owner(pieces.first_position + num_units - 1);
  }
  pieces.num_owners = last_owner - pieces.first_owner + 1;
  pieces.are_units = cut.unit_pieces;
  pieces.num_slices = slice.slices.num_slices;
  pieces.num = cut.unit_pieces ? num_units : pieces.num_owners;
  pieces.mine = cut.unit_pieces ? cursor.unit : own - pieces.first_owner;
  return pieces;
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
  struct alignas(16) Four {
    float x[4];
  };
  const std::int64_t index = slot * Config::rows + row;
  *reinterpret_cast<Four*>(partials.outputs.at(index, column)) = {piece.out[0], piece.out[1], piece.out[2],
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

/// All pieces of a row, in order; several are on their way at a time.
template <class Config>
__device__ __forceinline__ RowQuad<Config> join_pieces(const Partials& partials, const DecodePieces& pieces, int row,
                                                       int column) {
  constexpr int in_flight = 8;
  RowQuad<Config> total;
  for (int first = 0; first < pieces.num; first += in_flight) {
    RowQuad<Config> some[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i)
      if (first + i < pieces.num) some[i] = load_partial<Config>(partials, pieces.slot(first + i), row, column);
#pragma unroll
    for (int i = 0; i < in_flight; ++i) total.merge(some[i]);
  }
  return total;
}

/// The end of a piece, all warps together: join their outputs; then finish the row, or fold the piece into the total of
/// the row, or leave it to whichever CTA comes last.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void end_piece(typename Config::SharedMemory& shared, int stage, const Problem& problem,
                                          const V& variant, const Partials& partials, const DecodeCursor& cursor,
                                          const DecodePieces& pieces, DecodeState<Config>& state) {
  const DecodeItem& item = cursor.item;
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
    for_each_quad<Config>(first, min(item.num_rows, first + Config::rows_per_pass), [&](int row, int column) {
      RowQuad<Config> quad = join_warps<Config>(shared, stage, first, row, column);
      if (pieces.num_owners > 1) return store_partial<Config>(partials, pieces.slot(pieces.mine), row, column, quad);
      // All pieces are this CTA's, in order, and this thread's to fold.
      const std::int64_t total_slot = blockIdx.x;
      if (pieces.mine > 0) {
        RowQuad<Config> total = load_partial<Config>(partials, total_slot, row, column);
        total.merge(quad);
        quad = total;
      }
      if (pieces.mine < pieces.num - 1) return store_partial<Config>(partials, total_slot, row, column, quad);
      finish_row<Config>(problem, variant, item, cursor.head, row, column, quad);
    });
    __syncthreads();
  }
}

/// One warp's step: 16 keys against all rows.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void attend_chunk(DecodeState<Config>& state, const typename Config::Queries& queries,
                                             const LaneRows<Config>& rows, const typename Config::Stage& stage,
                                             const Problem& problem, const V& variant, const DecodeItem& item,
                                             int first_key) {
  constexpr int later_groups = 2 * (Config::stages - 1);  // of the stages behind this one
  typename Config::Scores scores;
  typename Config::Weights weights;
  ptx::cp_async_wait<later_groups + 1>();
  __syncwarp();  // the keys have landed for all lanes
  score<Config>(scores, queries, stage);
  apply_rule<Config>(scores, variant, problem.scale, rows, item, first_key);
  soften<Config>(weights, scores, state);
  ptx::cp_async_wait<later_groups>();
  __syncwarp();  // the values, too
  accumulate<Config>(state.output, weights, stage);
}

}  // namespace detail

/// Grid: cut.max_slices CTAs at most; those without a slice end at once.
template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::threads, Config::ctas_per_sm)
    paged_decode_sm80_kernel(const __grid_constant__ Problem problem, const __grid_constant__ V variant,
                             const __grid_constant__ DecodeCut cut, const __grid_constant__ Partials partials) {
  using namespace detail;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(shared_bytes);
  ptx::launch_dependents();
  const DecodeSlice slice = find_slice<Config>(shared, problem, variant, cut);
  if (slice.left <= 0) return ptx::wait_for_previous_kernel();  // or this grid might end before the one in front
  DecodeLoader<Config, Problem, V> loader(slice, problem, variant, cut);
  auto& ring = shared.ring[warp_id()];
  ptx::wait_for_previous_kernel();
  for (int stage = 0; stage < Config::stages; ++stage) loader.fetch(ring[stage]);

  int stage = 0;
  for (DecodeCursor cursor = start(slice, problem, variant, cut); cursor.left > 0;) {
    const DecodePieces pieces = pieces_at(cursor, slice, cut);
    const LaneRows<Config> rows = lane_rows<Config>(cursor.item, cursor.head, cut.group_size);
    typename Config::Queries queries;
    load_queries<Config>(queries, problem, cursor.item, cursor.head);
    DecodeState<Config> state = {};

    bool row_ends = false;  // as far as this slice goes
    for (;; stage = (stage + 1) % Config::stages) {
      const KeyRange chunk = chunk_of<Config>(cursor);
      if (cursor.item.sees(chunk))
        attend_chunk<Config>(state, queries, rows, ring[stage], problem, variant, cursor.item, chunk.begin);
      const bool unit_ends = !unit_goes_on<Config>(cursor, cut);
      row_ends = unit_ends && (cursor.left == 1 || cursor.unit + 1 == cursor.item.units.size());
      if (row_ends || (unit_ends && cut.unit_pieces)) break;
      __syncwarp();  // no lane still reads the stage
      loader.fetch(ring[stage]);
      advance<Config>(cursor, problem, variant, cut);
    }
    end_piece<Config>(shared, stage, problem, variant, partials, cursor, pieces, state);
    loader.fetch(ring[stage]);
    stage = (stage + 1) % Config::stages;

    if (row_ends && pieces.num_owners > 1 &&
        is_last_to_arrive(partials.arrivals(pieces.first_owner), pieces.num_owners, shared.is_last)) {
      for_each_quad<Config>(0, cursor.item.num_rows, [&](int row, int column) {
        const RowQuad<Config> total = join_pieces<Config>(partials, pieces, row, column);
        finish_row<Config>(problem, variant, cursor.item, cursor.head, row, column, total);
      });
    }
    advance<Config>(cursor, problem, variant, cut);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
