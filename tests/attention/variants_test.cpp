// Every rule and every chain of two: keys() covers visible(), and no bound moves back; what sees_all() and keeps_logits
// promise is so. Exhaustive over short sequences.
#include "pagedkv/attention/variants.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "support/any_rule.hpp"
#include "support/rules.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr std::array slopes{0.5f, 0.25f}, sinks{1.f, -1.f};

// Five drafts behind four keys: two children of the first draft, a grandchild, and one draft that sees nothing of the
// tree. Margins, because the tests below also ask for queries that no call would bring.
constexpr std::array<std::uint64_t, 24> rows_around_a_tree{0, 1,       2,       3,       4,       5, 6,
                                                           7, 0b00001, 0b00011, 0b00101, 0b01011, 0};
constexpr std::array<std::int32_t, 1> tree_kv_len{9};
constexpr std::array<std::int32_t, 2> tree_query_begin{0, 5};
constexpr int first_draft = 4;

TreeMask<> small_tree() {
  return {.tables = {.block_ids = {},
                     .kv_len = dense_view(tree_kv_len.data(), {1}),
                     .query_begin = dense_view(tree_query_begin.data(), {2})},
          .sees = rows_around_a_tree.data() + 8};
}

// Calls f(name, rule) for every rule and chain of two, with windows and sink tokens from 0 to beyond the sequence.
template <class F>
void for_each_rule(F&& f) {
  for (const int window : {0, 1, 2, 5, std::numeric_limits<int>::max()}) {
    for (const int sink_tokens : {0, 1, 3, 100}) {
      const Rules<Space::host> rules{.slopes = slopes.data(),
                                     .sinks = sinks.data(),
                                     .window = window,
                                     .sink_tokens = sink_tokens,
                                     .tree = small_tree()};
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

// Two rules that promise what they do not keep.
struct SaysThatTheLatestQuerySpeaksForAll : Causal {
  bool sees_all(int, int, int last_query, KeyRange keys) const { return keys.end <= last_query + 1; }
};

struct BendsInSecret : Causal {
  float logit(float x, Position p) const { return p.key == 3 ? x / 2 : x; }
};

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

TEST_CASE("seen_keys of a tile of queries covers what any of them sees, and touches every tile with such a key") {
  for_each_rule([](const std::string& name, const AnyRule& rule) {
    bool covered = true, touched = true, ordered = true;
    const int num_keys = 9;
    for (int begin = first_query; begin <= last_query(num_keys); ++begin) {
      for (int end = begin; end <= last_query(num_keys); ++end) {
        const KeyRanges keys = seen_keys(rule, begin, end, num_keys);
        ordered &= keys.first.empty() || keys.second.empty() || keys.second.begin >= keys.first.end;
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
    CHECK_MESSAGE(ordered, name);
  });
}

TEST_CASE("where a rule says that queries see all keys, they do; a rule without bits says so wherever they do") {
  for_each_rule([](const std::string& name, const AnyRule& rule) {
    const SeesAll sees_all = check_sees_all(rule, 0, {first_query, last_query(9)}, 9);
    CHECK_MESSAGE(sees_all.is_true, name);
    if (name.find("TreeMask") == std::string::npos) CHECK_MESSAGE(sees_all.is_exact, name);
  });
  CHECK(check_sees_all(small_tree(), 0, {first_draft, 9}, 9).ever_said);
  CHECK(check_sees_all(chain(small_tree(), Causal{}), 0, {first_draft, 9}, 9).ever_said);
  CHECK_FALSE(check_sees_all(SaysThatTheLatestQuerySpeaksForAll{}, 0, {0, 9}, 9).is_true);
}

TEST_CASE("queries of a tree see all keys before it, up to the last one") {
  CHECK(small_tree().sees_all(0, first_draft, 8, {0, first_draft}));
  CHECK_FALSE(small_tree().sees_all(0, first_draft, 8, {0, first_draft + 1}));
}

TEST_CASE("no window and no number of sink tokens is too large to ask about") {
  constexpr int most = std::numeric_limits<int>::max();
  for (const SlidingWindow rule : {SlidingWindow{.window = most}, SlidingWindow{.window = most, .sink_tokens = most},
                                   SlidingWindow{.window = 1, .sink_tokens = most}}) {
    CHECK(rule.sees_all(0, 8, most - 1, {0, 9}));
    CHECK_FALSE(rule.sees_all(0, 8, most - 1, {0, 10}));
    CHECK_FALSE(rule.sees_all(0, -9, -9, {0, 1}));
  }
}

TEST_CASE("rules that promise to keep logits return every one of them; the others do not") {
  const Rules<Space::host> rules{.slopes = slopes.data(), .sinks = sinks.data(), .tree = small_tree()};
  const auto check = []<class V>(const std::string& name, const V& rule) {
    CHECK_MESSAGE(returns_every_logit(rule, 2) == keeps_logits_v<V>, name);
  };
  rules.for_each([&](const std::string& name, const auto& rule) { check(name, rule); });
  rules.for_each_chain([&](const std::string& first, const std::string& second, const auto& rule) {
    check(first + " then " + second, rule);
  });
  CHECK_FALSE(returns_every_logit(BendsInSecret{}, 2) == keeps_logits_v<BendsInSecret>);
}

TEST_CASE("a draft sees every key before the tree and, of the tree, what its bits say") {
  const TreeMask<> tree = small_tree();
  const std::array<const char*, 5> expected{"111110000", "111111000", "111110100", "111111010", "111100000"};
  for (int draft = 0; draft < 5; ++draft) {
    std::string seen;
    for (int key = 0; key < 9; ++key) seen += tree.visible({first_draft + draft, key, 0, 0}) ? '1' : '0';
    CHECK(seen == expected[static_cast<std::size_t>(draft)]);
  }
}

TEST_CASE("64 drafts have a bit each; one behind them is seen by nobody") {
  const std::array<std::int32_t, 2> kv_len{100, 70};
  const std::array<std::int32_t, 3> query_begin{0, 3, 73};
  std::array<std::uint64_t, 73> sees{};
  sees.fill(~std::uint64_t{0});
  const TreeMask<> tree{.tables = {.block_ids = {},
                                   .kv_len = dense_view(kv_len.data(), {2}),
                                   .query_begin = dense_view(query_begin.data(), {3})},
                        .sees = sees.data()};
  for (const int query : {0, 63, 69}) {
    CHECK(tree.visible({query, 0, 0, 1}));
    CHECK(tree.visible({query, 63, 0, 1}));
    CHECK_FALSE(tree.visible({query, 64, 0, 1}));
    CHECK_FALSE(tree.visible({query, 69, 0, 1}));
  }
  sees[3 + 5] = std::uint64_t{1} << 63;
  CHECK(tree.visible({5, 63, 0, 1}));
  CHECK_FALSE(tree.visible({5, 5, 0, 1}));
  CHECK(tree.visible({99, 96, 0, 0}));
}

TEST_CASE("rules without bits name exactly their visible keys, so that no tile is computed in vain") {
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
