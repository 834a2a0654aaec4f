// What a CTA of prefill_sm80 works on, and how its queries, keys and values come into shared memory.
#pragma once

#include <cstdint>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/kernels/paged_rows.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/tile/key_tiles.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {
namespace detail {

/// What one CTA works on. It lies in shared memory: registers are for the output.
struct PrefillTile {
  std::int64_t index;  // of the tile and query head, in the order in which CTAs take them
  QueryRows rows;      // of the sequence's queries in this call
  KeyRange keys;       // of the sequence
  KeyRanges seen;      // covers every key that one of the rows can see
  int q_head, kv_head;
  int offset;                // query row i stands at position i + offset
  std::int64_t first_token;  // of the sequence, in q and out
};

/// The lengths are read here, on the device: a captured graph may be replayed with others. Heads of a group are
/// neighbours: they find each other's K and V in L2. Sequences with less than min_q_len queries have no rows.
template <class Problem, AttentionVariant V>
__device__ __forceinline__ PrefillTile make_tile(const Problem& problem, const V& variant, const AttentionPlan& plan,
                                                 int min_q_len, std::int64_t index) {
  const std::int64_t place = index / problem.q_heads();
  const int sequence = static_cast<int>(place / plan.tiles_per_seq);
  const std::int64_t from_end = place % plan.tiles_per_seq, last = place - from_end + plan.tiles_per_seq - 1;
  const int q_len = problem.tables.q_len(sequence), kv_len = problem.tables.kv_len(sequence);
  const WorkItem item = plan.item(last - from_end, 0, q_len < min_q_len ? 0 : q_len, kv_len);
  PrefillTile tile;
  tile.index = index;
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
#pragma unroll 1  // more, and the loop's constants spill
  for (int piece = static_cast<int>(threadIdx.x); piece < Config::query_tile * Tile::chunks_per_row;
       piece += Config::threads) {
    const int row = piece / Tile::chunks_per_row, column = piece % Tile::chunks_per_row * Tile::chunk;
    const bool live = row < tile.rows.size();
    const auto* source = problem.q.at(tile.first_token + tile.rows.begin + (live ? row : 0), tile.q_head, column);
    ptx::cp_async_16(&shared.queries[Tile::offset(row, column)], source, live);
  }
}

/// The lane, as if it were new each time: what hangs on it is computed again where it is needed. Kept over the loop, in
/// registers, it would push something else out of them.
__device__ __forceinline__ int fresh_lane() {
  int lane = lane_id();
  asm volatile("" : "+r"(lane));
  return lane;
}

/// A tile of keys on its way: the lane's own row of those that its warp fetches, looked up long before it is needed.
struct KeysAhead {
  int begin;  // of the tile; tile.keys.end or more: there is none
  int entry;  // what the block table says of the lane's key, any bits; -1 where nobody can see the key
};

/// The first tile of keys from `from` on that some row sees. Starts to read the table; what nobody can see is not read.
template <class Config, class Problem>
__device__ __forceinline__ KeysAhead look_up(const Problem& problem, const PrefillTile& tile, int from) {
  KeysAhead ahead{next_key_tile(tile.seen, tile.keys, Config::key_tile, from), -1};
  const int key = ahead.begin + warp_id() * Config::keys_per_warp + lane_id() % Config::keys_per_warp;
  if (!tile.keys.contains(key) || !tile.seen.contains(key)) return ahead;
  ahead.entry = problem.tables.block_ids(tile.rows.sequence, key / problem.kv.block_size());
  return ahead;
}

/// Starts copying a tile of K or V into its stage, all warps together. Keys that nobody can see, or whose block is
/// gone, become zeros.
template <class Config, class Tile, class T, class Problem, class Pool>
__device__ __forceinline__ void fetch_tile(T* shared_tile, const Pool& pool, const Problem& problem,
                                           const PrefillTile& tile, const KeysAhead& ahead) {
  constexpr int rows = Config::keys_per_warp, rows_at_once = 32 / Tile::chunks_per_row;
  const int first = warp_id() * rows;
  const bool live = ahead.entry >= 0 && ahead.entry < problem.kv.num_blocks();
  if constexpr (32 % Tile::chunks_per_row == 0 && Tile::permuted == 8 && rows % 8 == 0) {
    if (problem.kv.block_size() % rows == 0 && __ballot_sync(~0u, live) == ~0u) {
      // One block holds them all: a lane keeps its column, and its next row is a constant away.
      const int lane = fresh_lane();
      const int row = lane / Tile::chunks_per_row, column = lane % Tile::chunks_per_row * Tile::chunk;
      const T* from = pool.at(ahead.entry, tile.kv_head, (ahead.begin + first) % problem.kv.block_size() + row, column);
      const int place = Tile::offset(row, column) + first * (Tile::chunks_per_row * Tile::chunk);
#pragma unroll
      for (int i = 0; i < rows; i += rows_at_once, from += rows_at_once * pool.strides[2])
        ptx::cp_async_16(&shared_tile[Tile::below(place, i)], from, true);
      return;
    }
  }
  // Unrolled by 2: more costs registers that the output needs.
  fetch_rows<Tile, rows, 2>(
      shared_tile, first, pool, tile.kv_head,
      {live ? ahead.entry : 0, (ahead.begin + first + lane_id() % rows) % problem.kv.block_size(), live});
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
