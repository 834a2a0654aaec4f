// What a rule of attention is: bend a logit, hide a key, and say which keys can matter at all. chain() joins two rules.
#pragma once

#include <concepts>
#include <limits>
#include <type_traits>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Where a logit stands. Positions are 0-based in the whole sequence, cached prefix included; a query of a sequence
/// with more queries than keys has a negative position.
struct Position {
  int query, key, q_head, sequence;
};

/// Keys [begin, end); empty unless begin < end.
struct KeyRange {
  int begin = 0, end = 0;

  PAGEDKV_HD constexpr bool empty() const { return begin >= end; }
  PAGEDKV_HD constexpr bool contains(int key) const { return key >= begin && key < end; }
  friend constexpr bool operator==(const KeyRange&, const KeyRange&) = default;
};

/// Stands for "no second range": behind every key, for every query.
inline constexpr KeyRange no_keys{std::numeric_limits<int>::max(), std::numeric_limits<int>::max()};

PAGEDKV_HD constexpr KeyRange intersect(KeyRange a, KeyRange b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

/// At most two ranges; the second does not begin before the first ends.
struct KeyRanges {
  KeyRange first{}, second{no_keys.begin, no_keys.end};

  PAGEDKV_HD constexpr bool contains(int key) const { return first.contains(key) || second.contains(key); }
  PAGEDKV_HD constexpr bool touches(KeyRange range) const {
    return !intersect(first, range).empty() || !intersect(second, range).empty();
  }
};

/// Covers everything in both. Three possible second pieces share one range, which may be generous; bounds of empty
/// pieces take part, so that what never moved back in `a` and `b` never moves back here. overlap() says it better where
/// that does not matter.
PAGEDKV_HD constexpr KeyRanges intersect(const KeyRanges& a, const KeyRanges& b) {
  const KeyRange ab = intersect(a.first, b.second), ba = intersect(a.second, b.first),
                 bb = intersect(a.second, b.second);
  return {intersect(a.first, b.first), {min(min(ab.begin, ba.begin), bb.begin), max(max(ab.end, ba.end), bb.end)}};
}

/// What is in both, as a set: bounds may move back where those of `a` and `b` do not. Of three pieces two are joined,
/// across the narrower gap; else nothing is named that is not in both.
PAGEDKV_HD constexpr KeyRanges overlap(const KeyRanges& a, const KeyRanges& b) {
  const KeyRange head = intersect(a.first, b.first), ab = intersect(a.first, b.second),
                 ba = intersect(a.second, b.first), tail = intersect(a.second, b.second);
  const KeyRange middle = ab.empty() ? ba : ab;  // one of them is empty: of two that meet so, one pair is out of order
  if (middle.empty()) return {head, tail};
  if (head.empty()) return {middle, tail};
  if (tail.empty()) return {head, middle};
  if (middle.begin - head.end <= tail.begin - middle.end) return {{head.begin, middle.end}, tail};
  return {head, {middle.begin, tail.end}};
}

/// Covers every key that a query between two queries can see, given the ranges of the earliest and the latest.
PAGEDKV_HD constexpr KeyRanges cover(const KeyRanges& earliest, const KeyRanges& latest) {
  return {{earliest.first.begin, latest.first.end}, {earliest.second.begin, latest.second.end}};
}

/// A rule of attention: a trivially copyable struct with three answers.
///   logit(x, position)      the logit to use instead of x (x is scaled, in natural units)
///   visible(position)       may this query see this key
///   keys(query, num_keys)   ranges that cover all visible keys in [0, num_keys); for a later query no bound moves
///                           back, so that tiles of keys can be skipped for tiles of queries
/// and optionally
///   keys(first_query, last_query, num_keys)
///                           the same for a tile of queries, where it can be said better than by cover()
///   prior(q_head)           a logit that joins only the denominator, once a row
///   sees_all(sequence, first_query, last_query, keys)
///                           true only if each of these queries sees every key of the range: a kernel need not ask
///                           visible() there. False is always right, and what an absent member says
///   keeps_logits            a static constexpr bool: true only if logit(x, position) is x everywhere, so that a kernel
///                           may scale a whole row at once. Absent: false
/// A rule that is derived from another inherits both; where it hides more keys or bends logits, it says them anew.
/// A rule that holds pointers names the side on which they can be read: `static constexpr Space space`.
template <class V>
concept AttentionVariant = std::is_trivially_copyable_v<V> && requires(const V v, float x, Position p, int n) {
  { v.logit(x, p) } -> std::same_as<float>;
  { v.visible(p) } -> std::same_as<bool>;
  { v.keys(n, n) } -> std::same_as<KeyRanges>;
};

template <class V>
concept HasPrior = AttentionVariant<V> && requires(const V v, int q_head) {
  { v.prior(q_head) } -> std::same_as<float>;
};

/// May a kernel on side S use this rule? Rules without pointers may go anywhere.
template <class V, Space S>
concept VariantFor = AttentionVariant<V> &&(
    !requires { V::space; } || requires { requires V::space == S; });

/// The rule's prior, -inf where it has none.
template <AttentionVariant V>
PAGEDKV_HD float prior_of(const V& variant, int q_head) {
  if constexpr (HasPrior<V>)
    return variant.prior(q_head);
  else
    return -infinity;
}

/// What a kernel reads for the queries from `first` to `last`: ranges that cover every key that one of them sees.
template <AttentionVariant V>
PAGEDKV_HD constexpr KeyRanges seen_keys(const V& variant, int first, int last, int num_keys) {
  if constexpr (requires { variant.keys(first, last, num_keys); })
    return variant.keys(first, last, num_keys);
  else
    return cover(variant.keys(first, num_keys), variant.keys(last, num_keys));
}

/// Does every query from `first` to `last` of the sequence surely see every key of the range?
template <AttentionVariant V>
PAGEDKV_HD bool sees_all(const V& variant, int sequence, int first, int last, KeyRange keys) {
  if constexpr (requires { variant.sees_all(sequence, first, last, keys); })
    return variant.sees_all(sequence, first, last, keys);
  else
    return false;
}

/// Does the rule say that it leaves every logit as it is?
template <AttentionVariant V>
inline constexpr bool keeps_logits_v = requires {
  requires V::keeps_logits;
};

namespace detail {

/// The side of a chain is the side of its parts; parts of two sides do not compile.
template <class A, class B>
struct ChainSpace {};

template <class A, class B>
requires(
    requires { A::space; } && !requires { B::space; }) struct ChainSpace<A, B> {
  static constexpr Space space = A::space;
};

template <class A, class B>
requires(requires { B::space; }) struct ChainSpace<A, B> {
  static_assert(VariantFor<A, B::space>, "chain: one rule holds host pointers, the other device pointers");
  static constexpr Space space = B::space;
};

}  // namespace detail

/// Both rules: logits pass through `a`, then `b`; a key must be visible to both; key ranges are intersected; priors add
/// up in the denominator. Rules that widen (a window that also keeps the first tokens) are one rule, not a chain. Under
/// a chain of the library's windows a tile of queries reads the keys that it sees and no other, with one exception: the
/// shorter of two windows keeps more sink tokens, and the longer one still reaches them. That makes three pieces, and
/// the gap between two of them is read, too.
template <AttentionVariant A, AttentionVariant B>
struct Chain : detail::ChainSpace<A, B> {
  static constexpr bool keeps_logits = keeps_logits_v<A> && keeps_logits_v<B>;
  A a;
  B b;

  PAGEDKV_HD constexpr Chain(A first, B second) : a(first), b(second) {}

  PAGEDKV_HD float logit(float x, Position p) const { return b.logit(a.logit(x, p), p); }
  PAGEDKV_HD bool visible(Position p) const { return a.visible(p) && b.visible(p); }
  PAGEDKV_HD KeyRanges keys(int query, int num_keys) const {
    return intersect(a.keys(query, num_keys), b.keys(query, num_keys));
  }
  PAGEDKV_HD KeyRanges keys(int first_query, int last_query, int num_keys) const {
    return overlap(seen_keys(a, first_query, last_query, num_keys), seen_keys(b, first_query, last_query, num_keys));
  }
  PAGEDKV_HD bool sees_all(int sequence, int first_query, int last_query, KeyRange keys) const {
    return pagedkv::sees_all(a, sequence, first_query, last_query, keys) &&
           pagedkv::sees_all(b, sequence, first_query, last_query, keys);
  }
  PAGEDKV_HD float prior(int q_head) const requires(HasPrior<A> || HasPrior<B>) {
    const float x = prior_of(a, q_head), y = prior_of(b, q_head);
    const float high = max(x, y), low = min(x, y);
    return low == -infinity ? high : high + log(1.f + exp(low - high));
  }
};

template <AttentionVariant A, AttentionVariant B>
PAGEDKV_HD constexpr Chain<A, B> chain(A a, B b) {
  return {a, b};
}

template <AttentionVariant A, AttentionVariant B, AttentionVariant C, AttentionVariant... Rest>
PAGEDKV_HD constexpr auto chain(A a, B b, C c, Rest... rest) {
  return chain(chain(a, b), c, rest...);
}

}  // namespace v0
}  // namespace pagedkv
