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

/// What all warps of a CTA know of the batch, in shared memory.
template <int MaxRuns>
struct DecodeWork {
  std::int64_t run_units[MaxRuns];  // of one head, summed over runs of items
  Slices slices;
  bool cuts_rows;  // may a row's keys lie in several slices? If not, a whole row counts as one unit
};

template <class Problem>
__device__ __forceinline__ SequenceLengths load_lengths(const Problem& problem, const DecodeCut& cut, int index) {
  if (index >= cut.num_items) return {};
  const int sequence = cut.tiles_per_seq.quotient(index);
  const auto& tables = problem.tables;
  return {tables.query_begin(sequence), tables.query_begin(sequence + 1), tables.kv_len(sequence)};
}

/// What an item weighs when slices are cut.
template <class Problem, AttentionVariant V>
__device__ __forceinline__ int load_units(const Problem& problem, const V& variant, const DecodeCut& cut, int index,
                                          bool cuts_rows) {
  const int units = make_item(cut, variant, index, load_lengths(problem, cut, index)).units.size();
  return cuts_rows ? units : min(units, 1);
}

/// Items are summed in runs of 32, longer ones where there would be too many of them.
template <class Config>
__device__ __forceinline__ int items_per_run(const DecodeCut& cut) {
  return 32 * ceil_div(ceil_div(cut.num_items, 32), Config::max_runs);
}

/// Sums up the batch, from lengths alone, and cuts it.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void find_work(typename Config::SharedMemory& shared, const Problem& problem,
                                          const V& variant, const DecodeCut& cut) {
  auto& work = shared.work;
  const int run_items = items_per_run<Config>(cut), num_runs = ceil_div(cut.num_items, run_items);
#pragma unroll 1
  for (bool cuts_rows = true;; cuts_rows = false) {
    for (int run = warp_id(); run < num_runs; run += Config::warps) {
      std::int64_t units = 0;
      for (int item = run * run_items + lane_id(); item < min((run + 1) * run_items, cut.num_items); item += 32)
        units += load_units(problem, variant, cut, item, cuts_rows);
      for (int step = 16; step > 0; step /= 2) units += __shfl_xor_sync(~0u, units, step);
      if (lane_id() == 0) work.run_units[run] = units;
    }
    if (num_runs > 1) __syncthreads();
    if (threadIdx.x == 0) {
      std::int64_t num_units = 0;
      for (int run = 0; run < num_runs; ++run) num_units += work.run_units[run];
      const std::int64_t row_units = num_units / max(1, cut.num_items);
      work.slices =
          make_slices(cut, cuts_rows ? cut.min_slice_units : 1, cuts_rows ? row_units : 1, num_units * cut.kv_heads);
      work.cuts_rows = cuts_rows && may_cut_rows(cut, work.slices);
    }
    __syncthreads();
    if (!cuts_rows || work.cuts_rows) return;
    __syncthreads();  // all have read what is written again
  }
}

/// Walks over the slice of a CTA, one tile of keys (key_tile) at a time. Tiles that follow each other make a run: between
/// them there is nothing to do but to add.
struct DecodeCursor {
  int key, run_end;          // where the tile begins; behind the last one of the run
  int full_begin, full_end;  // a chunk within these is seen as a whole; of others sees() tells
  int head;
  int unit, run_units;  // first of the run, of this item and head; as many
  int left;             // units of the slice, those of this run included; 0: it is at its end
  int index;            // of the item
  DecodeItem item;
  SequenceLengths next;  // of the item behind it: long under way before they are needed
};

/// Is this the last tile of its run?
template <class Config>
__device__ __forceinline__ bool run_ends(const DecodeCursor& cursor) {
  return cursor.key + Config::key_tile >= cursor.run_end;
}

/// The last one of its row and head, as far as the slice goes?
template <class Config>
__device__ __forceinline__ bool row_ends(const DecodeCursor& cursor, bool cuts_rows) {
  return run_ends<Config>(cursor) &&
         (cursor.unit + cursor.run_units == cursor.item.units.size() || (cuts_rows && cursor.left == cursor.run_units));
}

/// And of what makes one partial?
template <class Config>
__device__ __forceinline__ bool piece_ends(const DecodeCursor& cursor, bool cuts_rows, const DecodeCut& cut) {
  return run_ends<Config>(cursor) && (cut.unit_pieces || row_ends<Config>(cursor, cuts_rows));
}

/// Makes a run of the units that follow cursor.unit without a gap.
__device__ __forceinline__ void start_run(DecodeCursor& cursor, bool cuts_rows, const DecodeCut& cut) {
  const UnitList& units = cursor.item.units;
  const bool in_first = cursor.unit < units.num_first;
  const int first = units[cursor.unit], together = (in_first ? units.num_first : units.size()) - cursor.unit;
  cursor.run_units = cut.unit_pieces ? 1 : cuts_rows ? min(cursor.left, together) : together;
  cursor.key = first << cut.unit_shift;
  cursor.run_end = min((first + cursor.run_units) << cut.unit_shift, cursor.item.kv_len);
  const KeyRanges& seen = cursor.item.seen;  // chosen by value: an address would keep the cursor out of registers
  cursor.full_begin = in_first ? seen.first.begin : seen.second.begin;
  cursor.full_end = in_first ? seen.first.end : seen.second.end;
}

/// The cursor on the first tile of this CTA's slice. All warps find the same.
template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ DecodeCursor enter_slice(const DecodeWork<Config::max_runs>& work, const Problem& problem,
                                                    const V& variant, const DecodeCut& cut) {
  DecodeCursor cursor{};
  const int slice = static_cast<int>(blockIdx.x), run_items = items_per_run<Config>(cut);
  if (slice >= work.slices.num_slices) return cursor;
  const std::int64_t begin = work.slices.begin(slice);
  std::int64_t before = 0;  // units of one head in front of `first`
  int first = 0;
  for (int run = 0; first + run_items < cut.num_items; ++run) {
    if ((before + work.run_units[run]) * cut.kv_heads > begin) break;
    before += work.run_units[run];
    first += run_items;
  }
  for (;; first += 32) {
    const int units = load_units(problem, variant, cut, first + lane_id(), work.cuts_rows);
    int up_to = units;  // of this lane and those below
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(~0u, up_to, step);
      if (lane_id() >= step) up_to += below;
    }
    const unsigned reached = __ballot_sync(~0u, (before + up_to) * cut.kv_heads > begin);
    if (reached == 0) {
      before += __shfl_sync(~0u, up_to, 31);
      continue;
    }
    const int lane = __ffs(static_cast<int>(reached)) - 1, row_units = __shfl_sync(~0u, units, lane);
    const std::int64_t rest = begin - (before + __shfl_sync(~0u, up_to, lane) - row_units) * cut.kv_heads;
    cursor.index = first + lane;
    cursor.item = make_item(cut, variant, cursor.index, load_lengths(problem, cut, cursor.index));
    cursor.next = load_lengths(problem, cut, cursor.index + 1);
    cursor.head = static_cast<int>(rest / row_units);
    cursor.unit = static_cast<int>(rest - std::int64_t{cursor.head} * row_units);
    cursor.left = static_cast<int>(work.slices.begin(slice + 1) - begin);
    start_run(cursor, work.cuts_rows, cut);
    return cursor;
  }
}

/// To the next run: of this row, of the next head or item.
template <class Problem, AttentionVariant V>
__device__ __forceinline__ void next_run(DecodeCursor& cursor, bool cuts_rows, const Problem& problem, const V& variant,
                                         const DecodeCut& cut) {
  cursor.unit += cursor.run_units;
  const bool row_is_done = cursor.unit == cursor.item.units.size();
  if (cuts_rows) cursor.left -= cursor.run_units;
  if (!cuts_rows && row_is_done) --cursor.left;
  if (cursor.left == 0) return;
  if (row_is_done) {
    cursor.unit = 0;
    if (++cursor.head == cut.kv_heads) {
      cursor.head = 0;
      do {
        cursor.item = make_item(cut, variant, ++cursor.index, cursor.next);
        cursor.next = load_lengths(problem, cut, cursor.index + 1);
      } while (cursor.item.units.size() == 0);
    }
  }
  start_run(cursor, cuts_rows, cut);
}

template <class Config, class Problem, AttentionVariant V>
__device__ __forceinline__ void advance(DecodeCursor& cursor, bool cuts_rows, const Problem& problem, const V& variant,
                                        const DecodeCut& cut) {
  if (run_ends<Config>(cursor))
    next_run(cursor, cuts_rows, problem, variant, cut);
  else
    cursor.key += Config::key_tile;
}

/// The keys of a warp's step.
template <class Config>
__device__ __forceinline__ KeyRange chunk_of(const DecodeCursor& cursor) {
  const int begin = cursor.key + warp_id() * Config::chunk;
  return {begin, begin + Config::chunk};
}

__device__ __forceinline__ bool is_full(const DecodeCursor& cursor, KeyRange chunk) {
  return chunk.begin >= cursor.full_begin && chunk.end <= cursor.full_end;
}

__device__ __forceinline__ bool is_seen(const DecodeCursor& cursor, KeyRange chunk) {
  return is_full(cursor, chunk) || cursor.item.sees(chunk);
}

}  // namespace detail

/// Where keys and values come from.
struct DecodePools {
  ChunkedPool k, v;
  int num_blocks;
};

namespace detail {

/// Fills a warp's ring ahead of the sums.
template <class Config>
struct DecodeLoader {
  DecodeCursor cursor;
  int tile = 0;           // of the run, from 0
  int entries = -1;       // lane l holds the table entry of the warp's chunk in tile l of 32
  int next_entries = -1;  // of the 32 tiles behind them: under way long before they are needed
  int first_entries = -1, first_item = -1, first_key = 0;  // of a run's first tiles: the next head's are the same
  int block = -1;                                          // of the lane's key, where a chunk may lie in several blocks

  /// The table entries of the run's next tiles. What nobody sees is not read.
  template <class Problem>
  __device__ __forceinline__ int load_entries(const Problem& problem, const DecodeCut& cut, int first_tile) const {
    if (cursor.left == 0 || !cut.chunks_in_blocks) return -1;
    KeyRange chunk = chunk_of<Config>(cursor);
    const int ahead = (first_tile - tile + lane_id()) * Config::key_tile;
    chunk = {chunk.begin + ahead, chunk.end + ahead};
    if (chunk.begin >= cursor.run_end || !is_seen(cursor, chunk)) return -1;
    return problem.tables.block_ids(cursor.item.sequence, cut.block_size.quotient(chunk.begin));
  }

  template <class Problem>
  __device__ __forceinline__ void start_run(const Problem& problem, const DecodeCut& cut) {
    if (cursor.index != first_item || cursor.key != first_key) {
      tile = 0;
      first_entries = load_entries(problem, cut, 0);
      first_item = cursor.index;
      first_key = cursor.key;
    }
    tile = 0;
    entries = first_entries;
    next_entries = -1;
    if (cursor.run_end - cursor.key > 32 * Config::key_tile) next_entries = load_entries(problem, cut, 32);
  }

  /// Where chunks may lie in several blocks, each lane asks for its own key's, long before fetch() needs it.
  template <class Problem>
  __device__ __forceinline__ void look_up(const Problem& problem, const DecodeCut& cut) {
    if (cut.chunks_in_blocks || cursor.left == 0) return;
    const int key = chunk_of<Config>(cursor).begin + lane_id() % Config::chunk;
    block = cursor.item.sees({key, key + 1})
                ? problem.tables.block_ids(cursor.item.sequence, cut.block_size.quotient(key))
                : -1;
  }

  /// Starts the copies of the step, K and V in a group each, and goes on to the next. A step without keys has empty
  /// groups.
  template <class Problem, AttentionVariant V>
  __device__ __forceinline__ void fetch(typename Config::Stage& stage, const Problem& problem, const V& variant,
                                        const DecodeCut& cut, const DecodePools& pools, bool cuts_rows) {
    const KeyRange chunk = chunk_of<Config>(cursor);
    if (cursor.left == 0) {
      ptx::cp_async_commit();
      ptx::cp_async_commit();
      return;
    }
    if (cut.chunks_in_blocks) block = __shfl_sync(~0u, entries, tile % 32);
    // A block that is gone leaves its keys dead.
    const bool exists = static_cast<unsigned>(block) < static_cast<unsigned>(pools.num_blocks);
    if (cut.chunks_in_blocks && exists && is_full(cursor, chunk)) {
      const int slot = cut.block_size.remainder(chunk.begin);
      fetch_rows<typename Config::KeyTile, Config::chunk>(stage.keys, pools.k, block, cursor.head, slot);
      ptx::cp_async_commit();
      fetch_rows<typename Config::ValueTile, Config::chunk>(stage.values, pools.v, block, cursor.head, slot);
    } else {
      const int key = chunk.begin + lane_id() % Config::chunk;
      const bool live = exists && cursor.item.sees({key, key + 1});
      const PagedRow row{live ? block : 0, cut.block_size.remainder(key), live};
      fetch_rows<typename Config::KeyTile, Config::chunk>(stage.keys, pools.k, cursor.head, row);
      ptx::cp_async_commit();
      fetch_rows<typename Config::ValueTile, Config::chunk>(stage.values, pools.v, cursor.head, row);
    }
    ptx::cp_async_commit();
    if (run_ends<Config>(cursor)) {
      next_run(cursor, cuts_rows, problem, variant, cut);
      start_run(problem, cut);
    } else {
      cursor.key += Config::key_tile;
      if (++tile % 32 == 0) {
        entries = next_entries;
        next_entries = load_entries(problem, cut, tile + 32);
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
