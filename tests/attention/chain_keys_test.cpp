// What a tile of queries reads under a chain of rules: every key that one of them sees, and no other. Exhaustive over
// short sequences, all tiles, and all chains of two and three windows.
#include <doctest/doctest.h>

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"

using namespace pagedkv;

namespace {

// Keys as bits of a number, so that sets are cheap.
using KeySet = std::uint32_t;
constexpr int max_keys = 10;

int num_pieces(KeySet keys) { return std::popcount(keys & ~(keys << 1)); }

template <class V>
KeySet seen_by(const V& rule, int first, int last, int num_keys) {
  KeySet keys = 0;
  for (int query = first; query <= last; ++query) {
    for (int key = 0; key < num_keys; ++key)
      keys |= KeySet{rule.visible({.query = query, .key = key, .q_head = 0, .sequence = 0})} << key;
  }
  return keys;
}

template <class V>
KeySet named_by(const V& rule, int first, int last, int num_keys) {
  const KeyRanges ranges = seen_keys(rule, first, last, num_keys);
  KeySet keys = 0;
  for (int key = 0; key < num_keys; ++key) keys |= KeySet{ranges.contains(key)} << key;
  return keys;
}

// Causal, and windows shorter and longer than the sequence, with and without sink tokens.
std::vector<SlidingWindow> windows(std::initializer_list<int> sizes, std::initializer_list<int> sinks) {
  std::vector<SlidingWindow> rules{{.window = 100}};
  for (const int window : sizes)
    for (const int sink_tokens : sinks) rules.push_back({.window = window, .sink_tokens = sink_tokens});
  return rules;
}

// Calls f(first, last, num_keys) for every tile of consecutive queries that a call could bring.
template <class F>
void for_each_tile(F&& f) {
  for (const int num_keys : {0, 1, 4, max_keys})
    for (int last = -1; last < num_keys; ++last)
      for (int first = -2; first <= last; ++first) f(first, last, num_keys);
}

std::string describe(const SlidingWindow& rule) {
  return " " + std::to_string(rule.window) + "+" + std::to_string(rule.sink_tokens);
}

}  // namespace

TEST_CASE("a chain of two windows names exactly the keys that its tile sees, if these are two pieces") {
  const auto rules = windows({1, 2, 3, 5, 8}, {0, 1, 2, 4, 7});
  int generous = 0;
  for (const SlidingWindow& a : rules) {
    for (const SlidingWindow& b : rules) {
      bool covered = true, exact = true, as_documented = true;
      for_each_tile([&](int first, int last, int num_keys) {
        const auto chained = chain(a, b);
        const KeySet seen = seen_by(chained, first, last, num_keys), named = named_by(chained, first, last, num_keys);
        covered &= (seen & ~named) == 0;
        if (seen == named) return;
        ++generous;
        exact &= num_pieces(seen) > 2;
        as_documented &= (a.window < b.window) == (a.sink_tokens > b.sink_tokens) && a.window != b.window;
      });
      CHECK_MESSAGE(covered, describe(a), describe(b));
      CHECK_MESSAGE(exact, describe(a), describe(b));
      CHECK_MESSAGE(as_documented, describe(a), describe(b));
    }
  }
  CHECK(generous > 0);  // three pieces do occur
}

TEST_CASE("a chain of three windows names exactly the keys that its tile sees, if no two of them make three pieces") {
  const auto rules = windows({1, 2, 4}, {0, 1, 3, 6});
  for (const SlidingWindow& a : rules) {
    for (const SlidingWindow& b : rules) {
      for (const SlidingWindow& c : rules) {
        bool covered = true, exact = true;
        for_each_tile([&](int first, int last, int num_keys) {
          const auto chained = chain(a, b, c);
          const KeySet seen = seen_by(chained, first, last, num_keys), named = named_by(chained, first, last, num_keys);
          covered &= (seen & ~named) == 0;
          exact &= seen == named || num_pieces(seen) > 2 || num_pieces(seen_by(chain(a, b), first, last, num_keys)) > 2;
        });
        CHECK_MESSAGE(covered, describe(a), describe(b), describe(c));
        CHECK_MESSAGE(exact, describe(a), describe(b), describe(c));
      }
    }
  }
}

TEST_CASE("rules without a mask leave the keys of a window as they are, whichever comes first") {
  for (const SlidingWindow& window : windows({1, 3}, {0, 2})) {
    for_each_tile([&](int first, int last, int num_keys) {
      const KeySet seen = seen_by(window, first, last, num_keys);
      CHECK(named_by(window, first, last, num_keys) == seen);
      CHECK(named_by(chain(window, SoftCap{.cap = 1.f}), first, last, num_keys) == seen);
      CHECK(named_by(chain(Full{}, window), first, last, num_keys) == seen);
      CHECK(named_by(chain(Causal{}, window, Full{}), first, last, num_keys) == seen);
    });
  }
}
