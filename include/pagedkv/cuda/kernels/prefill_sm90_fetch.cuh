// How prefill_sm90's first warpgroup keeps the others supplied: warp 2 finds tiles of queries, warp 0 lifts queries and
// keys, warp 1 values, all by TMA.
#pragma once

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/ptx/global.cuh"
#include "pagedkv/cuda/ptx/mbarrier.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/tile/key_tiles.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// The tensors out of which TMA lifts boxes, and into which it stores them.
struct PrefillMaps {
  ptx::TensorMap queries, keys, values, out;
};

namespace detail {

/// A place in a ring of stages, and how often the ring has gone round.
template <int Stages>
struct RingPlace {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage < Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Walks over the tiles of keys that a tile of queries meets, last one first.
template <int KeyTile>
struct KeySteps {
  int tile;  // -1: behind the last one

  __device__ __forceinline__ explicit KeySteps(const PrefillWork& work) { enter(work, work.last_tile); }
  __device__ __forceinline__ void advance(const PrefillWork& work) {
    if (tile > run_begin_)
      tile -= KeyTile;
    else
      enter(work, previous_key_tile(work.seen, work.keys(), KeyTile, tile));
  }

 private:
  __device__ __forceinline__ void enter(const PrefillWork& work, int new_tile) {
    tile = new_tile;
    const KeyRange second = intersect(work.seen.second, work.keys());
    const bool in_second = !second.empty() && tile + KeyTile > second.begin;
    run_begin_ = (in_second ? second.begin : max(work.seen.first.begin, 0)) / KeyTile * KeyTile;
  }

  int run_begin_;  // the first of the tiles that follow each other without a gap
};

// ---- finding tiles: warp 2

/// Walks over the batch, 32 sequences at a time; indices only grow, so each length is loaded once a CTA.
struct TileFinder {
  int first = 0;            // sequence of lane 0
  std::int64_t before = 0;  // tiles of all sequences in front of it
  std::int64_t up_to = -1;  // tiles of lane 0's sequence up to this lane's; -1: not yet loaded
  int num_tiles = 0;        // of this lane's sequence
};

/// The tile with this index; one that does not exist behind the last.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ typename Config::Work find_tile(TileFinder& finder, std::int64_t index,
                                                           const Problem& problem, const V& variant,
                                                           const PrefillCut& cut) {
  const auto& tables = problem.tables;
  unsigned reached = 0;
  for (;; finder.before += __shfl_sync(~0u, finder.up_to, 31), finder.first += 32, finder.up_to = -1) {
    if (finder.first >= cut.num_seqs) return {};
    if (__shfl_sync(~0u, finder.up_to, 0) < 0) {
      const int sequence = finder.first + lane_id();
      finder.num_tiles = sequence < cut.num_seqs ? static_cast<int>(cut.num_tiles(tables.q_len(sequence))) : 0;
      if constexpr (Config::splits_keys) finder.num_tiles *= cut.num_splits;
      finder.up_to = finder.num_tiles;
      for (int step = 1; step < 32; step *= 2) {
        const std::int64_t below = __shfl_up_sync(~0u, finder.up_to, step);
        if (lane_id() >= step) finder.up_to += below;
      }
    }
    reached = __ballot_sync(~0u, finder.before + finder.up_to > index);
    if (reached != 0) break;
  }
  const int lane = __ffs(static_cast<int>(reached)) - 1;
  const std::int64_t in_front = finder.before + __shfl_sync(~0u, finder.up_to - finder.num_tiles, lane);
  typename Config::Work work;
  work.sequence = finder.first + lane;
  const int q_len = tables.q_len(work.sequence);
  auto tile = static_cast<int>(index - in_front);
  if constexpr (Config::splits_keys) {
    work.split = tile % cut.num_splits;
    tile /= cut.num_splits;
  }
  const PrefillPlace place = place_of(cut, q_len, tile);
  work.first_query = place.query_tile * cut.tile_queries;
  work.last_query = min(work.first_query + cut.tile_queries, q_len) - 1;
  work.q_head = place.head_tile << cut.packed_shift;
  work.kv_head = cut.group_tiles.quotient(place.head_tile);
  work.kv_len = tables.kv_len(work.sequence);
  work.offset = work.kv_len - q_len;
  work.first_token = tables.query_begin(work.sequence);
  work.seen = seen_keys(variant, work.first_query + work.offset, work.last_query + work.offset, work.kv_len);
  if constexpr (Config::splits_keys) {
    const KeyRange own = keys_of_split(work.seen, work.keys(), Config::key_tile, work.split, cut.num_splits);
    work.seen = {intersect(work.seen.first, own), intersect(work.seen.second, own)};
  }
  work.last_tile = last_key_tile(work.seen, work.keys(), Config::key_tile);
  return work;
}

/// Where the piece of a row waits for the others.
__device__ __forceinline__ std::int64_t piece_of_row(const PrefillCut& cut, const PrefillShare& share,
                                                     std::int64_t token, int q_head) {
  return (token * (cut.head_tiles << cut.packed_shift) + q_head) * cut.num_splits + share.split;
}

/// The rows of a tile that sees no key.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void store_nothing(const Problem& problem, const V& variant, const PrefillCut& cut,
                                              const Partials& partials, const typename Config::Work& work) {
  if constexpr (Config::splits_keys) {
    for (int row = lane_id(); row < Config::query_tile; row += 32) {
      const int query = work.first_query + (row >> cut.packed_shift);
      const int head = work.q_head + (row & ((1 << cut.packed_shift) - 1));
      if (query <= work.last_query) partials.softmax(piece_of_row(cut, work, work.first_token + query, head)) = {};
    }
    return;
  }
  constexpr int chunks = Config::head_dim_v / 8;
  for (int i = lane_id(); i < Config::query_tile * chunks; i += 32) {
    const int row = i / chunks, query = work.first_query + (row >> cut.packed_shift);
    if (query > work.last_query) return;
    const int head = work.q_head + (row & ((1 << cut.packed_shift) - 1));
    *reinterpret_cast<uint4*>(problem.out.at(work.first_token + query, head, i % chunks * 8)) = uint4{0, 0, 0, 0};
    if (!problem.lse.empty() && i % chunks == 0)
      problem.lse(work.first_token + query, head) = OnlineSoftmax{}.finish(prior_of(variant, head)).lse;
  }
}

// ---- fetching: warps 0 and 1

/// Lifts the tiles of keys (or values) that a tile of queries meets, last one first, into a ring of stages. A lane
/// knows the block of one box. Boxes that nobody sees, or whose block is gone, come from behind the last block: as
/// zeros. `between(is_first)` is called behind each tile.
template <class Config, class Descriptor, int Stages, class Problem, class Between>
__device__ __forceinline__ void lift_tiles(typename Config::Element (&tiles)[Stages][Descriptor::elements],
                                           ptx::Mbarrier (&full)[Stages], ptx::Mbarrier (&empty)[Stages],
                                           RingPlace<Stages>& place, const ptx::TensorMap& map, const Problem& problem,
                                           const PrefillCut& cut, const PrefillWork& work, Between&& between) {
  using Tile = typename Descriptor::Tile;
  constexpr int columns = Tile::columns_per_slab, slabs = Descriptor::num_slabs;
  const int num_blocks = static_cast<int>(problem.kv.num_blocks());
  const int my_row = lane_id() * cut.box_rows;  // of the tile
  const auto find_block = [&](int tile) {
    const int key = tile + my_row;
    if (tile < 0 || my_row >= Config::key_tile || !work.seen.touches({key, min(key + cut.box_rows, work.kv_len)}))
      return num_blocks;
    const int block = problem.tables.block_ids(work.sequence, cut.block_size.quotient(key));
    return block < 0 || block > num_blocks ? num_blocks : block;
  };
  KeySteps<Config::key_tile> steps(work);
  bool is_first = true;
  int block = find_block(steps.tile);
  while (steps.tile >= 0) {
    const int tile = steps.tile;
    steps.advance(work);
    const int next_block = find_block(steps.tile);
    ptx::mbarrier_wait(empty[place.stage], place.parity ^ 1);
    if (lane_id() == 0) ptx::mbarrier_arrive_expect_tx(full[place.stage], sizeof(tiles[0]));
    __syncwarp();
    if (my_row < Config::key_tile) {
      const int slot = cut.block_size.remainder(tile + my_row);
#pragma unroll
      for (int slab = 0; slab < slabs; ++slab)
        ptx::cp_async_bulk_tensor_5d(&tiles[place.stage][(slab * Config::key_tile + my_row) * columns], map,
                                     {0, slot, slab, work.kv_head, block}, full[place.stage]);
    }
    place.advance();
    between(is_first);
    is_first = false;
    block = next_block;
  }
}

/// Lifts the packed rows of a tile: for each slab of 128 bytes and warpgroup one box of heads and tokens.
template <class Config>
__device__ __forceinline__ void lift_queries(
    typename Config::Element (&tiles)[Config::warpgroups][64 * Config::head_dim], ptx::Mbarrier& full,
    const ptx::TensorMap& map, const PrefillCut& cut, const PrefillWork& work) {
  using Descriptor = typename Config::QueryTile;
  if (lane_id() == 0) ptx::mbarrier_arrive_expect_tx(full, sizeof(tiles));
  __syncwarp();
  if (lane_id() < Config::warpgroups * Descriptor::num_slabs) {
    const int warpgroup = lane_id() / Descriptor::num_slabs, slab = lane_id() % Descriptor::num_slabs;
    const int token = static_cast<int>(work.first_token) + work.first_query + (warpgroup * 64 >> cut.packed_shift);
    ptx::cp_async_bulk_tensor_5d(&tiles[warpgroup][slab * 64 * Descriptor::Tile::columns_per_slab], map,
                                 {0, work.q_head, token, slab, 0}, full);
  }
}

/// Warp 2: takes tiles until there are no more, and tells the others, who are tiles behind.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void take_tiles(typename Config::Signals& signals, const Problem& problem, const V& variant,
                                           const PrefillCut& cut, const Partials& partials, PrefillCounters& counters) {
  TileFinder finder;
  unsigned index = blockIdx.x;
  for (RingPlace<Config::tiles_ahead> place;;) {
    const typename Config::Work work = find_tile<Config>(finder, index, problem, variant, cut);
    if (work.exists() && work.last_tile < 0) {
      store_nothing<Config>(problem, variant, cut, partials, work);
    } else {
      ptx::mbarrier_wait(signals.tile_empty[place.stage], place.parity ^ 1);
      __syncwarp();  // a slower lane must not ask when the ring has gone round
      if (lane_id() == 0) {
        signals.tile[place.stage] = work;
        ptx::mbarrier_arrive(signals.tile_full[place.stage]);
      }
      if (!work.exists()) break;
      place.advance();
    }
    if (lane_id() == 0) index = gridDim.x + atomicAdd(&counters.taken, 1u);
    index = __shfl_sync(~0u, index, 0);
  }
  // Everybody has taken what there was when the last one comes.
  if (lane_id() == 0 && ptx::increment_wrapping(counters.finished, gridDim.x - 1) == gridDim.x - 1) counters.taken = 0;
}

/// Calls f(work) for each tile that warp 2 finds; all warps but that one. Registers are scarce: work stays in shared
/// memory.
template <class Config, class F>
__device__ __forceinline__ void for_each_tile(typename Config::Signals& signals, F&& f) {
  for (RingPlace<Config::tiles_ahead> place;; place.advance()) {
    ptx::mbarrier_wait(signals.tile_full[place.stage], place.parity);
    const PrefillWork& work = signals.tile[place.stage];
    if (!work.exists()) return;
    f(work);
    __syncwarp();
    if (lane_id() == 0) ptx::mbarrier_arrive(signals.tile_empty[place.stage]);
  }
}

/// Warp 0: lifts queries and keys.
template <class Config, class Problem>
__device__ __forceinline__ void fetch_keys(typename Config::Tiles& tiles, typename Config::Signals& signals,
                                           const Problem& problem, const PrefillCut& cut, const PrefillMaps& maps) {
  RingPlace<Config::key_stages> keys;
  RingPlace<Config::query_buffers> queries;
  for_each_tile<Config>(signals, [&](const PrefillWork& work) {
    lift_tiles<Config, typename Config::KeyTile>(
        tiles.keys, signals.keys_full, signals.keys_empty, keys, maps.keys, problem, cut, work, [&](bool is_first) {
          if (!is_first) return;
          ptx::mbarrier_wait(signals.queries_empty[queries.stage], queries.parity ^ 1);
          lift_queries<Config>(tiles.queries[queries.stage], signals.queries_full[queries.stage], maps.queries, cut,
                               work);
          queries.advance();
        });
  });
}

/// Warp 1: lifts values.
template <class Config, class Problem>
__device__ __forceinline__ void fetch_values(typename Config::Tiles& tiles, typename Config::Signals& signals,
                                             const Problem& problem, const PrefillCut& cut, const PrefillMaps& maps) {
  RingPlace<Config::value_stages> values;
  for_each_tile<Config>(signals, [&](const PrefillWork& work) {
    lift_tiles<Config, typename Config::ValueTile>(tiles.values, signals.values_full, signals.values_empty, values,
                                                   maps.values, problem, cut, work, [](bool) {});
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
