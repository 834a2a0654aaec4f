// Attention for tiles of queries on Hopper's tensor cores: blocks lifted by TMA, warpgroups that multiply (wgmma) while
// others exponentiate.
//
// The schedule is FlashAttention-3's (arXiv:2407.08608, sec. 3); the keys come block by block through the table
// (PagedAttention, arXiv:2309.06180), a box of TMA for each block and 128 bytes of head_dim, so that paging costs no
// thread an address.
//
//   grid        one CTA an SM; each takes tiles of packed rows from a list that is never written down (prefill_schedule)
//   warpgroup 0 fetches (prefill_sm90_fetch): warp 2 finds tiles, warp 0 lifts queries and keys, warp 1 lifts values
//   the others  64 rows each, against the same keys, from the last tile of keys to the first: so only the first steps meet
//               keys that a row must not see
//   thread      of two rows (fragment_c) a quarter of each: products, weights and output stay in registers
//
//     warpgroup 1:  | S1 = Q K1 | O += P0 V0 |  soften S1 -> P1        | S2 = Q K2 | O += P1 V1 |
//     warpgroup 2:                           | S1 = Q K1 | O += P0 V0 |  soften S1 -> P1        |   they take turns
//
// In a step the next product is under way while the weights of the present one are computed, and while one warpgroup
// computes weights the other multiplies: the tensor cores always have something to do.
//
// Bytes per key: 2 (head_dim + head_dim_v) for each tile of rows; those of one KV head meet in L2.
#pragma once

#include <cstdint>
#include <type_traits>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/kernels/prefill_sm90_fetch.cuh"
#include "pagedkv/cuda/kernels/prefill_sm90_store.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/ptx/convert.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/cuda/ptx/mbarrier.cuh"
#include "pagedkv/cuda/ptx/named_barrier.cuh"
#include "pagedkv/cuda/ptx/registers.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/ptx/wgmma.cuh"
#include "pagedkv/cuda/tile/descriptor.hpp"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/cuda/tile/key_tiles.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Everything the kernel knows at compile time. T is bf16 or f16, of Q, K, V and the output.
template <class T, int HeadDim, int HeadDimV, PrefillSm90Policy Policy>
struct PrefillSm90Config {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "wgmma takes bf16 and f16 here");

  using Element = T;
  static constexpr PrefillSm90Policy policy = Policy;
  static constexpr int head_dim = HeadDim, head_dim_v = HeadDimV;
  static constexpr int query_tile = Policy.query_tile, key_tile = Policy.key_tile;
  static constexpr int key_stages = Policy.key_stages, value_stages = Policy.value_stages;
  static constexpr int query_buffers = Policy.query_buffers, query_tile_bytes = 2 * query_tile * HeadDim;
  // Are rows written by TMA from where their queries were? They must fit, and the next queries go elsewhere.
  static constexpr bool stages_output = query_buffers > 1 && HeadDimV <= HeadDim && !Policy.splits_keys;
  static constexpr bool splits_keys = Policy.splits_keys;
  static constexpr int tiles_ahead = 4;               // that are found before they are needed
  static constexpr int warpgroups = query_tile / 64;  // that multiply
  static constexpr int multipliers = warpgroups * 128, threads = 128 + multipliers;
  static constexpr int fetch_registers = warpgroups == 2 ? 40 : 32, multiply_registers = warpgroups == 2 ? 232 : 160;

  using QueryTile = TileDescriptor<HeadDim, 64>;  // of one warpgroup
  using KeyTile = TileDescriptor<HeadDim, key_tile>;
  using ValueTile = TileDescriptor<HeadDimV, key_tile>;

  struct Tiles {
    alignas(1024) T queries[query_buffers][warpgroups][64 * HeadDim];  // QueryTile [64, head_dim] a warpgroup
    alignas(1024) T keys[key_stages][key_tile * HeadDim];              // KeyTile [key_tile, head_dim] a stage
    alignas(1024) T values[value_stages][key_tile * HeadDimV];         // ValueTile [key_tile, head_dim_v] a stage
  };
  static constexpr int shared_bytes = sizeof(Tiles) + 1024;  // dynamic shared memory may begin anywhere

  using Work = std::conditional_t<splits_keys, PrefillShare, PrefillWork>;

  // Of each pair the first barrier says that something has landed, the second that everybody is done with it.
  struct Signals {
    ptx::Mbarrier tile_full[tiles_ahead], tile_empty[tiles_ahead];
    ptx::Mbarrier queries_full[query_buffers], queries_empty[query_buffers];
    ptx::Mbarrier keys_full[key_stages], keys_empty[key_stages];
    ptx::Mbarrier values_full[value_stages], values_empty[value_stages];
    Work tile[tiles_ahead];
  };

  // What a thread holds of its warpgroup's 64 rows.
  using Scores = float[key_tile / 2];               // [key_tile / 8][4], as C fragments
  using Weights = std::uint32_t[key_tile / 16][4];  // A fragments of [64, key_tile]
  using Output = float[HeadDimV / 2];               // [head_dim_v / 8][4], as C fragments
};

namespace detail {

/// Lets the next warpgroup multiply. Without turns all would multiply, and then all exponentiate.
template <class Config>
__device__ __forceinline__ void pass_turn(int warpgroup) {
  ptx::barrier_arrive(1 + (warpgroup + 1) % Config::warpgroups, 256);
}
__device__ __forceinline__ void wait_for_turn(int warpgroup) { ptx::barrier_sync(1 + warpgroup, 256); }

/// Starts S = Q K^T for the warpgroup's rows and one tile of keys.
template <class Config>
__device__ __forceinline__ void score(typename Config::Scores& scores, std::uint64_t queries, std::uint64_t keys) {
  ptx::wgmma_fence();
#pragma unroll
  for (int column = 0; column < Config::head_dim; column += 16) {
    ptx::wgmma_shared<typename Config::Element>(scores, Config::QueryTile::at_column(queries, column),
                                                Config::KeyTile::at_column(keys, column), column > 0);
  }
  ptx::wgmma_commit();
}

/// Starts O += P V, or O = P V where it is the first.
template <class Config>
__device__ __forceinline__ void accumulate(typename Config::Output& output, const typename Config::Weights& weights,
                                           std::uint64_t values, bool is_first) {
  ptx::wgmma_fence();
#pragma unroll
  for (int key = 0; key < Config::key_tile; key += 16) {
    ptx::wgmma_registers<typename Config::Element>(output, weights[key / 16], Config::ValueTile::at_row(values, key),
                                                   key > 0 || !is_first);
  }
  ptx::wgmma_commit();
}

/// Products become what the softmax takes: what a row may not see -inf, whatever its bits were; logits, where the rule
/// bends them.
template <class Config, AttentionVariant V>
__device__ __forceinline__ void apply_rule(typename Config::Scores& scores, const V& variant, float scale,
                                           const PrefillCut& cut, const PrefillWork& work, int row_in_tile, int tile,
                                           bool sees_all) {
  if (keeps_logits_v<V> && sees_all) return;
  const RowPair rows = rows_of<Config>(cut, work, row_in_tile);
  const int sequence = work.sequence, kv_len = work.kv_len;
#pragma unroll
  for (int i = 0; i < Config::key_tile / 2; ++i) {
    const int half = i % 4 / 2, key = tile + i / 4 * 8 + fragment_c(lane_id(), i % 4).column;
    const Position position{rows.query[half], key, rows.head[half], sequence};
    if constexpr (!keeps_logits_v<V>) scores[i] = variant.logit(scores[i] * scale, position);
    if (!sees_all && !(key < kv_len && variant.visible(position))) scores[i] = -infinity;
  }
}

/// Products become weights. Returns, in `factor`, what the output so far has to be multiplied by.
template <class Config>
__device__ __forceinline__ void soften(typename Config::Scores& scores, ScaledSoftmax (&softmax)[2], float (&factor)[2],
                                       float slope_log2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = scores[2 * half];
#pragma unroll
    for (int i = 0; i < Config::key_tile / 2; i += 4)
      top = larger(top, larger(scores[i + 2 * half], scores[i + 2 * half + 1]));
    top = larger(top, __shfl_xor_sync(~0u, top, 1));
    top = larger(top, __shfl_xor_sync(~0u, top, 2));
    factor[half] = softmax[half].raise(top, slope_log2);
    const float reference = softmax[half].reference();
#pragma unroll
    for (int i = 0; i < Config::key_tile / 2; i += 4) {
#pragma unroll
      for (int j = i + 2 * half; j < i + 2 * half + 2; ++j) {
        scores[j] = exp2(scores[j] * slope_log2 - reference);
        softmax[half].sum += scores[j];
      }
    }
  }
}

/// Weights, rounded, in the places where the next product wants them.
template <class Config>
__device__ __forceinline__ void pack_weights(typename Config::Weights& weights, const typename Config::Scores& scores) {
#pragma unroll
  for (int i = 0; i < Config::key_tile / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      weights[i][j] = ptx::pack<typename Config::Element>(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1]);
  }
}

/// Zeroes the slots of a tile of values from `first_dead` to the end of their box: nobody owns them, and a weight of 0
/// would not silence a NaN. All multiplying warps together.
template <class Config>
__device__ __forceinline__ void silence(typename Config::Element* values, int first_dead, int num_dead) {
  using Tile = typename Config::ValueTile::Tile;
  constexpr int chunks = Config::head_dim_v / 8;
  const int thread = static_cast<int>(threadIdx.x) - 128;
  for (int i = thread; i < num_dead * chunks; i += Config::multipliers)
    *reinterpret_cast<uint4*>(&values[Tile::offset(first_dead + i / chunks, i % chunks * 8)]) = uint4{0, 0, 0, 0};
  ptx::fence_proxy_async();
  ptx::barrier_sync(1 + Config::warpgroups, Config::multipliers);
}

/// The warpgroups that multiply: tile after tile of queries against all their keys. The first product of a tile starts
/// behind the last of the one before, and is under way while that one is stored.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void multiply(typename Config::Tiles& tiles, typename Config::Signals& signals,
                                         const Problem& problem, const V& variant, const PrefillCut& cut,
                                         const ptx::TensorMap& out_map, const Partials& partials) {
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  const int first_row = warpgroup * 64, row = first_row + warp_id() % 4 * 16 + lane_id() / 4;  // of the tile
  const float slope_log2 = (keeps_logits_v<V> ? problem.scale : 1.f) * log2_e;
  const auto shared_address = [](const void* at) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(at)); };
  const std::uint64_t first_queries = Config::QueryTile::by_columns(shared_address(tiles.queries[0][warpgroup]));
  const std::uint64_t first_keys = Config::KeyTile::by_columns(shared_address(tiles.keys));
  const std::uint64_t first_values = Config::ValueTile::by_rows(shared_address(tiles.values));
  // The same in all lanes, and said so: what follows is computed once a warp.
  const auto uniform = [](std::uint64_t descriptor) {
    return descriptor >> 32 << 32 | __shfl_sync(~0u, static_cast<std::uint32_t>(descriptor), 0);
  };
  const auto arrive = [](ptx::Mbarrier& barrier) {
    if (lane_id() == 0) ptx::mbarrier_arrive(barrier);
  };
  RingPlace<Config::tiles_ahead> place;
  RingPlace<Config::query_buffers> queries;
  RingPlace<Config::key_stages> keys;
  RingPlace<Config::value_stages> values;

  typename Config::Scores scores;    // [key_tile / 8][4]
  typename Config::Weights weights;  // [key_tile / 16][4]
  typename Config::Output output;    // [head_dim_v / 8][4]

  const auto take = [&] {  // the next tile's place in the ring, or -1 behind the last one
    ptx::mbarrier_wait(signals.tile_full[place.stage], place.parity);
    const int taken = signals.tile[place.stage].exists() ? place.stage : -1;
    place.advance();
    return taken;
  };
  const auto queries_now = [&] { return uniform(behind(first_queries, queries.stage * Config::query_tile_bytes)); };
  const auto keys_now = [&] { return uniform(behind(first_keys, keys.stage * Config::KeyTile::bytes)); };
  const auto values_now = [&] { return uniform(behind(first_values, values.stage * Config::ValueTile::bytes)); };

  if (warpgroup == Config::warpgroups - 1) pass_turn<Config>(warpgroup);  // the first begins
  int taken = take(), stored = -1;  // the buffer of queries that the tile before was stored from
  if (taken < 0) return;
  ptx::mbarrier_wait(signals.queries_full[queries.stage], queries.parity);
  ptx::mbarrier_wait(signals.keys_full[keys.stage], keys.parity);
  score<Config>(scores, queries_now(), keys_now());
  ptx::wgmma_wait<0>();
  ptx::hold(scores);
  for (;;) {
    const typename Config::Work& work = signals.tile[taken];
    const int first_query = min(work.first_query + (first_row >> cut.packed_shift), work.last_query) + work.offset;
    const int last_query =
        min(work.first_query + ((first_row + 63) >> cut.packed_shift), work.last_query) + work.offset;
    const int kv_len = work.kv_len, sequence = work.sequence;
    const auto is_full = [&](int tile) {
      const KeyRange range{tile, tile + Config::key_tile};
      return range.end <= kv_len && sees_all(variant, sequence, first_query, last_query, range);
    };
    KeySteps<Config::key_tile> steps(work);
    ScaledSoftmax softmax[2];  // of the thread's two rows; the sum is its own share
    float factor[2];
    bool is_first = true;  // product into `output`

    arrive(signals.keys_empty[keys.stage]);
    keys.advance();
    apply_rule<Config>(scores, variant, problem.scale, cut, work, row, steps.tile, is_full(steps.tile));
    soften<Config>(scores, softmax, factor, slope_log2);
    pack_weights<Config>(weights, scores);
    if (Config::stages_output && stored >= 0) {  // by now TMA has read what the last tile's rows were laid down in
      ptx::bulk_store_wait_read();
      __syncwarp();
      arrive(signals.queries_empty[stored]);
    }
    const int num_dead = round_up(kv_len, cut.box_rows) - kv_len;
    if (num_dead > 0 && steps.tile + Config::key_tile > kv_len) {
      ptx::mbarrier_wait(signals.values_full[values.stage], values.parity);
      silence<Config>(tiles.values[values.stage], kv_len - steps.tile, num_dead);
    }
    for (steps.advance(work); steps.tile >= 0; steps.advance(work)) {
      ptx::mbarrier_wait(signals.keys_full[keys.stage], keys.parity);
      wait_for_turn(warpgroup);
      score<Config>(scores, queries_now(), keys_now());
      ptx::mbarrier_wait(signals.values_full[values.stage], values.parity);
      accumulate<Config>(output, weights, values_now(), is_first);
      is_first = false;
      pass_turn<Config>(warpgroup);
      ptx::wgmma_wait<1>();
      ptx::hold(scores);
      arrive(signals.keys_empty[keys.stage]);
      keys.advance();
      apply_rule<Config>(scores, variant, problem.scale, cut, work, row, steps.tile, is_full(steps.tile));
      soften<Config>(scores, softmax, factor, slope_log2);
      ptx::hold(scores);
      ptx::keep_behind(softmax[0].sum + softmax[1].sum, shared_address(&signals));
      ptx::wgmma_wait<0>();
      ptx::hold(output);
      arrive(signals.values_empty[values.stage]);
      values.advance();
      if (__any_sync(~0u, factor[0] < 1.f || factor[1] < 1.f)) {  // rarely, once most keys have been seen
#pragma unroll
        for (int i = 0; i < Config::head_dim_v / 2; ++i) output[i] *= factor[i % 4 / 2];
      }
      pack_weights<Config>(weights, scores);
    }
    stored = queries.stage;
    if (!Config::stages_output) arrive(signals.queries_empty[queries.stage]);
    queries.advance();
    ptx::mbarrier_wait(signals.values_full[values.stage], values.parity);
    accumulate<Config>(output, weights, values_now(), is_first);
    const int next = take();
    if (next >= 0) {
      ptx::mbarrier_wait(signals.queries_full[queries.stage], queries.parity);
      ptx::mbarrier_wait(signals.keys_full[keys.stage], keys.parity);
    }
    // Behind the last tile, of whatever lies there: a branch around a product would make all of them wait.
    score<Config>(scores, queries_now(), keys_now());
    ptx::wgmma_wait<1>();
    ptx::hold(output);
    arrive(signals.values_empty[values.stage]);
    values.advance();
    const bool is_whole = work.first_query + ((first_row + 63) >> cut.packed_shift) <= work.last_query;
    if constexpr (Config::splits_keys)
      store_pieces<Config>(partials, cut, work, row, softmax, output);
    else if (Config::stages_output && is_whole)
      store_box<Config>(tiles.queries[stored][warpgroup], problem, variant, cut, out_map, work, row, softmax, output);
    else
      store<Config>(problem, variant, cut, work, row, softmax, output);
    __syncwarp();
    arrive(signals.tile_empty[taken]);
    ptx::wgmma_wait<0>();
    ptx::hold(scores);
    if (next < 0) break;
    taken = next;
  }
  if (Config::stages_output) ptx::bulk_store_wait();
}

template <class Config>
__device__ __forceinline__ void init_signals(typename Config::Signals& signals) {
  constexpr int warps = Config::multipliers / 32;
  for (int i = 0; i < Config::tiles_ahead; ++i) {
    ptx::mbarrier_init(signals.tile_full[i], 1);
    ptx::mbarrier_init(signals.tile_empty[i], warps + 2);
  }
  for (int i = 0; i < Config::query_buffers; ++i) {
    ptx::mbarrier_init(signals.queries_full[i], 1);
    ptx::mbarrier_init(signals.queries_empty[i], warps);
  }
  for (int i = 0; i < Config::key_stages; ++i) {
    ptx::mbarrier_init(signals.keys_full[i], 1);
    ptx::mbarrier_init(signals.keys_empty[i], warps);
  }
  for (int i = 0; i < Config::value_stages; ++i) {
    ptx::mbarrier_init(signals.values_full[i], 1);
    ptx::mbarrier_init(signals.values_empty[i], warps);
  }
  ptx::fence_mbarrier_init();
}

}  // namespace detail

/// Grid: at most one CTA an SM. Compiled for sm_90a alone: elsewhere it is empty, and has no static shared memory, by
/// which the launcher knows.
template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::threads, 1)
    attention_prefill_sm90_kernel(const Problem problem, const V variant, const PrefillCut cut,
                                  const __grid_constant__ PrefillMaps maps, const __grid_constant__ Partials partials,
                                  PrefillCounters* counters) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char shared_bytes[];
  static __shared__ __align__(16) unsigned char signal_bytes[sizeof(typename Config::Signals)];
  auto& signals = *reinterpret_cast<typename Config::Signals*>(signal_bytes);
  auto& tiles = *reinterpret_cast<typename Config::Tiles*>(
      round_up<std::uintptr_t>(reinterpret_cast<std::uintptr_t>(shared_bytes), 1024));
  if (threadIdx.x == 0) detail::init_signals<Config>(signals);
  if (threadIdx.x == 32)
    for (const ptx::TensorMap* map : {&maps.queries, &maps.keys, &maps.values}) ptx::prefetch_tensormap(*map);
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::launch_dependents();
  if (threadIdx.x < 128) {
    ptx::give_registers<Config::fetch_registers>();
    if (detail::warp_id() == 0) detail::fetch_keys<Config>(tiles, signals, problem, cut, maps);
    if (detail::warp_id() == 1) detail::fetch_values<Config>(tiles, signals, problem, cut, maps);
    if (detail::warp_id() == 2) detail::take_tiles<Config>(signals, problem, variant, cut, partials, *counters);
  } else {
    ptx::take_registers<Config::multiply_registers>();
    detail::multiply<Config>(tiles, signals, problem, variant, cut, maps.out, partials);
  }
#endif
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
