// How a CTA of decode_sm80 finds its slice of the batch's keys, walks over it, and keeps its warps' rings filled ahead.
#pragma once

#include <cstdint>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/global.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What all warps of a CTA know of the batch, in shared memory.
template <int MaxRuns>
struct DecodeWork {
  std::int64_t run_units[MaxRuns];  // units of one head, summed over runs of items
  Slices slices;
  bool cuts_rows;  // may a row's keys lie in several slices?
  int queue[3];    // slices of this CTA, by turns: one at work, one that is fetched ahead, one that is being asked for
};

template <class Problem>
__device__ __forceinline__ SequenceLengths load_lengths(const Problem& problem, const DecodeCut& cut, int index) {
  if (index >= cut.num_items) return {};
  const int sequence = cut.tiles_per_seq.quotient(index);
  const auto& tables = problem.tables;
  return {tables.query_begin(sequence), tables.query_begin(sequence + 1), tables.kv_len(sequence)};
}

template <class Problem, AttentionVariant V>
__device__ __forceinline__ int load_units(const Problem& problem, const V& variant, const DecodeCut& cut, int index) {
  return make_item(cut, variant, index, load_lengths(problem, cut, index)).units.size();
}

/// Items are summed in runs of 32, longer ones where there would be too many of them.
template <class Config>
__device__ __forceinline__ int items_per_run(const DecodeCut& cut) {
  return 32 * ceil_div(ceil_div(cut.num_items, 32), Config::max_runs);
}

/// Sums up the batch, from lengths alone, and queues the first two slices of this CTA.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void find_work(typename Config::SharedMemory& shared, const Problem& problem,
                                          const V& variant, const DecodeCut& cut) {
  auto& work = shared.work;
  const int run_items = items_per_run<Config>(cut), num_runs = ceil_div(cut.num_items, run_items);
  for (int run = warp_id(); run < num_runs; run += Config::warps) {
    std::int64_t units = 0;
    for (int item = run * run_items + lane_id(); item < min((run + 1) * run_items, cut.num_items); item += 32)
      units += load_units(problem, variant, cut, item);
    for (int step = 16; step > 0; step /= 2) units += __shfl_xor_sync(~0u, units, step);
    if (lane_id() == 0) work.run_units[run] = units;
  }
  if (num_runs > 1) __syncthreads();
  if (threadIdx.x == 0) {
    std::int64_t num_units = 0;
    for (int run = 0; run < num_runs; ++run) num_units += work.run_units[run];
    work.slices = make_slices(cut, cut.max_slices, num_units * cut.kv_heads);
    work.cuts_rows = may_cut_rows(cut, work.slices);
    if (!work.cuts_rows) work.slices = make_slices(cut, cut.num_ctas, num_units * cut.kv_heads);
    work.queue[0] = static_cast<int>(blockIdx.x);
    work.queue[1] = work.slices.num_large + static_cast<int>(blockIdx.x);
    if (work.slices.num_large == 0) work.queue[1] = work.slices.num_slices;
  }
  __syncthreads();
}

/// One thread of a CTA: the next slice that nobody has; num_slices or more if all are dealt out.
template <int MaxRuns>
__device__ __forceinline__ int take_slice(const DecodeWork<MaxRuns>& work, const DecodeCut& cut,
                                          const Partials& partials) {
  if (work.slices.num_large == 0) return work.slices.num_slices;
  const int dealt_in_advance = work.slices.num_large + cut.num_ctas;
  return dealt_in_advance + static_cast<int>(ptx::increment_wrapping(partials.tickets(0), ~0u));
}

/// One thread of a CTA that takes no more: the last CTA of the grid leaves the counters at 0.
template <int MaxRuns>
__device__ __forceinline__ void give_back_tickets(const DecodeWork<MaxRuns>& work, const DecodeCut& cut,
                                                  const Partials& partials) {
  if (work.slices.num_large == 0) return;
  const auto last = static_cast<unsigned>(cut.num_ctas - 1);
  if (ptx::increment_wrapping(partials.tickets(1), last) == last) partials.tickets(0) = 0;
}

/// Walks over a slice, one tile of keys (key_tile) at a time.
struct DecodeCursor {
  DecodeItem item;
  int index;             // of the item
  SequenceLengths next;  // of the item behind it: long under way before they are needed
  int head;
  int unit;  // of this item and head
  int left;  // units of the slice, this one included
  int key;   // where the tile begins
  int turn;  // of the CTA's slices
};

__device__ __forceinline__ int first_key(const DecodeCursor& cursor, const DecodeCut& cut) {
  return cursor.item.units[cursor.unit] << cut.unit_shift;
}

/// Puts the cursor on a linear unit; `left` becomes what is left of that row. All warps find the same.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void locate(DecodeCursor& cursor, std::int64_t target, const Problem& problem,
                                       const V& variant, const DecodeCut& cut, const std::int64_t* run_units) {
  const int run_items = items_per_run<Config>(cut);
  std::int64_t before = 0;  // units of one head in front of `first`
  int first = 0;
  for (int run = 0; first + run_items < cut.num_items && (before + run_units[run]) * cut.kv_heads <= target; ++run) {
    before += run_units[run];
    first += run_items;
  }
  for (;; first += 32) {
    const int mine = first + lane_id();
    const int units = load_units(problem, variant, cut, mine);
    int up_to = units;  // of this lane and those below
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(~0u, up_to, step);
      if (lane_id() >= step) up_to += below;
    }
    const unsigned reached = __ballot_sync(~0u, (before + up_to) * cut.kv_heads > target);
    if (reached == 0) {
      before += __shfl_sync(~0u, up_to, 31);
      continue;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1;
    const int row_units = __shfl_sync(~0u, units, lane);
    const std::int64_t rest = target - (before + __shfl_sync(~0u, up_to, lane) - row_units) * cut.kv_heads;
    cursor.index = first + lane;
    cursor.item = make_item(cut, variant, cursor.index, load_lengths(problem, cut, cursor.index));
    cursor.next = load_lengths(problem, cut, cursor.index + 1);
    cursor.head = static_cast<int>(rest / row_units);
    cursor.unit = static_cast<int>(rest - std::int64_t{cursor.head} * row_units);
    cursor.left = row_units - cursor.unit;
    cursor.key = first_key(cursor, cut);
    return;
  }
}

/// Puts the cursor on the first tile of the CTA's slice of this turn; `left` is 0 if there is none.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void enter_slice(DecodeCursor& cursor, const DecodeWork<Config::max_runs>& work,
                                            const Problem& problem, const V& variant, const DecodeCut& cut) {
  const int slice = work.queue[cursor.turn % 3];
  cursor.left = 0;
  if (slice >= work.slices.num_slices) return;
  std::int64_t begin = work.slices.begin(slice), end = work.slices.begin(slice + 1);
  if (!work.cuts_rows) {  // both ends move up to the end of a row
    const auto row_end = [&](std::int64_t unit) {
      if (unit == work.slices.num_units) return unit;
      locate<Config>(cursor, unit, problem, variant, cut, work.run_units);
      return cursor.unit == 0 ? unit : unit + cursor.left;
    };
    begin = row_end(begin);
    end = row_end(end);
    cursor.left = 0;
    if (begin == end) return;
  }
  locate<Config>(cursor, begin, problem, variant, cut, work.run_units);
  cursor.left = static_cast<int>(end - begin);
}

/// Is this the last tile of its unit?
template <class Config>
__device__ __forceinline__ bool unit_ends(const DecodeCursor& cursor, const DecodeCut& cut) {
  const int next = cursor.key + Config::key_tile;
  return (next & ((1 << cut.unit_shift) - 1)) == 0 || next >= cursor.item.kv_len;
}

/// Is this the last tile of its row and head, as far as the slice goes?
template <class Config>
__device__ __forceinline__ bool row_ends(const DecodeCursor& cursor, const DecodeCut& cut) {
  return unit_ends<Config>(cursor, cut) && (cursor.left == 1 || cursor.unit + 1 == cursor.item.units.size());
}

/// And of what makes one partial?
template <class Config>
__device__ __forceinline__ bool piece_ends(const DecodeCursor& cursor, const DecodeCut& cut) {
  return unit_ends<Config>(cursor, cut) &&
         (cut.unit_pieces || cursor.left == 1 || cursor.unit + 1 == cursor.item.units.size());
}

/// To the next tile, of the next slice behind the last one of this; `left` is 0 where there is none.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void advance(DecodeCursor& cursor, const DecodeWork<Config::max_runs>& work,
                                        const Problem& problem, const V& variant, const DecodeCut& cut) {
  if (!unit_ends<Config>(cursor, cut)) {
    cursor.key += Config::key_tile;
    return;
  }
  if (--cursor.left == 0) {
    ++cursor.turn;
    return enter_slice<Config>(cursor, work, problem, variant, cut);
  }
  if (++cursor.unit == cursor.item.units.size()) {
    cursor.unit = 0;
    if (++cursor.head == cut.kv_heads) {
      cursor.head = 0;
      do {
        cursor.item = make_item(cut, variant, ++cursor.index, cursor.next);
        cursor.next = load_lengths(problem, cut, cursor.index + 1);
      } while (cursor.item.units.size() == 0);
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
  bool piece_begins = true;

  /// A key that nobody can see is dead: its table entry may hold any bits, and is not read.
  template <class Problem>
  __device__ __forceinline__ void look_up(const Problem& problem, const DecodeCut& cut) {
    const int key = chunk_of<Config>(cursor).begin + lane_id() % Config::chunk;
    seen = cursor.left > 0 && cursor.item.sees({key, key + 1});
    if (seen) block = problem.tables.block_ids(cursor.item.sequence, cut.block_size.quotient(key));
  }

  /// The item's rows of Q for this head, with the keys of their first step; rows that do not exist become zeros.
  template <class Problem>
  __device__ __forceinline__ void fetch_queries(typename Config::Stage& stage, const Problem& problem,
                                                const DecodeCut& cut) {
    using Tile = typename Config::KeyTile;
    const int first_head = cursor.head * static_cast<int>(cut.group_size.divisor);
#pragma unroll 1
    for (int i = lane_id(); i < Config::rows * Tile::chunks_per_row; i += 32) {
      const int row = i / Tile::chunks_per_row, column = i % Tile::chunks_per_row * Tile::chunk;
      const bool live = cursor.left > 0 && row < cursor.item.num_rows;
      const int packed = cursor.item.row_begin + (live ? row : 0);
      const auto* const from = problem.q.at(cursor.item.first_token + cut.group_size.quotient(packed),
                                            first_head + cut.group_size.remainder(packed), column);
      ptx::cp_async_16(&stage.queries[Tile::offset(row, column)], from, live);
    }
  }

  /// Starts the copies of the next step, K and V in a group each, which stay empty where a step has no keys.
  template <class Problem, AttentionVariant V>
  __device__ __forceinline__ void fetch(typename Config::Stage& stage, const Problem& problem, const V& variant,
                                        const DecodeCut& cut, const DecodePools& pools,
                                        const DecodeWork<Config::max_runs>& work) {
    // A block that is gone leaves its keys dead.
    const bool live = seen && static_cast<unsigned>(block) < static_cast<unsigned>(pools.num_blocks);
    const unsigned live_lanes = __ballot_sync(~0u, live);
    const int key = chunk_of<Config>(cursor).begin;
    if (piece_begins) fetch_queries(stage, problem, cut);
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
    piece_begins = piece_ends<Config>(cursor, cut);
    advance<Config>(cursor, work, problem, variant, cut);
    look_up(problem, cut);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
