// The rules of attention in use: causal, full, sliding window, soft cap, ALiBi, sink logits, trees of drafts. Small
// structs, to be chained.
#pragma once

#include <cstdint>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Each query sees the keys up to its own position; the newest query sees the newest key (bottom-right alignment).
struct Causal {
  static constexpr bool keeps_logits = true;

  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position p) const { return p.key <= p.query; }
  PAGEDKV_HD KeyRanges keys(int query, int num_keys) const { return {{0, min(query + 1, num_keys)}}; }
  PAGEDKV_HD bool sees_all(int, int first_query, int, KeyRange keys) const { return keys.end <= first_query + 1; }
};

/// Each query sees every key, newer ones too (encoders, cross attention).
struct Full {
  static constexpr bool keeps_logits = true;

  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position) const { return true; }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  PAGEDKV_HD bool sees_all(int, int, int, KeyRange) const { return true; }
};

/// Causal, and only the `window` newest visible keys, itself included (Mistral 7B, arXiv:2310.06825, sec. 2), plus the
/// first `sink_tokens` keys for ever (StreamingLLM, arXiv:2309.17453).
struct SlidingWindow {
  static constexpr bool keeps_logits = true;
  int window;
  int sink_tokens = 0;

  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position p) const {
    return p.key <= p.query && (p.query - p.key < window || p.key < sink_tokens);
  }
  PAGEDKV_HD KeyRanges keys(int query, int num_keys) const {
    const int end = min(query + 1, num_keys);
    const int oldest = query < window ? 0 : query - window + 1;  // any window, INT_MAX too
    return {{0, min(sink_tokens, end)}, {max(oldest, sink_tokens), end}};
  }
  PAGEDKV_HD bool sees_all(int, int first_query, int last_query, KeyRange keys) const {
    return keys.end <= first_query + 1 &&
           (keys.end <= sink_tokens || last_query - max(keys.begin, sink_tokens) < window);
  }
};

/// Bends every logit smoothly into (-cap, cap): cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118, sec. 2). Hides nothing.
struct SoftCap {
  float cap;

  PAGEDKV_HD float logit(float x, Position) const { return cap * tanh(x / cap); }
  PAGEDKV_HD bool visible(Position) const { return true; }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  PAGEDKV_HD bool sees_all(int, int, int, KeyRange) const { return true; }
};

/// Adds slope * (key - query) to every logit (ALiBi, arXiv:2108.12409, sec. 3). Hides nothing.
template <Space S = Space::host>
struct Alibi {
  static constexpr Space space = S;
  const float* slopes;  // [q_heads]

  PAGEDKV_HD float logit(float x, Position p) const {
    return x + slopes[p.q_head] * static_cast<float>(p.key - p.query);
  }
  PAGEDKV_HD bool visible(Position) const { return true; }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  PAGEDKV_HD bool sees_all(int, int, int, KeyRange) const { return true; }
};

/// A learned logit per head that takes weight from the keys and gives nothing back (gpt-oss, arXiv:2508.10925, sec. 2).
/// Joins the denominator once a row, also where no key is visible.
template <Space S = Space::host>
struct SinkLogit {
  static constexpr Space space = S;
  static constexpr bool keeps_logits = true;
  const float* logits;  // [q_heads]

  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position) const { return true; }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  PAGEDKV_HD bool sees_all(int, int, int, KeyRange) const { return true; }
  PAGEDKV_HD float prior(int q_head) const { return logits[q_head]; }
};

/// Verifies drafts that branch (tree attention: SpecInfer, arXiv:2305.09781, sec. 4; Medusa, arXiv:2401.10774). The
/// queries of a sequence are a tree, in any order, the token that it grows from included. Each sees every key before
/// the tree and those drafts whose bits are set: its ancestors and itself, as a rule. Nobody sees a draft behind the
/// 64th. A tree without branches is Causal, bit for bit. Rules chained with it count places in the cache, not depths
/// in the tree.
template <Space S = Space::host>
struct TreeMask {
  static constexpr Space space = S;
  static constexpr bool keeps_logits = true;
  static constexpr int max_drafts = 64;
  TablesView<S> tables;       // the problem's: they say where a tree begins, also in a graph that is replayed
  const std::uint64_t* sees;  // [num_tokens], bit j: this draft sees draft j of its sequence

  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position p) const {
    const int first_draft = tables.kv_len(p.sequence) - tables.q_len(p.sequence);
    const int draft = p.key - first_draft;
    if (draft < 0 || draft >= max_drafts) return draft < 0;
    return (sees[tables.query_begin(p.sequence) + (p.query - first_draft)] >> draft & 1) != 0;
  }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  PAGEDKV_HD bool sees_all(int sequence, int, int, KeyRange keys) const {
    return keys.end <= tables.kv_len(sequence) - tables.q_len(sequence);
  }
};

}  // namespace v0
}  // namespace pagedkv
