// Decode attention on tensor cores of sm_80 and up: K and V stream through shared memory once, one launch, no plan.
//
//   grid   as many CTAs as fit on the GPU; each takes one slice of the batch's keys (decode_slices.hpp), which it finds from the
//          lengths. A row whose keys lie in several slices is merged by the CTA that holds the last of them
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
#include "pagedkv/cuda/kernels/decode_merge.cuh"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/decode_walk.cuh"
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
  static constexpr int later_groups = 2 * (stages - 1);       // of copies, of the stages behind the one at hand
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
  static constexpr int max_runs = 128;  // of items, whose units are summed by one warp each

  struct SharedMemory {
    Stage ring[warps][stages];
    alignas(
        128) T queries[2][rows * HeadDim];  // KeyTile [rows, head_dim], of the row at hand and of the next, by turns
    OnlineSoftmax softmax[warps][rows];     // where warps meet
    detail::DecodeWork<max_runs> work;
    detail::DecodeRows at_work, to_merge;  // rows of the piece at hand; rows of which other CTAs have pieces, too
    detail::DecodeMerge merge;             // of these, at the end
  };

  // What a lane holds of its warp's 16 keys and of all rows; columns 2 (lane % 4) and the next of each octet are its rows.
  // Two steps of 16 columns: b0, b1 of the first, then of the second. Of 16 rows registers have no room for all.
  using QueryPair = std::uint32_t[4];
  static constexpr int query_pairs = ceil_div(HeadDim / 16, 2);
  static constexpr bool keeps_queries = octets == 1 && HeadDim <= 128;
  using Queries = QueryPair[keeps_queries ? query_pairs : 1];  // B fragments of Q^T [head_dim, rows]
  using Scores = float[octets][4];                             // C fragments of S^T [16 keys, rows]
  using Weights = std::uint32_t[octets][2];                    // B fragments of P^T [16 keys, rows]
  using Output = float[HeadDimV / 16][octets][4];              // C fragments of O^T [head_dim_v, rows]

  // What a lane knows of its rows: two of each octet. Rows that do not exist stand in for the first one, and are never
  // stored.
  struct LaneRows {
    int query_position[octets][2];
    int q_head[octets][2];
  };
};

namespace detail {

template <class Config>
__device__ __forceinline__ typename Config::LaneRows lane_rows(const DecodeItem& item, int kv_head,
                                                               const Divisor& group_size) {
  typename Config::LaneRows rows;
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = octet * 8 + fragment_c(lane_id(), j).column;
      const int packed = item.row_begin + (row < item.num_rows ? row : 0);
      rows.query_position[octet][j] = group_size.quotient(packed) + item.offset;
      rows.q_head[octet][j] = kv_head * static_cast<int>(group_size.divisor) + group_size.remainder(packed);
    }
  }
  return rows;
}

/// Starts copying the item's rows of Q for a head, all threads together; rows that do not exist become zeros.
template <class Config, class Problem>
__device__ __forceinline__ void fetch_queries(typename Config::Element* tile, const Problem& problem,
                                              const DecodeItem& item, int kv_head, const Divisor& group_size) {
  using Tile = typename Config::KeyTile;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Config::rows * Tile::chunks_per_row; i += Config::threads) {
    const int row = i / Tile::chunks_per_row, column = i % Tile::chunks_per_row * Tile::chunk;
    const bool live = row < item.num_rows;
    const int packed = item.row_begin + (live ? row : 0);
    const auto* const from =
        problem.q.at(item.first_token + group_size.quotient(packed),
                     kv_head * static_cast<int>(group_size.divisor) + group_size.remainder(packed), column);
    ptx::cp_async_16(&tile[Tile::offset(row, column)], from, live);
  }
}

/// Two steps of Q^T from where fetch_queries() has put it. An odd last step comes twice.
template <class Config>
__device__ __forceinline__ void load_query_pair(typename Config::QueryPair& pair,
                                                const typename Config::Element* queries, int octet, int step) {
  using Tile = typename Config::KeyTile;
  const int row = lane_id() % 8, half = lane_id() / 8 % 2,
            second = step + 1 < Config::head_dim / 16 ? lane_id() / 16 : 0;
  ptx::ldmatrix_x4(pair, &queries[Tile::offset(octet * 8 + row, 16 * (step + second) + 8 * half)]);
}

/// S^T = K Q^T for the 16 keys of a stage, in two chains of products that need not wait for each other. So for any number of
/// rows: the bits of a row must not depend on how many stand beside it.
template <class Config>
__device__ __forceinline__ void score(typename Config::Scores& scores, const typename Config::Queries& kept,
                                      const typename Config::Element* queries, const typename Config::Stage& stage) {
  using Tile = typename Config::KeyTile;
  using T = typename Config::Element;
  const Coordinate k_place = quarters_down(lane_id());
  const int place = Tile::offset(k_place.row, k_place.column);
  float sums[Config::octets][2][4] = {};
#pragma unroll
  for (int step = 0; step < Config::head_dim / 16; step += 2) {
    const bool has_second = step + 1 < Config::head_dim / 16;
    std::uint32_t k[2][4];
    ptx::ldmatrix_x4(k[0], &stage.keys[Tile::right_of(place, 16 * step)]);
    if (has_second) ptx::ldmatrix_x4(k[1], &stage.keys[Tile::right_of(place, 16 * step + 16)]);
#pragma unroll
    for (int octet = 0; octet < Config::octets; ++octet) {
      typename Config::QueryPair pair;
      if constexpr (Config::keeps_queries) {
#pragma unroll
        for (int i = 0; i < 4; ++i) pair[i] = kept[step / 2][i];
      } else {
        load_query_pair<Config>(pair, queries, octet, step);
      }
      ptx::mma_m16n8k16<T>(sums[octet][0], k[0], pair[0], pair[1]);
      if (has_second) ptx::mma_m16n8k16<T>(sums[octet][1], k[1], pair[2], pair[3]);
    }
  }
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[octet][i] = sums[octet][0][i] + sums[octet][1][i];
}

/// Products become logits; what a row may not see becomes -inf, whatever its bits were. The rule is asked only about
/// rows and keys that exist: a key behind the last one stands in for it.
template <class Config, AttentionVariant V>
__device__ __forceinline__ void apply_rule(typename Config::Scores& scores, const V& variant, float scale,
                                           const typename Config::LaneRows& rows, const DecodeItem& item,
                                           int first_key) {
#pragma unroll
  for (int octet = 0; octet < Config::octets; ++octet) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + fragment_c(lane_id(), i).row;
      const Position position{rows.query_position[octet][i % 2], min(key, item.kv_len - 1), rows.q_head[octet][i % 2],
                              item.sequence};
      const bool visible = static_cast<int>(key < item.kv_len) & static_cast<int>(variant.visible(position));
      const float logit = variant.logit(scores[octet][i] * scale, position);
      scores[octet][i] = visible ? logit : -infinity;
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
  const Coordinate v_place = quarters_across(lane_id());  // transposed on its way: A of V^T
  const int place = Tile::offset(v_place.row, v_place.column);
#pragma unroll
  for (int d = 0; d < Config::head_dim_v / 16; ++d) {
    std::uint32_t v[4];
    ptx::ldmatrix_x4_transposed(v, &stage.values[Tile::right_of(place, 16 * d)]);
#pragma unroll
    for (int octet = 0; octet < Config::octets; ++octet)
      ptx::mma_m16n8k16<typename Config::Element>(output[d][octet], v, weights[octet][0], weights[octet][1]);
  }
}

/// One warp's step: 16 keys against all rows.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void attend_chunk(DecodeState<Config>& state, const typename Config::Queries& kept,
                                             const typename Config::Element* queries,
                                             const typename Config::LaneRows& rows, const typename Config::Stage& stage,
                                             const Problem& problem, const V& variant, const DecodeItem& item,
                                             int first_key) {
  typename Config::Scores scores;
  typename Config::Weights weights;
  ptx::cp_async_wait<Config::later_groups + 1>();
  __syncwarp();  // the keys have landed for all lanes
  score<Config>(scores, kept, queries, stage);
  apply_rule<Config>(scores, variant, problem.scale, rows, item, first_key);
  soften<Config>(weights, scores, state);
  ptx::cp_async_wait<Config::later_groups>();
  __syncwarp();  // the values have landed for all lanes
  accumulate<Config>(state.output, weights, stage);
}

/// This grid must not end before the one in front: whoever waits for this one counts on both. Beside a kernel that may
/// run for long yet, only the last CTA waits, behind which nobody asks for its place.
__device__ __forceinline__ void leave(const DecodeCut& cut) {
  if (!cut.beside_previous || blockIdx.x + 1 == gridDim.x) ptx::wait_for_previous_kernel();
}

}  // namespace detail

/// Grid: cut.max_slices CTAs; those without a slice end at once.
template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::threads, Config::ctas_per_sm)
    paged_decode_sm80_kernel(const __grid_constant__ Problem problem, const __grid_constant__ V variant,
                             const __grid_constant__ DecodeCut cut, const __grid_constant__ DecodePools pools,
                             const __grid_constant__ AwaitedPartials partials) {
  using namespace detail;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(shared_bytes);
  ptx::launch_dependents();
  if (threadIdx.x == 0) shared.merge.num = 0;
  find_work<Config>(shared, problem, variant, cut);
  auto& work = shared.work;
  auto& ring = shared.ring[warp_id()];
  DecodeCursor cursor = enter_slice<Config>(work, problem, variant, cut);
  if (cursor.left == 0) return leave(cut);
  const bool cuts_rows = work.cuts_rows;
  DecodeLoader<Config> loader{cursor};
  loader.start_run(problem, cut);
  loader.look_up(problem, cut);
  // Of the piece that begins at the cursor; the first one's while the kernel in front still runs.
  const auto note_piece = [&] {
    if (threadIdx.x != 0) return;
    shared.at_work = rows_at(cursor, work, cut);
    const DecodeMerge merge = merge_of(shared.at_work.pieces);
    if (merge.num == 0) return;
    shared.to_merge = shared.at_work;  // only of the slice's first row: its keys began earlier
    shared.merge = merge;
  };
  note_piece();
  if (!cut.beside_previous) ptx::wait_for_previous_kernel();
  fetch_queries<Config>(shared.queries[0], problem, cursor.item, cursor.head, cut.group_size);
  ptx::cp_async_commit();
  for (int stage = 0; stage < Config::stages; ++stage) {
    if (stage > 0) loader.look_up(problem, cut);
    loader.fetch(ring[stage], problem, variant, cut, pools, cuts_rows);
  }

  ptx::cp_async_wait<2 * Config::stages>();
  __syncthreads();  // the first queries have landed for all warps

  typename Config::LaneRows rows;
  typename Config::Queries kept;
  const typename Config::Element* queries = nullptr;
  DecodeState<Config> state;
  bool piece_begins = true, row_begins = true;
  bool has_queries = true;  // of the next row, or are they on their way?
  int num_rows = 0, steps_since_fetch = 0, stage = 0;
  do {
    loader.look_up(problem, cut);
    if (piece_begins) {
      if (row_begins) {
        rows = lane_rows<Config>(cursor.item, cursor.head, cut.group_size);
        queries = shared.queries[num_rows % 2];
        if (!has_queries) {  // of an item behind one without work: nobody has asked for them
          fetch_queries<Config>(shared.queries[num_rows % 2], problem, cursor.item, cursor.head, cut.group_size);
          ptx::cp_async_commit();
          ptx::cp_async_wait<0>();
          __syncthreads();
        }
        if constexpr (Config::keeps_queries) {
#pragma unroll
          for (int pair = 0; pair < Config::query_pairs; ++pair)
            load_query_pair<Config>(kept[pair], queries, 0, 2 * pair);
        }
        ++num_rows;
        steps_since_fetch = 0;
        has_queries = true;
        auto* const next_queries = shared.queries[num_rows % 2];
        if (cuts_rows && cursor.left <= cursor.item.units.size() - cursor.unit) {
          // The slice has no other row.
        } else if (cursor.head + 1 < cut.kv_heads) {
          fetch_queries<Config>(next_queries, problem, cursor.item, cursor.head + 1, cut.group_size);
        } else {
          const DecodeItem next = make_item(cut, variant, cursor.index + 1, cursor.next);
          has_queries = next.units.size() > 0;
          if (has_queries) fetch_queries<Config>(next_queries, problem, next, 0, cut.group_size);
        }
      }
      state = {};
    }
    const KeyRange chunk = chunk_of<Config>(cursor);
    if (is_seen(cursor, chunk))
      attend_chunk<Config>(state, kept, queries, rows, ring[stage], problem, variant, cursor.item, chunk.begin);
    piece_begins = piece_ends<Config>(cursor, cuts_rows, cut);
    if (piece_begins) {
      // The next row's queries have landed before the barriers in end_piece(): they came with the keys of a later step.
      if (steps_since_fetch < Config::stages) {
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
      } else {
        ptx::cp_async_wait<Config::later_groups>();
      }
      end_piece<Config>(shared, stage, problem, variant, cut, partials, shared.at_work, state);
    }
    __syncwarp();  // no lane still reads the stage
    loader.fetch(ring[stage], problem, variant, cut, pools, cuts_rows);
    stage = stage + 1 == Config::stages ? 0 : stage + 1;
    ++steps_since_fetch;
    if (piece_begins) row_begins = row_ends<Config>(cursor, cuts_rows);
    advance<Config>(cursor, cuts_rows, problem, variant, cut);
    if (piece_begins && cursor.left > 0) note_piece();
  } while (cursor.left > 0);

  if (shared.merge.num > 0) merge_rows<Config>(problem, variant, cut, partials, shared.to_merge, shared.merge);
  if (cut.beside_previous) leave(cut);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
