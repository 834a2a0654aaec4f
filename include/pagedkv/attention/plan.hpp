// Lengths to work items: who works on which queries and which keys. Pure functions; the host runs them in tests and in
// cpu/, the device runs the same ones in kernels.
#pragma once

#include <cstdint>
#include <limits>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Query rows [begin, end) of one sequence, counted from its first query in this call.
struct QueryRows {
  int sequence = 0;
  int begin = 0, end = 0;

  PAGEDKV_HD constexpr int size() const { return end - begin; }
  PAGEDKV_HD constexpr bool empty() const { return begin >= end; }
};

/// One piece of work: these query rows against these keys, for one KV head at a time. `split` of `num_splits` pieces of
/// the same rows are merged in order. No rows: nothing to do.
struct WorkItem {
  QueryRows rows;
  KeyRange keys;
  int split = 0, num_splits = 1;
};

/// How a call is cut. Split boundaries are absolute key positions and depend on the stated bounds alone, never on the
/// batch: a sequence gets the same bits alone and in any company, as long as the bounds stay (FlashDecoding's split of
/// the keys, with fixed boundaries).
struct AttentionPlan {
  int num_seqs = 0;
  int query_tile = 1;     // queries an item holds at most
  int tiles_per_seq = 1;  // upper bound, from max_q_len
  int split_keys = 1;     // keys an item holds at most
  int max_splits = 1;     // upper bound, from max_kv_len

  PAGEDKV_HD constexpr std::int64_t num_tiles() const { return std::int64_t{num_seqs} * tiles_per_seq; }
  PAGEDKV_HD constexpr std::int64_t num_items() const { return num_tiles() * max_splits; }

  /// Item of a tile (sequence * tiles_per_seq + tile of the sequence) and a split. A row without keys still has its one
  /// split: its output must be written.
  PAGEDKV_HD constexpr WorkItem item(std::int64_t tile, int split, int q_len, int kv_len) const {
    WorkItem item;
    item.rows.sequence = static_cast<int>(tile / tiles_per_seq);
    item.num_splits = max(1, ceil_div(kv_len, split_keys));
    item.split = split;
    if (split >= item.num_splits) return item;
    item.rows.begin = static_cast<int>(tile % tiles_per_seq) * query_tile;
    item.rows.end = item.rows.begin + min(query_tile, q_len - item.rows.begin);
    item.keys.begin = split * split_keys;
    item.keys.end = item.keys.begin + min(split_keys, kv_len - item.keys.begin);
    return item;
  }

  friend constexpr bool operator==(const AttentionPlan&, const AttentionPlan&) = default;
};

/// The plan for `tables`' stated bounds. split_keys is rounded up so that no call has more than `max_splits` splits,
/// and to a multiple of `key_tile`, so that a boundary never cuts a tile of keys.
template <Space S>
constexpr AttentionPlan make_plan(const TablesView<S>& tables, int query_tile, int key_tile, int split_keys,
                                  int max_splits) {
  require(query_tile >= 1, "plan: query_tile", "at least 1", query_tile);
  require(key_tile >= 1, "plan: key_tile", "at least 1", key_tile);
  require(split_keys >= 1 && split_keys <= 1 << 30, "plan: split_keys", "1 to 2^30", split_keys);
  require(max_splits >= 1, "plan: max_splits", "at least 1", max_splits);
  AttentionPlan plan;
  plan.num_seqs = tables.num_seqs();
  plan.query_tile = query_tile;
  plan.tiles_per_seq = max(1, ceil_div(tables.max_q_len, query_tile));
  const std::int64_t keys = round_up<std::int64_t>(max(split_keys, ceil_div(tables.max_kv_len, max_splits)), key_tile);
  plan.split_keys = static_cast<int>(min<std::int64_t>(keys, std::numeric_limits<int>::max()));
  plan.max_splits = max(1, ceil_div(tables.max_kv_len, plan.split_keys));
  return plan;
}

}  // namespace v0
}  // namespace pagedkv
