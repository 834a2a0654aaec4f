// Every attention rule of the library with arguments that bite on short sequences, for tests that must hold for all.
#pragma once

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv_test {

/// What sees_all() says of the queries in `queries` and of keys in [0, num_keys), held against visible(), for q_head 0.
struct SeesAll {
  bool is_true = true;   // where it says yes, all is visible
  bool is_exact = true;  // and where all is visible, it says yes
  bool ever_said = false;
};

template <pagedkv::AttentionVariant V>
SeesAll check_sees_all(const V& rule, int sequence, pagedkv::KeyRange queries, int num_keys) {
  SeesAll result;
  for (int first = queries.begin; first < queries.end; ++first) {
    for (int begin = 0; begin < num_keys; ++begin) {
      int seen_end = num_keys;  // keys in [begin, seen_end) are visible to all queries from `first` to `last`
      for (int last = first; last < queries.end; ++last) {
        int end = begin;
        while (end < seen_end && rule.visible({.query = last, .key = end, .q_head = 0, .sequence = sequence})) ++end;
        seen_end = end;
        for (end = begin + 1; end <= num_keys; ++end) {
          const bool says = pagedkv::sees_all(rule, sequence, first, last, {begin, end}), sees = end <= seen_end;
          result.is_true &= sees || !says;
          result.is_exact &= sees == says;
          result.ever_said |= says;
        }
      }
    }
  }
  return result;
}

/// Does logit() return x, bit for bit, wherever it is asked?
template <pagedkv::AttentionVariant V>
bool returns_every_logit(const V& rule, int q_heads) {
  for (const float x : {0.f, 1.f, -7.5f, 3e38f, -pagedkv::infinity})
    for (int q_head = 0; q_head < q_heads; ++q_head)
      for (int query = 0; query < 9; ++query)
        for (int key = 0; key < 9; ++key)
          if (rule.logit(x, {.query = query, .key = key, .q_head = q_head, .sequence = 0}) != x) return false;
  return true;
}

/// The arguments of the rules; pointers on side S, each [q_heads].
template <pagedkv::Space S>
struct Rules {
  const float *slopes, *sinks;
  int window = 7, sink_tokens = 3;
  pagedkv::TreeMask<S> tree{};  // left out where it has no bits

  /// Calls f(name, rule) for every rule.
  template <class F>
  void for_each(F&& f) const {
    f("Causal", pagedkv::Causal{});
    f("Full", pagedkv::Full{});
    f("SlidingWindow", pagedkv::SlidingWindow{.window = window, .sink_tokens = sink_tokens});
    f("SoftCap", pagedkv::SoftCap{.cap = 3.f});
    f("Alibi", pagedkv::Alibi<S>{slopes});
    f("SinkLogit", pagedkv::SinkLogit<S>{sinks});
    if (tree.sees != nullptr) f("TreeMask", tree);
  }

  /// Calls f(name, rule) for the six chains that are built for the GPU, named after models that use them.
  template <class F>
  void for_each_model_chain(F&& f) const {
    using namespace pagedkv;
    const SlidingWindow local{.window = window, .sink_tokens = 0},
        streaming{.window = window, .sink_tokens = sink_tokens};
    f("Causal, SoftCap (Gemma 2, global layers)", chain(Causal{}, SoftCap{.cap = 3.f}));
    f("SlidingWindow, SoftCap (Gemma 2, local layers)", chain(local, SoftCap{.cap = 3.f}));
    f("Causal, Alibi (BLOOM)", chain(Causal{}, Alibi<S>{slopes}));
    f("Causal, SinkLogit (gpt-oss, full layers)", chain(Causal{}, SinkLogit<S>{sinks}));
    f("SlidingWindow, SinkLogit (gpt-oss, local layers)", chain(local, SinkLogit<S>{sinks}));
    f("SlidingWindow, Alibi, SoftCap (all at once)", chain(streaming, Alibi<S>{slopes}, SoftCap{.cap = 3.f}));
  }

  /// Calls f(name, name, rule) for every chain of two, in both orders, each with itself too.
  template <class F>
  void for_each_chain(F&& f) const {
    for_each([&](const char* first, auto a) {
      for_each([&](const char* second, auto b) { f(first, second, pagedkv::chain(a, b)); });
    });
  }
};

/// The rules over the arrays of a generated problem.
template <class Generated>
Rules<pagedkv::Space::host> rules_of(Generated& generated) {
  return {.slopes = generated.slopes.data(),
          .sinks = generated.sinks.data(),
          .tree = {.tables = generated.problem().tables, .sees = generated.tree.data()}};
}

}  // namespace pagedkv_test
