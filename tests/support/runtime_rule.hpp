// RuntimeRule: any rule or model chain of the library as run-time data, for either side of the bus, so that a GPU test
// of all of them compiles each kernel once.
#pragma once

#include <limits>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv_test {

/// A window, then a tree, ALiBi, a soft cap and a sink, each where it is wanted. Converts from single rules and from
/// chains in this order.
template <pagedkv::Space S>
struct RuntimeRule {
  static constexpr pagedkv::Space space = S;
  bool has_window = false;
  pagedkv::SlidingWindow window{};
  pagedkv::TreeMask<S> tree{};
  pagedkv::Alibi<S> alibi{};
  pagedkv::SoftCap cap{};
  pagedkv::SinkLogit<S> sink{};

  RuntimeRule() = default;
  explicit RuntimeRule(pagedkv::Full) {}
  explicit RuntimeRule(pagedkv::Causal)
      : has_window(true), window{.window = std::numeric_limits<int>::max(), .sink_tokens = 0} {}
  explicit RuntimeRule(pagedkv::SlidingWindow rule) : has_window(true), window(rule) {}
  explicit RuntimeRule(pagedkv::TreeMask<S> rule) : tree(rule) {}
  explicit RuntimeRule(pagedkv::Alibi<S> rule) : alibi(rule) {}
  explicit RuntimeRule(pagedkv::SoftCap rule) : cap(rule) {}
  explicit RuntimeRule(pagedkv::SinkLogit<S> rule) : sink(rule) {}

  template <class A, class B>
  explicit RuntimeRule(const pagedkv::Chain<A, B>& rule) : RuntimeRule(rule.a) {
    const RuntimeRule b(rule.b);
    if (b.has_window) has_window = true, window = b.window;
    if (b.tree.sees != nullptr) tree = b.tree;
    if (b.alibi.slopes != nullptr) alibi = b.alibi;
    if (b.cap.cap != 0) cap = b.cap;
    if (b.sink.logits != nullptr) sink = b.sink;
  }

  PAGEDKV_HD float logit(float x, pagedkv::Position p) const {
    if (alibi.slopes != nullptr) x = alibi.logit(x, p);
    return cap.cap != 0 ? cap.logit(x, p) : x;
  }
  PAGEDKV_HD bool visible(pagedkv::Position p) const {
    return (!has_window || window.visible(p)) && (tree.sees == nullptr || tree.visible(p));
  }
  PAGEDKV_HD pagedkv::KeyRanges keys(int query, int num_keys) const {
    if (has_window) return window.keys(query, num_keys);
    return {{0, num_keys}};
  }
  PAGEDKV_HD bool sees_all(int sequence, int first, int last, pagedkv::KeyRange keys) const {
    return (!has_window || window.sees_all(sequence, first, last, keys)) &&
           (tree.sees == nullptr || tree.sees_all(sequence, first, last, keys));
  }
  PAGEDKV_HD float prior(int q_head) const { return sink.logits != nullptr ? sink.prior(q_head) : -pagedkv::infinity; }
};

static_assert(pagedkv::HasPrior<RuntimeRule<pagedkv::Space::host>>);

}  // namespace pagedkv_test
