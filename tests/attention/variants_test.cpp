// Every rule and every chain of two: keys() covers visible(), and no bound moves back. Exhaustive over short sequences.
#include "pagedkv/attention/variants.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "support/any_rule.hpp"
#include "support/rules.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr std::array slopes{0.5f, 0.25f}, sinks{1.f, -1.f};

// Calls f(name, rule) for every rule and chain of two, with windows and sink tokens from 0 to beyond the sequence.
template <class F>
void for_each_rule(F&& f) {
  for (const int window : {0, 1, 2, 5, std::numeric_limits<int>::max()}) {
    for (const int sink_tokens : {0, 1, 3, 100}) {
      const Rules<Space::host> rules{
          .slopes = slopes.data(), .sinks = sinks.data(), .window = window, .sink_tokens = sink_tokens};
      const std::string arguments = " window " + std::to_string(window) + " sinks " + std::to_string(sink_tokens);
      rules.for_each([&](const std::string& name, const auto& rule) { f(name + arguments, AnyRule(rule)); });
      rules.for_each_chain([&](const std::string& first, const std::string& second, const auto& rule) {
        f(first + " then " + second + arguments, AnyRule(rule));
      });
      const SlidingWindow other{.window = 3, .sink_tokens = 2};
      rules.for_each([&](const std::string& name, const auto& rule) {
        const auto chained = chain(rule, other);
        f(name + " then another window" + arguments, AnyRule(chained));
      });
    }
  }
}

// Queries before the first key and behind the last one included.
constexpr int first_query = -4;
int last_query(int num_keys) { return num_keys + 3; }

bool visible(const AnyRule& rule, int query, int key) {
  return rule.visible({.query = query, .key = key, .q_head = 0, .sequence = 0});
}

}  // namespace

TEST_CASE("keys covers every visible key, in two ranges that do not overlap") {
  for_each_rule([](const std::string& name, const AnyRule& rule) {
    bool covered = true, inside = true, ordered = true;
    for (int num_keys = 0; num_keys <= 9; ++num_keys) {
      for (int query = first_query; query <= last_query(num_keys); ++query) {
        const KeyRanges keys = rule.keys(query, num_keys);
        for (int key = 0; key < num_keys; ++key) covered &= !visible(rule, query, key) || keys.contains(key);
        for (const KeyRange range : {keys.first, keys.second})
          inside &= range.empty() || (range.begin >= 0 && range.end <= num_keys);
        ordered &= keys.first.empty() || keys.second.empty() || keys.second.begin >= keys.first.end;
      }
    }
    CHECK_MESSAGE(covered, name);
    CHECK_MESSAGE(inside, name);
    CHECK_MESSAGE(ordered, name);
  });
}

TEST_CASE("no bound of keys moves back when the query moves on") {
  for_each_rule([](const std::string& name, const AnyRule& rule) {
    bool monotone = true;
    for (int num_keys = 0; num_keys <= 9; ++num_keys) {
      for (int query = first_query; query < last_query(num_keys); ++query) {
        const KeyRanges now = rule.keys(query, num_keys), next = rule.keys(query + 1, num_keys);
        monotone &= now.first.begin <= next.first.begin && now.first.end <= next.first.end;
        monotone &= now.second.begin <= next.second.begin && now.second.end <= next.second.end;
      }
    }
    CHECK_MESSAGE(monotone, name);
  });
}

TEST_CASE("cover of two queries covers what every query between them sees, and touches every tile with such a key") {
  for_each_rule([](const std::string& name, const AnyRule& rule) {
    bool covered = true, touched = true;
    const int num_keys = 9;
    for (int begin = first_query; begin <= last_query(num_keys); ++begin) {
      for (int end = begin; end <= last_query(num_keys); ++end) {
        const KeyRanges keys = cover(rule.keys(begin, num_keys), rule.keys(end, num_keys));
        for (int query = begin; query <= end; ++query) {
          for (int key = 0; key < num_keys; ++key) {
            if (!visible(rule, query, key)) continue;
            covered &= keys.contains(key);
            touched &= keys.touches({key, key + 1}) && keys.touches({key / 4 * 4, key / 4 * 4 + 4});
          }
        }
      }
    }
    CHECK_MESSAGE(covered, name);
    CHECK_MESSAGE(touched, name);
  });
}

TEST_CASE("single rules name exactly their visible keys, so that no tile is computed in vain") {
  const Rules<Space::host> rules{.slopes = slopes.data(), .sinks = sinks.data(), .window = 3, .sink_tokens = 2};
  rules.for_each([](const std::string& name, const auto& rule) {
    for (int query = first_query; query <= 12; ++query) {
      for (int key = 0; key < 9; ++key) {
        CAPTURE(name);
        CHECK(rule.keys(query, 9).contains(key) == rule.visible({query, key, 0, 0}));
      }
    }
  });
}

TEST_CASE("logits are bent, leant and left alone") {
  const Position p{.query = 9, .key = 4, .q_head = 1, .sequence = 0};
  CHECK(Causal{}.logit(3.f, p) == 3.f);
  CHECK(Full{}.logit(3.f, p) == 3.f);
  CHECK(SlidingWindow{.window = 1}.logit(3.f, p) == 3.f);
  CHECK(SoftCap{.cap = 2.f}.logit(3.f, p) == doctest::Approx(2 * std::tanh(1.5)));
  CHECK(SoftCap{.cap = 2.f}.logit(-1e6f, p) == -2.f);
  CHECK(Alibi<>{slopes.data()}.logit(3.f, p) == 3.f - 0.25f * 5);
  CHECK(SinkLogit<>{sinks.data()}.logit(3.f, p) == 3.f);
  CHECK(SinkLogit<>{sinks.data()}.prior(1) == -1.f);
}
