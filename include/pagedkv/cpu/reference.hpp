// attend_reference: what attention over a paged cache means, in double, key by key. Everything else is held against it.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

/// Fills problem.out and problem.lse. Reads the K and V of visible keys and nothing else of the pool; knows no plan, no
/// split and no tile, and does not ask variant.keys(). Only a logit passes through float, because variants speak float.
/// Throws InvalidArgument by problem.validate(). For tests: the time is num_tokens * q_heads * keys * head_dim, one by
/// one.
template <StorageType Q, StorageType KV, StorageType O, VariantFor<Space::host> V>
void attend_reference(const AttentionProblem<Space::host, Q, KV, O>& problem, const V& variant) {
  problem.validate();
  const auto& [q, kv, tables, out, lse, scale] = problem;
  const int head_dim = problem.head_dim(), head_dim_v = problem.head_dim_v();
  struct VisibleKey {
    double weight;  // at first the logit
    const KV* v;    // [head_dim_v]
  };
  std::vector<VisibleKey> keys;

  for (int s = 0; s < tables.num_seqs(); ++s) {
    for (int token = tables.query_begin(s); token < tables.query_begin(s + 1); ++token) {
      for (int head = 0; head < problem.q_heads(); ++head) {
        const int query = tables.kv_len(s) - (tables.query_begin(s + 1) - token);
        const int kv_head = head / problem.group_size();
        const double prior = prior_of(variant, head);

        keys.clear();
        double max = prior;
        for (int key = 0; key < tables.kv_len(s); ++key) {
          const Position position{.query = query, .key = key, .q_head = head, .sequence = s};
          if (!variant.visible(position)) continue;
          const int block = tables.block_ids(s, key / kv.block_size()), slot = key % kv.block_size();
          const KV* k = kv.k.at(block, kv_head, slot, 0);
          double dot = 0;
          for (int d = 0; d < head_dim; ++d) dot += double{to_float(q(token, head, d))} * double{to_float(k[d])};
          const double logit = variant.logit(static_cast<float>(double{scale} * dot), position);
          if (std::isinf(logit) && logit < 0) continue;  // another way of saying "not visible"
          keys.push_back({.weight = logit, .v = kv.v.at(block, kv_head, slot, 0)});
          max = pagedkv::max(max, logit);
        }

        double denominator = std::isinf(prior) ? 0 : std::exp(prior - max);
        for (VisibleKey& key : keys) denominator += key.weight = std::exp(key.weight - max);
        for (int d = 0; d < head_dim_v; ++d) {
          double sum = 0;
          for (const VisibleKey& key : keys) sum += key.weight * double{to_float(key.v[d])};
          out(token, head, d) = from_float<O>(static_cast<float>(keys.empty() ? 0 : sum / denominator));
        }
        if (!lse.empty()) lse(token, head) = static_cast<float>(keys.empty() ? prior : max + std::log(denominator));
      }
    }
  }
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
