// Attention for tiles of queries on tensor cores of sm_80 and up: cp.async, ldmatrix and mma.sync over paged keys.
//
// The schedule is FlashAttention-2's (arXiv:2307.08691, algorithm 1); the keys come block by block through the table
// (PagedAttention, arXiv:2309.06180).
//
//   grid   one CTA per tile of one sequence's queries and query head; it sees all keys of the tile, in one split
//   CTA    query_tile / 16 warps; Q stays in shared memory, tiles of K and V pass through a ring of stages: the next tile
//          is in flight while the present one is computed
//   warp   16 queries against all keys of a tile: warps share K and V and never talk to each other
//   lane   of two queries (rows lane / 4 and 8 below) a quarter of each row: logits, weights and output stay in
//          registers; a quad of lanes agrees on a row's maximum tile by tile, and adds up its sum once, at the end
//
//              keys of a tile                head_dim_v
//             +--------------+             +------------+
//   16 rows   | S -> P (regs)|  x V smem = | O (fp32,   |     S = Q K^T and O += P V by mma.m16n8k16: as an accumulator
//   per warp  +--------------+             |  registers)|     P lies in the lanes as PV wants its left operand
//                                          +------------+
//
// Bytes per key: 2 (head_dim + head_dim_v) for each query tile and query head; those of one sequence meet in L2.
#pragma once

#include <cstdint>
#include <type_traits>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/ldmatrix.cuh"
#include "pagedkv/cuda/ptx/mma_sm80.cuh"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/cuda/tile/key_tiles.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Everything the kernel knows at compile time. T is bf16 or f16, of Q, K, V and the output.
template <class T, int HeadDim, int HeadDimV, PrefillPolicy Policy>
struct PrefillSm80Config {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "mma.sync takes bf16 and f16");
  static_assert(HeadDim % 16 == 0 && HeadDimV % 16 == 0, "mma.m16n8k16 takes head_dim in steps of 16");
  static_assert(Policy.query_tile % 16 == 0 && Policy.key_tile % 16 == 0,
                "mma.m16n8k16 takes rows and keys in steps of 16");

  using Element = T;
  static constexpr int head_dim = HeadDim, head_dim_v = HeadDimV;
  static constexpr int query_tile = Policy.query_tile, key_tile = Policy.key_tile;
  static constexpr int warps = Policy.warps, threads = warps * 32, stages = Policy.stages;
  static constexpr int keys_per_warp = key_tile / warps;  // a warp fetches this many rows of K and of V
  static_assert(query_tile == 16 * warps, "a warp holds 16 query rows");
  static_assert(key_tile % warps == 0 && keys_per_warp <= 32, "a lane looks up the block of one key");
  static_assert(stages >= 2, "one tile is in flight while another is computed");

  using KeyTile = SwizzledTile<HeadDim>;  // of Q, too
  using ValueTile = SwizzledTile<HeadDimV>;

  struct SharedMemory {
    alignas(128) T queries[query_tile * HeadDim];        // KeyTile [query_tile, head_dim]
    alignas(128) T keys[stages][key_tile * HeadDim];     // KeyTile [key_tile, head_dim] a stage
    alignas(128) T values[stages][key_tile * HeadDimV];  // ValueTile [key_tile, head_dim_v] a stage
  };

  // What a lane holds of its warp's 16 rows.
  using Scores = float[key_tile / 8][4];            // C fragments of [16, key_tile]
  using Weights = std::uint32_t[key_tile / 16][4];  // A fragments of [16, key_tile]
  using Output = float[HeadDimV / 8][4];            // C fragments of [16, head_dim_v]
};

namespace detail {

/// What one CTA works on.
struct PrefillTile {
  QueryRows rows;  // of the sequence's queries in this call
  KeyRange keys;   // of the sequence
  KeyRanges seen;  // covers every key that one of the rows can see
  int q_head, kv_head;
  int offset;                // query row i stands at position i + offset
  std::int64_t first_token;  // of the sequence, in q and out
};

/// The lengths are read here, on the device: a captured graph may be replayed with others.
template <class Problem, AttentionVariant V>
__device__ __forceinline__ PrefillTile make_tile(const Problem& problem, const V& variant, const AttentionPlan& plan,
                                                 std::int64_t index) {
  const std::int64_t plan_tile = index / problem.q_heads();
  const int sequence = static_cast<int>(plan_tile / plan.tiles_per_seq);
  const int q_len = problem.tables.q_len(sequence), kv_len = problem.tables.kv_len(sequence);
  const WorkItem item = plan.item(plan_tile, 0, q_len, kv_len);
  PrefillTile tile;
  tile.rows = item.rows;
  tile.keys = item.keys;
  tile.q_head = static_cast<int>(index % problem.q_heads());
  tile.kv_head = tile.q_head / problem.group_size();
  tile.offset = kv_len - q_len;
  tile.first_token = problem.tables.query_begin(sequence);
  tile.seen = seen_keys(variant, tile.rows.begin + tile.offset, tile.rows.end - 1 + tile.offset, kv_len);
  return tile;
}

/// Starts copying the tile's queries, all threads together; rows behind the last query become zeros.
template <class Config, class Problem>
__device__ __forceinline__ void fetch_queries(typename Config::SharedMemory& shared, const Problem& problem,
                                              const PrefillTile& tile) {
  using Tile = typename Config::KeyTile;
  for (int piece = static_cast<int>(threadIdx.x); piece < Config::query_tile * Tile::chunks_per_row;
       piece += Config::threads) {
    const int row = piece / Tile::chunks_per_row, column = piece % Tile::chunks_per_row * Tile::chunk;
    const bool live = row < tile.rows.size();
    const auto* source = problem.q.at(tile.first_token + tile.rows.begin + (live ? row : 0), tile.q_head, column);
    ptx::cp_async_16(&shared.queries[Tile::offset(row, column)], source, live);
  }
}

/// A key that nobody can see, or whose block is gone, is dead: its table entry may hold any bits.
template <class Problem>
__device__ __forceinline__ PagedRow find_row(const Problem& problem, const PrefillTile& tile, int key) {
  if (!tile.keys.contains(key) || !tile.seen.contains(key)) return {};
  const int block_size = problem.kv.block_size();
  const std::int64_t block = problem.tables.block_ids(tile.rows.sequence, key / block_size);
  if (block < 0 || block >= problem.kv.num_blocks()) return {};
  return {block, key % block_size, true};
}

/// Starts copying the keys [begin, begin + key_tile) and their values into one stage, all warps together.
template <class Config, class Problem>
__device__ __forceinline__ void fetch_keys(typename Config::SharedMemory& shared, int stage, const Problem& problem,
                                           const PrefillTile& tile, int begin) {
  constexpr int rows = Config::keys_per_warp;
  const int first = warp_id() * rows;
  // Unrolled by 2: more costs registers that the output needs.
  const PagedRow mine = find_row(problem, tile, begin + first + lane_id() % rows);
  fetch_rows<typename Config::KeyTile, rows, 2>(shared.keys[stage], first, problem.kv.k, tile.kv_head, mine);
  fetch_rows<typename Config::ValueTile, rows, 2>(shared.values[stage], first, problem.kv.v, tile.kv_head, mine);
}

/// S = Q K^T for the warp's rows and one tile of keys.
template <class Config>
__device__ __forceinline__ void score(typename Config::Scores& scores, const typename Config::SharedMemory& shared,
                                      int stage) {
  using Tile = typename Config::KeyTile;
  const Coordinate q_row = quarters_down(lane_id()), k_row = quarters_across(lane_id());
#pragma unroll
  for (auto& fragment : scores) fragment[0] = fragment[1] = fragment[2] = fragment[3] = 0.f;
#pragma unroll 4  // more, and the addresses alone spill
  for (int d = 0; d < Config::head_dim; d += 16) {
    std::uint32_t q[4];
    ptx::ldmatrix_x4(q, &shared.queries[Tile::offset(warp_id() * 16 + q_row.row, d + q_row.column)]);
#pragma unroll
    for (int key = 0; key < Config::key_tile; key += 16) {
      std::uint32_t k[4];
      ptx::ldmatrix_x4(k, &shared.keys[stage][Tile::offset(key + k_row.row, d + k_row.column)]);
      ptx::mma_m16n8k16<typename Config::Element>(scores[key / 8], q, k[0], k[1]);
      ptx::mma_m16n8k16<typename Config::Element>(scores[key / 8 + 1], q, k[2], k[3]);
    }
  }
}

/// Products become logits; what a query may not see becomes -inf, whatever its bits were. The rule is asked only about
/// queries and keys that exist.
template <class Config, AttentionVariant V>
__device__ __forceinline__ void apply_rule(typename Config::Scores& scores, const V& variant, float scale,
                                           const PrefillTile& tile, int begin) {
#pragma unroll
  for (int n = 0; n < Config::key_tile / 8; ++n) {
#pragma unroll
    for (int element = 0; element < 4; ++element) {
      const Coordinate place = fragment_c(lane_id(), element);
      const int row = tile.rows.begin + warp_id() * 16 + place.row, key = begin + n * 8 + place.column;
      const Position position{row + tile.offset, key, tile.q_head, tile.rows.sequence};
      const bool visible = row < tile.rows.end && tile.keys.contains(key) && variant.visible(position);
      scores[n][element] = visible ? variant.logit(scores[n][element] * scale, position) : -infinity;
    }
  }
}

/// Online softmax over one tile: logits become weights, rounded for the tensor cores; the output so far follows the
/// maximum. Each lane sums the weights it holds; store() adds up the quad.
template <class Config>
__device__ __forceinline__ void soften(typename Config::Weights& weights, typename Config::Scores& logits,
                                       OnlineSoftmax (&softmax)[2], typename Config::Output& output) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // the lane's upper and lower row
    float top = -infinity;
#pragma unroll
    for (auto& logit : logits) top = max(top, max(logit[2 * half], logit[2 * half + 1]));
    top = max(top, __shfl_xor_sync(~0u, top, 1));
    top = max(top, __shfl_xor_sync(~0u, top, 2));
    const float scale = softmax[half].raise(top);
#pragma unroll
    for (auto& fragment : output) {
      fragment[2 * half] *= scale;
      fragment[2 * half + 1] *= scale;
    }
#pragma unroll
    for (int n = 0; n < Config::key_tile / 8; ++n) {
      const float left = softmax[half].weight(logits[n][2 * half]),
                  right = softmax[half].weight(logits[n][2 * half + 1]);
      softmax[half].sum += left + right;
      weights[n / 2][n % 2 * 2 + half] = ptx::pack<typename Config::Element>(left, right);
    }
  }
}

/// O += P V for the warp's rows and one tile of keys.
template <class Config>
__device__ __forceinline__ void accumulate(typename Config::Output& output, const typename Config::Weights& weights,
                                           const typename Config::SharedMemory& shared, int stage) {
  using Tile = typename Config::ValueTile;
  const Coordinate v_row = quarters_down(lane_id());
#pragma unroll
  for (int key = 0; key < Config::key_tile; key += 16) {
#pragma unroll
    for (int d = 0; d < Config::head_dim_v; d += 16) {
      std::uint32_t v[4];
      ptx::ldmatrix_x4_transposed(v, &shared.values[stage][Tile::offset(key + v_row.row, d + v_row.column)]);
      ptx::mma_m16n8k16<typename Config::Element>(output[d / 8], weights[key / 16], v[0], v[1]);
      ptx::mma_m16n8k16<typename Config::Element>(output[d / 8 + 1], weights[key / 16], v[2], v[3]);
    }
  }
}

/// Normalises and writes the rows that exist, also those that saw no key.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void store(const Problem& problem, const V& variant, const PrefillTile& tile,
                                      OnlineSoftmax (&softmax)[2], const typename Config::Output& output) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Coordinate place = fragment_c(lane_id(), 2 * half);
    const int row = tile.rows.begin + warp_id() * 16 + place.row;
    softmax[half].sum += __shfl_xor_sync(~0u, softmax[half].sum, 1);
    softmax[half].sum += __shfl_xor_sync(~0u, softmax[half].sum, 2);
    if (row >= tile.rows.end) continue;
    const OnlineSoftmax::Finished finished = softmax[half].finish(prior_of(variant, tile.q_head));
    auto* out = problem.out.at(tile.first_token + row, tile.q_head, place.column);
#pragma unroll
    for (int n = 0; n < Config::head_dim_v / 8; ++n) {
      *reinterpret_cast<std::uint32_t*>(out + n * 8) = ptx::pack<typename Config::Element>(
          output[n][2 * half] * finished.scale, output[n][2 * half + 1] * finished.scale);
    }
    if (!problem.lse.empty() && place.column == 0) problem.lse(tile.first_token + row, tile.q_head) = finished.lse;
  }
}

/// The whole of one CTA's work on one tile of queries.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void attend_tile(typename Config::SharedMemory& shared, const Problem& problem,
                                            const V& variant, const PrefillTile& tile) {
  const auto next = [&](int from) { return next_key_tile(tile.seen, tile.keys, Config::key_tile, from); };
  OnlineSoftmax softmax[2];             // of rows lane / 4 and lane / 4 + 8; the sum is the lane's own share
  typename Config::Output output = {};  // [head_dim_v / 8][4]

  fetch_queries<Config>(shared, problem, tile);
  int ahead = next(tile.keys.begin);  // the first tile not yet asked for
  const auto fetch_ahead = [&](int stage) {
    if (ahead < tile.keys.end) fetch_keys<Config>(shared, stage, problem, tile, ahead);
    ptx::cp_async_commit();  // also where nothing is left, so that one group stands for one tile
    ahead = next(ahead + Config::key_tile);
  };
  for (int stage = 0; stage < Config::stages - 1; ++stage) fetch_ahead(stage);

  int stage = 0;
  for (int begin = next(tile.keys.begin); begin < tile.keys.end; begin = next(begin + Config::key_tile)) {
    ptx::cp_async_wait<Config::stages - 2>();
    __syncthreads();  // this tile has landed for all warps, and none still reads the stage that is refilled now
    fetch_ahead((stage + Config::stages - 1) % Config::stages);

    typename Config::Scores scores;    // [key_tile / 8][4]
    typename Config::Weights weights;  // [key_tile / 16][4]
    score<Config>(scores, shared, stage);
    apply_rule<Config>(scores, variant, problem.scale, tile, begin);
    soften<Config>(weights, scores, softmax, output);
    accumulate<Config>(output, weights, shared, stage);
    stage = (stage + 1) % Config::stages;
  }
  store<Config>(problem, variant, tile, softmax, output);
}

}  // namespace detail

/// Grid: any number of CTAs; best one for each tile of the plan and query head. Neighbours share keys, not queries.
template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::threads, 1)
    attention_prefill_kernel(const Problem problem, const V variant, const AttentionPlan plan) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(shared_bytes);
  const std::int64_t num_tiles = plan.num_tiles() * problem.q_heads();
  for (std::int64_t index = blockIdx.x; index < num_tiles; index += gridDim.x) {
    const detail::PrefillTile tile = detail::make_tile(problem, variant, plan, index);
    if (tile.rows.empty()) continue;
    detail::attend_tile<Config>(shared, problem, variant, tile);
    ptx::cp_async_wait<0>();
    __syncthreads();  // the next tile overwrites what a slower warp may still read
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
