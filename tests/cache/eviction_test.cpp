// LruEviction against a list in which the coldest block is searched for.
#include "pagedkv/cache/eviction.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <list>
#include <random>

#include "support/assert.hpp"

using namespace pagedkv;

namespace {

LruEviction prepared(int num_blocks) {
  LruEviction order;
  for (int i = 0; i < num_blocks; ++i) order.prepare(BlockId{i});
  return order;
}

}  // namespace

TEST_CASE("the block that became idle first is the coldest") {
  LruEviction order = prepared(6);
  CHECK(order.coldest() == BlockId::none);
  for (const int i : {5, 1, 3}) order.insert(BlockId{i});
  CHECK(order.coldest() == BlockId{5});
  order.remove(BlockId{5});
  order.insert(BlockId{5});
  CHECK(order.coldest() == BlockId{1});
  CHECK(order.size() == 3);
}

TEST_CASE("LRU agrees with a plain list over random use") {
  std::mt19937 random{7};
  LruEviction order = prepared(40);
  std::list<BlockId> plain;
  for (int i = 0; i < 100'000; ++i) {
    const BlockId block{static_cast<std::int32_t>(random() % 40)};
    const bool is_idle = std::ranges::find(plain, block) != plain.end();
    REQUIRE(order.contains(block) == is_idle);
    if (is_idle) {
      order.remove(block);
      plain.remove(block);
    } else {
      order.insert(block);
      plain.push_back(block);
    }
    REQUIRE(order.coldest() == (plain.empty() ? BlockId::none : plain.front()));
    REQUIRE(order.size() == static_cast<int>(plain.size()));
  }
}

TEST_CASE("the hash of an order tells two orders apart") {
  LruEviction one = prepared(3), other = prepared(3);
  for (const int i : {1, 2}) one.insert(BlockId{i});
  for (const int i : {2, 1}) other.insert(BlockId{i});
  CHECK(one.state_hash() != other.state_hash());
}

TEST_CASE("a block is idle once") {
  LruEviction order = prepared(3);
  order.insert(BlockId{1});
  CHECK_THROWS_AS(order.insert(BlockId{1}), pagedkv_test::AssertionFailed);
  CHECK_THROWS_AS(order.remove(BlockId{2}), pagedkv_test::AssertionFailed);
}
