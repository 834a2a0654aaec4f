// Attention for tiles of queries on tensor cores of sm_80 and up: cp.async, ldmatrix and mma.sync over paged keys.
//
// The schedule is FlashAttention-2's (arXiv:2307.08691, algorithm 1); the keys come block by block through the table
// (PagedAttention, arXiv:2309.06180).
//
//   grid   one CTA per tile of one sequence's queries and query head; it sees all keys of the tile, in one split. A
//          sequence's last tile comes first: under causal rules it has most to do
//   CTA    Q stays in shared memory, tiles of K and V pass through a ring of stages each. K of the next tile is asked
//          for when this K has been multiplied, V when V has: each is under way while the other is in use
//   warp   16 or 32 queries against all keys of a tile: warps share K and V and never talk to each other. What a warp
//          reads of K and V serves all of its rows: 32 halve the reads of shared memory, which bound 16
//   lane   of each 16 queries two (rows lane / 4 and 8 below), a quarter of each row: logits, weights and output stay
//          in registers; a quad of lanes agrees on a row's maximum tile by tile, and adds up its sum once, at the end
//
//              keys of a tile                head_dim_v
//             +--------------+             +------------+
//   its rows  | S -> P (regs)|  x V smem = | O (fp32,   |     S = Q K^T and O += P V by mma.m16n8k16: as an accumulator
//   per warp  +--------------+             |  registers)|     P lies in the lanes as PV wants its left operand
//                                          +------------+
//
//   with one stage:  V(0) -> QK(0) | K(1) -> softmax(0), PV(0) | V(1) -> QK(1) | K(2) -> softmax(1), PV(1) | ...
//   (a barrier at each bar: what the next copy overwrites has been read, and what is needed next has landed)
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
#include "pagedkv/cuda/kernels/prefill_sm80_fetch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
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
  static_assert(is_supported(Policy, {.head_dim = HeadDim, .head_dim_v = HeadDimV}, 227 * 1024),
                "is_supported(policy, shape) says why not");

  using Element = T;
  static constexpr int head_dim = HeadDim, head_dim_v = HeadDimV;
  static constexpr int query_tile = Policy.query_tile, key_tile = Policy.key_tile;
  static constexpr int warps = Policy.warps, threads = warps * 32, stages = Policy.stages;
  static constexpr int ctas_per_sm = Policy.ctas_per_sm;
  static constexpr int rows_per_warp = query_tile / warps, row_tiles = rows_per_warp / 16;
  static constexpr int keys_per_warp = key_tile / warps;  // a warp fetches this many rows of K and of V

  using KeyTile = SwizzledTile<HeadDim>;  // of Q, too
  using ValueTile = SwizzledTile<HeadDimV>;

  struct SharedMemory {
    alignas(128) T queries[query_tile * HeadDim];        // KeyTile [query_tile, head_dim]
    alignas(128) T keys[stages][key_tile * HeadDim];     // KeyTile [key_tile, head_dim] a stage
    alignas(128) T values[stages][key_tile * HeadDimV];  // ValueTile [key_tile, head_dim_v] a stage
    detail::PrefillTile tile;
  };

  // What a lane holds of its warp's rows, 16 of them at a time.
  using Scores = float[row_tiles][key_tile / 8][4];            // C fragments of [16, key_tile]
  using Weights = std::uint32_t[row_tiles][key_tile / 16][4];  // A fragments of [16, key_tile]
  using Output = float[row_tiles][HeadDimV / 8][4];            // C fragments of [16, head_dim_v]
  using Softmax = ScaledSoftmax[row_tiles][2];  // rows lane / 4 and lane / 4 + 8; sums are the lane's own
};

namespace detail {

/// S += Q K^T for the warp's rows and one tile of keys.
template <class Config>
__device__ __forceinline__ void score(typename Config::Scores& scores, const typename Config::SharedMemory& shared,
                                      int stage) {
  using Tile = typename Config::KeyTile;
  const Coordinate q_row = quarters_down(fresh_lane()), k_row = quarters_across(fresh_lane());
  const int q_place = Tile::offset(warp_id() * Config::rows_per_warp + q_row.row, q_row.column);
  const int k_place = Tile::offset(k_row.row, k_row.column);
#pragma unroll
  for (int d = 0; d < Config::head_dim; d += 16) {
    std::uint32_t q[Config::row_tiles][4];
#pragma unroll
    for (int m = 0; m < Config::row_tiles; ++m)
      ptx::ldmatrix_x4(q[m], &shared.queries[Tile::right_of(q_place, d) + m * 16 * Config::head_dim]);
#pragma unroll
    for (int key = 0; key < Config::key_tile; key += 16) {
      std::uint32_t k[4];
      ptx::ldmatrix_x4(k, &shared.keys[stage][Tile::right_of(k_place, d) + key * Config::head_dim]);
#pragma unroll
      for (int m = 0; m < Config::row_tiles; ++m) {
        ptx::mma_m16n8k16<typename Config::Element>(scores[m][key / 8], q[m], k[0], k[1]);
        ptx::mma_m16n8k16<typename Config::Element>(scores[m][key / 8 + 1], q[m], k[2], k[3]);
      }
    }
  }
}

/// What of a tile of keys a warp's rows see.
struct TileSight {
  bool any;  // a row may see a key
  bool all;  // every row sees every key: no need to ask the rule key by key
};

template <class Config, AttentionVariant V>
__device__ __forceinline__ TileSight look_at(const V& variant, const PrefillTile& tile, int begin) {
  const KeyRange keys{begin, begin + Config::key_tile};
  const int row = tile.rows.begin + warp_id() * Config::rows_per_warp;
  if (row >= tile.rows.end) return {false, false};
  const int first = row + tile.offset, last = min(row + Config::rows_per_warp, tile.rows.end) - 1 + tile.offset;
  return {seen_keys(variant, first, last, tile.keys.end).touches(keys),
          keys.end <= tile.keys.end && sees_all(variant, tile.rows.sequence, first, last, keys)};
}

/// Are scores left as they are, products of queries and keys, until the exponential? The factor is then a part of its
/// argument's only multiplication. A factor that turns their order, or makes them all one, must come first.
template <AttentionVariant V>
__device__ __forceinline__ bool scales_late(float scale) {
  return keeps_logits_v<V> && scale > 0.f;
}

/// Products become logits, unless scaled late; what a query may not see becomes -inf, whatever its bits were. The rule
/// is asked only about queries and keys that exist, and for visibility only where `sees_all` does not settle it.
template <class Config, AttentionVariant V>
__device__ __forceinline__ void apply_rule(typename Config::Scores& scores, const V& variant, float scale,
                                           const PrefillTile& tile, int begin, bool sees_all) {
  if (sees_all && scales_late<V>(scale)) return;
  const float early_scale = scales_late<V>(scale) ? 1.f : scale;
  const int sequence = tile.rows.sequence, q_head = tile.q_head, offset = tile.offset;
  const int rows_end = tile.rows.end, keys_end = tile.keys.end;
  const int first_row = tile.rows.begin + warp_id() * Config::rows_per_warp;
#pragma unroll
  for (int m = 0; m < Config::row_tiles; ++m) {
#pragma unroll
    for (int n = 0; n < Config::key_tile / 8; ++n) {
#pragma unroll
      for (int element = 0; element < 4; ++element) {
        const Coordinate place = fragment_c(lane_id(), element);
        const int row = first_row + m * 16 + place.row, key = begin + n * 8 + place.column;
        const Position position{row + offset, key, q_head, sequence};
        const bool exists = row < rows_end && key < keys_end;
        const bool visible = exists && (sees_all || variant.visible(position));
        float& score = scores[m][n][element];
        score = visible ? variant.logit(score * early_scale, position) : -infinity;
      }
    }
  }
}

/// Online softmax over one tile: scores become weights, rounded for the tensor cores; the output so far follows the
/// maximum. Each lane sums the weights it holds; store() adds up the quad.
template <class Config>
__device__ __forceinline__ void soften(typename Config::Weights& weights, typename Config::Softmax& softmax,
                                       typename Config::Output& output, const typename Config::Scores& scores,
                                       float slope_log2) {
  float factor[Config::row_tiles][2];
#pragma unroll
  for (int m = 0; m < Config::row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // the lane's upper and lower row
      float top = -infinity;
#pragma unroll
      for (const auto& fragment : scores[m]) top = larger(top, larger(fragment[2 * half], fragment[2 * half + 1]));
      top = larger(top, __shfl_xor_sync(~0u, top, 1));
      top = larger(top, __shfl_xor_sync(~0u, top, 2));
      factor[m][half] = softmax[m][half].raise(top, slope_log2);
    }
  }
#pragma unroll
  for (int m = 0; m < Config::row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float reference = softmax[m][half].reference();
#pragma unroll
      for (int n = 0; n < Config::key_tile / 8; ++n) {
        const float left = exp2(scores[m][n][2 * half] * slope_log2 - reference),
                    right = exp2(scores[m][n][2 * half + 1] * slope_log2 - reference);
        softmax[m][half].sum += left + right;
        weights[m][n / 2][n % 2 * 2 + half] = ptx::pack<typename Config::Element>(left, right);
      }
    }
    if (!__any_sync(~0u, factor[m][0] != 1.f || factor[m][1] != 1.f)) continue;
#pragma unroll
    for (auto& fragment : output[m]) {
#pragma unroll
      for (int element = 0; element < 4; ++element) fragment[element] *= factor[m][element / 2];
    }
  }
}

/// O += P V for the warp's rows and one tile of keys.
template <class Config>
__device__ __forceinline__ void accumulate(typename Config::Output& output, const typename Config::Weights& weights,
                                           const typename Config::SharedMemory& shared, int stage) {
  using Tile = typename Config::ValueTile;
  const Coordinate v_row = quarters_down(fresh_lane());
  const int v_place = Tile::offset(v_row.row, v_row.column);
#pragma unroll
  for (int key = 0; key < Config::key_tile; key += 16) {
#pragma unroll
    for (int d = 0; d < Config::head_dim_v; d += 16) {
      std::uint32_t v[4];
      ptx::ldmatrix_x4_transposed(v, &shared.values[stage][Tile::right_of(v_place, d) + key * Config::head_dim_v]);
#pragma unroll
      for (int m = 0; m < Config::row_tiles; ++m) {
        ptx::mma_m16n8k16<typename Config::Element>(output[m][d / 8], weights[m][key / 16], v[0], v[1]);
        ptx::mma_m16n8k16<typename Config::Element>(output[m][d / 8 + 1], weights[m][key / 16], v[2], v[3]);
      }
    }
  }
}

/// Normalises and writes the rows that exist, also those that saw no key.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void store(const Problem& problem, const V& variant, const PrefillTile& tile,
                                      typename Config::Softmax& softmax, const typename Config::Output& output) {
#pragma unroll
  for (int m = 0; m < Config::row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Coordinate place = fragment_c(lane_id(), 2 * half);
      const int row = tile.rows.begin + warp_id() * Config::rows_per_warp + m * 16 + place.row;
      OnlineSoftmax whole = softmax[m][half].natural();
      whole.sum += __shfl_xor_sync(~0u, whole.sum, 1);
      whole.sum += __shfl_xor_sync(~0u, whole.sum, 2);
      if (row >= tile.rows.end) continue;
      const OnlineSoftmax::Finished finished = whole.finish(prior_of(variant, tile.q_head));
      auto* out = problem.out.at(tile.first_token + row, tile.q_head, place.column);
#pragma unroll
      for (int n = 0; n < Config::head_dim_v / 8; ++n) {
        *reinterpret_cast<std::uint32_t*>(out + n * 8) = ptx::pack<typename Config::Element>(
            output[m][n][2 * half] * finished.scale, output[m][n][2 * half + 1] * finished.scale);
      }
      if (!problem.lse.empty() && place.column == 0) problem.lse(tile.first_token + row, tile.q_head) = finished.lse;
    }
  }
}

/// The whole of one CTA's work on one tile of queries.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void attend_tile(typename Config::SharedMemory& shared, const Problem& problem,
                                            const V& variant, const PrefillTile& tile) {
  constexpr int stages = Config::stages, in_flight = 2 * (stages - 1);  // groups behind the one that is waited for
  const float slope_log2 = scales_late<V>(problem.scale) ? problem.scale * log2_e : log2_e;
  typename Config::Softmax softmax;  // [row_tiles][2]
#pragma unroll
  for (auto& rows : softmax) rows[0] = rows[1] = ScaledSoftmax{};  // nvcc 13.0 initialises softmax[0] alone by itself
  typename Config::Output output = {};                             // [row_tiles][head_dim_v / 8][4]

  KeysAhead ahead = look_up<Config>(problem, tile, tile.keys.begin);  // of the first tile not yet asked for
  // A group stands for one tile of K or of V, also where nothing is left to ask for.
  const auto ask_for_keys = [&](int stage) {
    if (ahead.begin < tile.keys.end)
      fetch_tile<Config, typename Config::KeyTile>(shared.keys[stage], problem.kv.k, problem, tile, ahead);
    ptx::cp_async_commit();
  };
  const auto ask_for_values = [&](int stage) {
    if (ahead.begin < tile.keys.end)
      fetch_tile<Config, typename Config::ValueTile>(shared.values[stage], problem.kv.v, problem, tile, ahead);
    ptx::cp_async_commit();
    ahead = look_up<Config>(problem, tile, ahead.begin + Config::key_tile);
  };
  fetch_queries<Config>(shared, problem, tile);
  for (int stage = 0; stage < stages - 1; ++stage) {
    ask_for_keys(stage);
    ask_for_values(stage);
  }
  ask_for_keys(stages - 1);

  int stage = 0;
  for (int begin = next_key_tile(tile.seen, tile.keys, Config::key_tile, tile.keys.begin); begin < tile.keys.end;
       begin = next_key_tile(tile.seen, tile.keys, Config::key_tile, begin + Config::key_tile)) {
    const TileSight sight = look_at<Config>(variant, tile, begin);
    typename Config::Scores scores = {};  // [row_tiles][key_tile / 8][4]

    ptx::cp_async_wait<in_flight>();
    __syncthreads();  // these keys have landed for all warps, and none still reads the values that are overwritten now
    ask_for_values((stage + stages - 1) % stages);
    if (sight.any) score<Config>(scores, shared, stage);

    ptx::cp_async_wait<in_flight>();
    __syncthreads();  // so have these values, and none still reads the keys
    ask_for_keys(stage);
    if (sight.any) {
      apply_rule<Config>(scores, variant, problem.scale, tile, begin, sight.all);
      typename Config::Weights weights;  // [row_tiles][key_tile / 16][4]
      soften<Config>(weights, softmax, output, scores, slope_log2);
      accumulate<Config>(output, weights, shared, stage);
    }
    stage = (stage + 1) % stages;
  }
  store<Config>(problem, variant, tile, softmax, output);
}

}  // namespace detail

/// Grid: any number of CTAs; best one for each tile of the plan and query head. Neighbours share keys, not queries.
/// Sequences with less than min_q_len queries are somebody else's: their rows are not touched.
template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::threads, Config::ctas_per_sm)
    attention_prefill_kernel(const Problem problem, const V variant, const AttentionPlan plan, const int min_q_len) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(shared_bytes);
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();  // in this order: one that runs beside this kernel does not wait for what is in front
  for (std::int64_t index = blockIdx.x; index < plan.num_tiles() * problem.q_heads();) {
    if (threadIdx.x == 0) shared.tile = detail::make_tile(problem, variant, plan, min_q_len, index);
    __syncthreads();
    if (!shared.tile.rows.empty()) detail::attend_tile<Config>(shared, problem, variant, shared.tile);
    index = shared.tile.index + gridDim.x;
    ptx::cp_async_wait<0>();
    __syncthreads();  // the next tile overwrites what a slower warp may still read
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
