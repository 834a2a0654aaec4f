// DecodeSchedule: how many CTAs decode_simt gets and how they share the keys of a row; a pure function of stated
// bounds.
#pragma once

#include <cstdint>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/policy.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// The heads and rows of a call, as far as its schedule depends on them.
struct DecodeShape {
  int num_tokens, q_heads, kv_heads;
};

/// A CTA takes one share of the splits of one tile of queries, for one KV head; shares of a tile meet in Partials. Who
/// computes a split changes no bit of it, and splits are merged one by one in order whatever num_shares is: so the bits
/// of a row depend on the row alone, though num_shares depends on the batch.
struct DecodeSchedule {
  AttentionPlan plan;
  int num_shares = 1;      // CTAs per (tile, KV head) at most; share i computes splits i, i + num_shares, ...
  int warps = 1;           // per CTA
  std::int64_t units = 0;  // (tile, KV head, share) triples, most rows being shorter than the bounds
  int num_ctas = 1;        // each takes every num_ctas-th unit

  friend constexpr bool operator==(const DecodeSchedule&, const DecodeSchedule&) = default;
};

template <Space S>
constexpr DecodeSchedule schedule_decode(const DecodeSimtPolicy& policy, const TablesView<S>& tables,
                                         const DecodeShape& shape, int num_sms, std::int64_t max_partials) {
  DecodeSchedule schedule;
  const int query_tile = min(policy.query_tile, max(1, tables.max_q_len));
  const int any_number_of_splits = max(1, tables.max_kv_len);
  schedule.plan = make_plan(tables, query_tile, 1, policy.split_keys, any_number_of_splits);
  schedule.warps = min(policy.max_warps, query_tile * (shape.q_heads / shape.kv_heads));

  const std::int64_t groups = schedule.plan.num_tiles() * shape.kv_heads;
  const std::int64_t busy_groups = min<std::int64_t>(schedule.plan.num_tiles(), shape.num_tokens) * shape.kv_heads;
  const std::int64_t num_partials = std::int64_t{shape.num_tokens} * shape.q_heads * schedule.plan.max_splits;
  if (busy_groups > 0 && groups <= max_partials && num_partials <= max_partials) {
    const std::int64_t wanted = ceil_div<std::int64_t>(std::int64_t{num_sms} * policy.ctas_per_sm, busy_groups);
    schedule.num_shares = static_cast<int>(min<std::int64_t>(wanted, schedule.plan.max_splits));
  }
  schedule.units = groups * schedule.num_shares;
  schedule.num_ctas = static_cast<int>(min<std::int64_t>(schedule.units, policy.max_ctas));
  return schedule;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
