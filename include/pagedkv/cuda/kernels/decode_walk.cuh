// How a CTA of decode_sm80 finds its slice of the batch's keys, walks over it, and keeps its warps' rings filled ahead.
#pragma once

#include <cstdint>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The part of the batch's keys that one CTA attends to.
struct DecodeSlice {
  Slices slices;
  bool cuts_rows = false;            // may a row's keys lie in several slices?
  std::int64_t begin = 0;            // linear unit
  int size = 0;                      // units
  int item = 0, head = 0, unit = 0;  // where it begins
};

template <class Problem, AttentionVariant V>
__device__ __forceinline__ DecodeItem load_item(const Problem& problem, const V& variant, const DecodeCut& cut,
                                                int index) {
  const int sequence = cut.tiles_per_seq.quotient(index);
  return make_item(cut, variant, index, problem.tables.q_len(sequence), problem.tables.kv_len(sequence));
}

/// Items are summed in runs of 32, longer ones where there would be too many of them.
template <class Config>
__device__ __forceinline__ int items_per_run(const DecodeCut& cut) {
  return 32 * ceil_div(ceil_div(cut.num_items, 32), Config::max_runs);
}

/// Where a linear unit lies: a slice that begins there and ends with the row. All warps find the same.
template <class Config, class Problem, AttentionVariant V>
__device__ DecodeSlice locate(const Problem& problem, const V& variant, const DecodeCut& cut,
                              const std::int64_t* run_units, std::int64_t target) {
  const int run_items = items_per_run<Config>(cut);
  std::int64_t before = 0;  // units of one head in front of `first`
  int first = 0;
  for (int run = 0; first + run_items < cut.num_items && (before + run_units[run]) * cut.kv_heads <= target; ++run) {
    before += run_units[run];
    first += run_items;
  }
  for (;; first += 32) {
    const int mine = first + lane_id();
    const int units = mine < cut.num_items ? load_item(problem, variant, cut, mine).units.size() : 0;
    std::int64_t up_to = before + units;  // of this lane and those below
    for (int step = 1; step < 32; step *= 2) {
      const std::int64_t below = __shfl_up_sync(~0u, up_to - before, step);
      if (lane_id() >= step) up_to += below;
    }
    const unsigned reached = __ballot_sync(~0u, up_to * cut.kv_heads > target);
    if (reached == 0) {
      before = __shfl_sync(~0u, up_to, 31);
      continue;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1;
    const int row_units = __shfl_sync(~0u, units, lane);
    const std::int64_t item_begin = (__shfl_sync(~0u, up_to, lane) - row_units) * cut.kv_heads;
    DecodeSlice place;
    place.begin = target;
    place.item = first + lane;
    place.head = static_cast<int>((target - item_begin) / row_units);
    place.unit = static_cast<int>(target - item_begin - std::int64_t{place.head} * row_units);
    place.size = row_units - place.unit;
    return place;
  }
}

/// Puts this CTA's slice, found from lengths alone, where all warps can read it. Is there one?
template <class Config, class Problem, AttentionVariant V>
__device__ bool find_slice(typename Config::SharedMemory& shared, const Problem& problem, const V& variant,
                           const DecodeCut& cut) {
  auto* const run_units = reinterpret_cast<std::int64_t*>(&shared.ring);  // [num_runs], before anything is fetched
  const int run_items = items_per_run<Config>(cut);
  const auto units_of_run = [&](int begin) {
    std::int64_t units = 0;
    for (int item = begin + lane_id(); item < min(begin + run_items, cut.num_items); item += 32)
      units += load_item(problem, variant, cut, item).units.size();
    for (int step = 16; step > 0; step /= 2) units += __shfl_xor_sync(~0u, units, step);
    return units;
  };
  std::int64_t num_units = 0;  // of one head
  if (cut.num_items <= run_items) {
    num_units = units_of_run(0);
  } else {
    const int num_runs = ceil_div(cut.num_items, run_items);
    for (int run = warp_id(); run < num_runs; run += Config::warps) {
      const std::int64_t units = units_of_run(run * run_items);
      if (lane_id() == 0) run_units[run] = units;
    }
    __syncthreads();
    for (int run = 0; run < num_runs; ++run) num_units += run_units[run];
  }

  const Slices slices = make_slices(cut, num_units * cut.kv_heads);
  const int slice = static_cast<int>(blockIdx.x);
  DecodeSlice mine;
  if (slice < slices.num_slices) {
    mine = locate<Config>(problem, variant, cut, run_units, slices.begin(slice));
    std::int64_t end = slices.begin(slice + 1);
    const bool cuts_rows = may_cut_rows(cut, slices);
    if (!cuts_rows) {  // both ends move up to the end of a row
      const auto row_end = [](const DecodeSlice& at) { return at.unit == 0 ? at.begin : at.begin + at.size; };
      if (end < slices.num_units) end = row_end(locate<Config>(problem, variant, cut, run_units, end));
      const std::int64_t begin = min(end, row_end(mine));
      if (begin != mine.begin && begin < end) mine = locate<Config>(problem, variant, cut, run_units, begin);
      mine.begin = begin;
    }
    mine.size = static_cast<int>(end - mine.begin);
    mine.slices = slices;
    mine.cuts_rows = cuts_rows;
  }
  if (threadIdx.x == 0) shared.slice = mine;
  __syncthreads();  // and the ring is free
  return mine.size > 0;
}

/// Walks over a slice, one tile of keys (key_tile) at a time.
struct DecodeCursor {
  DecodeItem item;
  int index;  // of the item
  int head;
  int unit;  // of this item and head
  int left;  // units of the slice, this one included
  int key;   // where the tile begins
};

__device__ __forceinline__ int first_key(const DecodeCursor& cursor, const DecodeCut& cut) {
  return cursor.item.units[cursor.unit] << cut.unit_shift;
}

template <class Problem, AttentionVariant V>
__device__ __forceinline__ DecodeCursor start(const DecodeSlice& slice, const Problem& problem, const V& variant,
                                              const DecodeCut& cut) {
  DecodeCursor cursor{load_item(problem, variant, cut, slice.item), slice.item, slice.head, slice.unit, slice.size, 0};
  cursor.key = first_key(cursor, cut);
  return cursor;
}

/// Is this the last tile of its unit?
template <class Config>
__device__ __forceinline__ bool unit_ends(const DecodeCursor& cursor, const DecodeCut& cut) {
  const int next = cursor.key + Config::key_tile;
  return (next & ((1 << cut.unit_shift) - 1)) == 0 || next >= cursor.item.kv_len;
}

/// To the next tile; behind the last one `left` is 0 and nothing else means anything.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void advance(DecodeCursor& cursor, const Problem& problem, const V& variant,
                                        const DecodeCut& cut) {
  if (!unit_ends<Config>(cursor, cut)) {
    cursor.key += Config::key_tile;
    return;
  }
  if (--cursor.left == 0) return;
  if (++cursor.unit == cursor.item.units.size()) {
    cursor.unit = 0;
    if (++cursor.head == cut.kv_heads) {
      cursor.head = 0;
      do cursor.item = load_item(problem, variant, cut, ++cursor.index);
      while (cursor.item.units.size() == 0);
    }
  }
  cursor.key = first_key(cursor, cut);
}

/// The keys of a warp's step.
template <class Config>
__device__ __forceinline__ KeyRange chunk_of(const DecodeCursor& cursor) {
  const int begin = cursor.key + warp_id() * Config::chunk;
  return {begin, begin + Config::chunk};
}

}  // namespace detail

/// Where keys and values come from.
struct DecodePools {
  ChunkedPool k, v;
  int num_blocks;
};

namespace detail {

/// Fills a warp's ring ahead of the sums. The table entries of a step are asked for one step before its keys.
template <class Config>
struct DecodeLoader {
  DecodeCursor cursor;
  int block = -1;  // of the lane's key
  bool seen = false;

  /// A key that nobody can see is dead: its table entry may hold any bits, and is not read.
  template <class Problem>
  __device__ __forceinline__ void look_up(const Problem& problem, const DecodeCut& cut) {
    const int key = chunk_of<Config>(cursor).begin + lane_id() % Config::chunk;
    seen = cursor.left > 0 && cursor.item.sees({key, key + 1});
    if (seen) block = problem.tables.block_ids(cursor.item.sequence, cut.block_size.quotient(key));
  }

  /// Starts the copies of the next step, K and V in a group each, which stay empty where a step has no keys.
  template <class Problem, AttentionVariant V>
  __device__ __forceinline__ void fetch(typename Config::Stage& stage, const Problem& problem, const V& variant,
                                        const DecodeCut& cut, const DecodePools& pools) {
    // A block that is gone leaves its keys dead.
    const bool live = seen && static_cast<unsigned>(block) < static_cast<unsigned>(pools.num_blocks);
    const unsigned live_lanes = __ballot_sync(~0u, live);
    const int key = chunk_of<Config>(cursor).begin;
    using KeyTile = typename Config::KeyTile;
    using ValueTile = typename Config::ValueTile;
    if (live_lanes == 0) {
      ptx::cp_async_commit();
      ptx::cp_async_commit();
    } else if (cut.chunks_in_blocks) {
      const int shared_block = __shfl_sync(~0u, block, __ffs(static_cast<int>(live_lanes)) - 1);
      const int slot = cut.block_size.remainder(key);
      fetch_rows<KeyTile, Config::chunk>(stage.keys, pools.k, shared_block, cursor.head, slot, live_lanes);
      ptx::cp_async_commit();
      fetch_rows<ValueTile, Config::chunk>(stage.values, pools.v, shared_block, cursor.head, slot, live_lanes);
      ptx::cp_async_commit();
    } else {
      const PagedRow row{live ? block : 0, cut.block_size.remainder(key + lane_id() % Config::chunk), live};
      fetch_rows<KeyTile, Config::chunk>(stage.keys, pools.k, cursor.head, row);
      ptx::cp_async_commit();
      fetch_rows<ValueTile, Config::chunk>(stage.values, pools.v, cursor.head, row);
      ptx::cp_async_commit();
    }
    if (cursor.left == 0) return;
    advance<Config>(cursor, problem, variant, cut);
    look_up(problem, cut);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
