// AttentionProblem: the one description of decode, prefill and mixed batches, for every back end.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// Ragged queries against paged keys and values. Trivially copyable; passed by value into cpu:: and cuda:: alike.
/// Sequence s has its queries in rows tables.query_begin[s] .. [s + 1]; query i of q_len stands at position
/// kv_len - q_len + i. q_heads is a multiple of kv_heads: head h reads KV head h / (q_heads / kv_heads).
/// A row that sees no key gets out = 0 and lse = -inf (or the prior, where the variant has one).
template <Space S, StorageType Q, StorageType KV = Q, StorageType O = Q>
struct AttentionProblem {
  static constexpr Space space = S;
  using Query = Q;
  using Element = KV;
  using Output = O;

  View<const Q, 3, S> q;   // [num_tokens, q_heads, head_dim]
  KvView<const KV, S> kv;  // K [num_blocks, kv_heads, block_size, head_dim], V with head_dim_v
  TablesView<S> tables;    // [num_seqs, ...]
  View<O, 3, S> out;       // [num_tokens, q_heads, head_dim_v]
  View<float, 2, S> lse;   // [num_tokens, q_heads], natural logarithm; empty: not wanted
  float scale = 1.f;       // of q . k, usually 1 / sqrt(head_dim)

  PAGEDKV_HD int num_tokens() const { return static_cast<int>(q.extents[0]); }
  PAGEDKV_HD int q_heads() const { return static_cast<int>(q.extents[1]); }
  PAGEDKV_HD int head_dim() const { return static_cast<int>(q.extents[2]); }
  PAGEDKV_HD int head_dim_v() const { return static_cast<int>(out.extents[2]); }
  PAGEDKV_HD int kv_heads() const { return kv.kv_heads(); }
  PAGEDKV_HD int group_size() const { return q_heads() / kv_heads(); }

  /// Throws InvalidArgument where shapes or strides disagree. O(1): lengths and ids, which may live on a device, are
  /// the caller's word.
  void validate() const {
    kv.validate();
    require(!q.empty() || q.extents[0] == 0, "problem.q: pointer", "not null", "null");
    require(!out.empty() || q.extents[0] == 0, "problem.out: pointer", "not null", "null");
    require(q.strides[2] == 1, "problem.q: stride of head_dim", 1, q.strides[2]);
    require(out.strides[2] == 1, "problem.out: stride of head_dim_v", 1, out.strides[2]);
    require(q.extents[2] == kv.head_dim(), "problem.q: head_dim like kv.k's,", kv.head_dim(), q.extents[2]);
    if (q.extents[1] < 1 || q.extents[1] % kv.kv_heads() != 0)
      require(false, "problem.q: q_heads", "a multiple of kv_heads " + std::to_string(kv.kv_heads()), q.extents[1]);
    require(out.extents[0] == q.extents[0], "problem.out: num_tokens like q's,", q.extents[0], out.extents[0]);
    require(out.extents[1] == q.extents[1], "problem.out: q_heads like q's,", q.extents[1], out.extents[1]);
    require(out.extents[2] == kv.head_dim_v(), "problem.out: head_dim_v like kv.v's,", kv.head_dim_v(), out.extents[2]);
    if (!lse.empty()) {
      require(lse.extents[0] == q.extents[0], "problem.lse: num_tokens like q's,", q.extents[0], lse.extents[0]);
      require(lse.extents[1] == q.extents[1], "problem.lse: q_heads like q's,", q.extents[1], lse.extents[1]);
    }
    require(std::isfinite(scale), "problem.scale:", "a finite number", scale);
    const std::int64_t num_seqs = tables.kv_len.extents[0];
    require(tables.block_ids.extents[0] >= num_seqs, "problem.tables.block_ids: rows, at least", num_seqs,
            tables.block_ids.extents[0]);
    require(tables.query_begin.extents[0] == num_seqs + 1, "problem.tables.query_begin: entries", num_seqs + 1,
            tables.query_begin.extents[0]);
    require(tables.max_q_len >= 0, "problem.tables.max_q_len", "0 or more", tables.max_q_len);
    const std::int64_t capacity = tables.block_ids.extents[1] * kv.block_size();
    require(tables.max_kv_len >= 0 && tables.max_kv_len <= capacity,
            "problem.tables.max_kv_len: at most what a row can name,", capacity, tables.max_kv_len);
  }
};

}  // namespace v0
}  // namespace pagedkv
