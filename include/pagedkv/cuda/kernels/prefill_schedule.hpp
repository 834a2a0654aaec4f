// How a batch of ragged queries becomes a list of tiles for prefill_sm90, longest first, that nobody ever writes down.
#pragma once

#include <cstdint>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/tile/key_tiles.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// What the host says about the cut; lengths are read on the device.
///
/// A tile holds packed rows of one KV head: row r is query r / packed of head r % packed, `packed` query heads that
/// share K and V. Tiles are numbered sequence by sequence; within one, `section` tiles of heads at a time (as many as
/// leave their K and V in L2), and in a section the last queries first, which see most keys under a causal rule: what
/// is short comes last and fills the gaps.
struct PrefillCut {
  int num_seqs = 0;
  int min_q_len = 0;     // sequences with fewer queries are somebody else's
  int packed_shift = 0;  // log2 of the heads packed in a tile
  int tile_queries = 1;  // queries of a tile
  int head_tiles = 1;    // q_heads / packed
  int section = 1;       // tiles of heads
  int num_splits = 1;    // shares of a tile's keys, each a tile of work of its own
  int box_rows = 8;      // slots that TMA lifts at a time
  Divisor group_tiles;   // head tiles of a KV head
  Divisor block_size;

  PAGEDKV_HD constexpr int num_query_tiles(int q_len) const {
    return q_len < min_q_len ? 0 : ceil_div(q_len, tile_queries);
  }
  PAGEDKV_HD constexpr std::int64_t num_tiles(int q_len) const {
    return std::int64_t{num_query_tiles(q_len)} * head_tiles;
  }

  friend constexpr bool operator==(const PrefillCut&, const PrefillCut&) = default;
};

struct PrefillPlace {
  int query_tile, head_tile;

  friend constexpr bool operator==(const PrefillPlace&, const PrefillPlace&) = default;
};

/// The `index`-th tile of a sequence.
PAGEDKV_HD constexpr PrefillPlace place_of(const PrefillCut& cut, int q_len, int index) {
  const int tiles = cut.num_query_tiles(q_len), first_head = index / (tiles * cut.section) * cut.section;
  const int heads = min(cut.section, cut.head_tiles - first_head), in_section = index - first_head * tiles;
  return {tiles - 1 - in_section / heads, first_head + in_section % heads};
}

/// The keys of a share, of those that a tile of queries can see: whole tiles of keys, as many in each share as can be.
PAGEDKV_HD constexpr KeyRange keys_of_split(const KeyRanges& seen, KeyRange keys, int key_tile, int split,
                                            int num_splits) {
  const int first = next_key_tile(seen, keys, key_tile, 0), last = last_key_tile(seen, keys, key_tile);
  if (last < 0) return {0, 0};
  const std::int64_t tiles = (last - first) / key_tile + 1;
  const auto begin_of = [&](int share) { return first + static_cast<int>(tiles * share / num_splits) * key_tile; };
  return {begin_of(split), begin_of(split + 1)};
}

/// One tile of work, as every warp of the CTA sees it.
struct PrefillWork {
  int sequence = -1;    // none: there is no more work
  int first_query = 0;  // of the sequence's queries in this call
  int last_query = 0;   // the last that exists
  int q_head = 0;       // the first of those packed
  int kv_head = 0;
  int offset = 0;  // query i stands at position i + offset
  int kv_len = 0;
  KeyRanges seen;                // covers every key that one of the rows can see, of this share
  int last_tile = -1;            // of keys, where the walk begins; -1: nothing is seen
  std::int64_t first_token = 0;  // of the sequence, in q and out

  PAGEDKV_HD constexpr bool exists() const { return sequence >= 0; }
  PAGEDKV_HD constexpr KeyRange keys() const { return {0, kv_len}; }
};

/// Work on a share of the keys that a tile can see.
struct PrefillShare : PrefillWork {
  int split = 0;
};

/// Counters in global memory, 0 between calls: of tiles that were taken, and of CTAs that have found no more.
struct PrefillCounters {
  unsigned taken, finished;
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
