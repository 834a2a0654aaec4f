// What every eviction policy has to keep to, each against a model of lists that are searched.
#include "pagedkv/cache/eviction.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <deque>
#include <limits>
#include <type_traits>

#include "cache/eviction_oracle.hpp"
#include "support/assert.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

#define EVERY_POLICY LruEviction, LfuEviction, S3FifoEviction, PriorityEviction

// A policy and its model, told the same and compared whenever a victim is wanted.
template <class Policy>
struct Both {
  Policy policy;
  typename ModelOf<Policy>::type model;

  explicit Both(int num_blocks) : policy(num_blocks), model(num_blocks) {}
  void published(BlockId b, std::uint64_t key, Retention r) { policy.published(b, key, r), model.published(b, key, r); }
  void touched(BlockId b, Retention r) { policy.touched(b, r), model.touched(b, r); }
  void insert(BlockId b) { policy.insert(b), model.insert(b); }
  void remove(BlockId b) { policy.remove(b), model.remove(b); }
  void forgotten(BlockId b, std::uint64_t key, bool e) { policy.forgotten(b, key, e), model.forgotten(b, key, e); }
  void advance(std::int64_t now) { policy.advance(now), model.advance(now); }
  bool contains(BlockId b) const {
    REQUIRE(policy.contains(b) == model.contains(b));
    return policy.contains(b);
  }
  BlockId coldest() const {
    REQUIRE(policy.coldest() == model.coldest());
    REQUIRE(policy.size() == model.size());
    REQUIRE((policy.coldest() == BlockId::none) == (policy.size() == 0));
    return policy.coldest();
  }
};

// 10^5 uses with up to `max_in_use` blocks in use at once, some of them forgotten by others than eviction, and a clock
// that jumps and steps back.
template <class Policy>
void compare_with_model(Trace trace, int num_blocks, int max_in_use) {
  Residents<Both<Policy>> cache(num_blocks);
  Keys keys(trace, 3 * num_blocks, 11);
  Random random(12);
  std::deque<BlockId> in_use;
  std::int64_t now = -1000;
  for (int i = 0; i < 100'000; ++i) {
    Retention retention{.priority = static_cast<std::uint8_t>(random.pick({0, 0, 0, 1, 7, 15}))};
    if (random.one_in(3)) retention.expires_at = now + random.between(-5, random.pick({10, 300, 100'000}));
    const BlockId block = cache.use(keys.next(), retention);
    if (block != BlockId::none && std::ranges::find(in_use, block) == in_use.end()) in_use.push_back(block);
    while (std::ssize(in_use) > random.between(0, max_in_use)) {
      cache.order.insert(in_use.front());
      in_use.pop_front();
    }
    if (random.one_in(50)) cache.drop(cache.order.coldest(), false);
    if (random.one_in(4)) {
      now += random.pick({0, 1, 1, 7, 70, 5000});
      cache.order.advance(random.one_in(5) ? now - 20 : now);
    }
    static_cast<void>(cache.order.coldest());
  }
  for (int i = 0; i < num_blocks; ++i) static_cast<void>(cache.order.contains(BlockId{i}));
  int num_left = cache.order.policy.size() + static_cast<int>(in_use.size());
  for (const BlockId block : in_use) cache.order.insert(block);
  while (cache.drop(cache.order.coldest(), true)) --num_left;
  CHECK(num_left == 0);
}

}  // namespace

TEST_CASE_TEMPLATE("blocks that are never hit go in the order in which they became idle", Policy, EVERY_POLICY) {
  Policy order(6);
  CHECK(order.coldest() == BlockId::none);
  make_idle(order, {5, 1, 3});
  CHECK(order.coldest() == BlockId{5});
  order.remove(BlockId{5});
  order.insert(BlockId{5});
  CHECK(order.size() == 3);
  CHECK(order.contains(BlockId{3}));
  CHECK_FALSE(order.contains(BlockId{2}));
  CHECK(evict_all(order) == Ids{1, 3, 5});
  CHECK(order.size() == 0);
  CHECK_FALSE(order.contains(BlockId{3}));
}

TEST_CASE_TEMPLATE("a policy agrees with its model", Policy, EVERY_POLICY) {
  for (const Trace trace : {Trace::zipf, Trace::scan, Trace::loop, Trace::burst}) {
    compare_with_model<Policy>(trace, 64, 20);
    compare_with_model<Policy>(trace, 3, 3);
  }
}

TEST_CASE_TEMPLATE("insert and remove alone leave no trace", Policy, EVERY_POLICY) {
  Policy order(8);
  make_idle(order, {4, 2, 6});
  for (const int i : {2, 2, 6}) hit(order, i);
  order.published(BlockId{1}, 1, {.priority = 3, .expires_at = 50});
  const std::uint64_t before = order.state_hash();
  order.insert(BlockId{1});
  CHECK(order.state_hash() != before);
  order.remove(BlockId{1});
  CHECK(order.state_hash() == before);
}

TEST_CASE_TEMPLATE("the same calls give the same state, another order another state", Policy, EVERY_POLICY) {
  Policy one(3), same(3), other(3);
  make_idle(one, {1, 2});
  make_idle(same, {1, 2});
  make_idle(other, {2, 1});
  CHECK(one.state_hash() == same.state_hash());
  CHECK(one.state_hash() != other.state_hash());
}

TEST_CASE_TEMPLATE("what is forgotten starts anew", Policy, EVERY_POLICY) {
  Policy order(4);
  const std::uint64_t before = order.state_hash();
  make_idle(order, {0}, {.priority = 9});
  for (int i = 1; i < 4 * LfuEviction::accesses_per_aging; ++i) hit(order, 0);  // LFU has aged each block once
  order.remove(BlockId{0});
  order.forgotten(BlockId{0}, 0, false);
  CHECK(order.state_hash() == before);
  make_idle(order, {0, 1});
  CHECK(evict_all(order) == Ids{0, 1});
}

TEST_CASE_TEMPLATE("a block is idle once, and forgotten only when it is not", Policy, EVERY_POLICY) {
  Policy order(3);
  make_idle(order, {1});
  CHECK_THROWS_AS(order.insert(BlockId{1}), AssertionFailed);
  CHECK_THROWS_AS(order.remove(BlockId{2}), AssertionFailed);
  CHECK_THROWS_AS(order.forgotten(BlockId{1}, 1, true), AssertionFailed);
  CHECK_THROWS_AS(order.published(BlockId{1}, 1, {}), AssertionFailed);
  CHECK_THROWS_AS(order.insert(BlockId{3}), AssertionFailed);
  CHECK_THROWS_AS(order.insert(BlockId::none), AssertionFailed);
  CHECK(evict_all(order) == Ids{1});
}

TEST_CASE_TEMPLATE("an order has at least one block and at most what 30 bits name", Policy, EVERY_POLICY) {
  CHECK_THROWS_AS(Policy(0), InvalidArgument);
  CHECK_THROWS_AS(Policy(-1), InvalidArgument);
  CHECK_THROWS_AS(Policy((1 << 30) - 1), InvalidArgument);
  CHECK_THROWS_AS(Policy(std::numeric_limits<std::int32_t>::max()), InvalidArgument);
}

TEST_CASE_TEMPLATE("of ten million blocks any can be asked for before any is used", Policy, EVERY_POLICY) {
  constexpr int num_blocks = 10'000'000;
  Policy order(num_blocks);
  for (int i = 0; i < num_blocks; i += 1'234'567) CHECK_FALSE(order.contains(BlockId{i}));
  make_idle(order, {num_blocks - 1, 0});
  hit(order, num_blocks - 1);
  CHECK(evict_all(order) == Ids{0, num_blocks - 1});
}

TEST_CASE_TEMPLATE("a flood of keys used once drives out a hot set under LRU, not where use is counted", Policy,
                   EVERY_POLICY) {
  constexpr int num_blocks = 100, num_hot = 50;
  Residents<Policy> cache(num_blocks);
  for (int use = 0; use < 4; ++use)
    for (int key = 0; key < num_hot; ++key) cache.use_once(key);
  for (int key = 0; key < 10 * num_blocks; ++key) cache.use_once(1000 + key);
  int num_left = 0;
  for (int key = 0; key < num_hot; ++key) num_left += cache.contains(key);
  constexpr bool counts = std::is_same_v<Policy, LfuEviction> || std::is_same_v<Policy, S3FifoEviction>;
  CHECK(num_left == (counts ? num_hot : 0));
}

TEST_CASE("a hot set that is replaced by another makes room for it") {
  const auto hits_of_the_second_set = []<class Policy>(Residents<Policy> cache) {
    for (int use = 0; use < 50; ++use)
      for (int key = 0; key < 90; ++key) cache.use_once(key);
    cache.num_hits = 0;
    for (int use = 0; use < 100; ++use)
      for (int key = 1000; key < 1090; ++key) cache.use_once(key);
    return cache.num_hits;
  };
  CHECK(hits_of_the_second_set(Residents<LruEviction>(100)) == 99 * 90);
  CHECK(hits_of_the_second_set(Residents<LfuEviction>(100)) > 50 * 90);
  CHECK(hits_of_the_second_set(Residents<S3FifoEviction>(100)) > 80 * 90);
}

TEST_CASE("a retention that asks for more than there is is refused") {
  CHECK_NOTHROW(Retention{.priority = 15}.validate());
  CHECK_THROWS_AS(Retention{.priority = 16}.validate(), InvalidArgument);
}
