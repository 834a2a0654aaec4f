// LfuEviction: counting, ties and aging; tests/cache/eviction_test.cpp holds it against its model.
#include "pagedkv/cache/eviction_lfu.hpp"

#include <doctest/doctest.h>

#include "cache/eviction_oracle.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("LFU evicts what has fewest hits, and the least recently used among equals") {
  LfuEviction order(1000);
  make_idle(order, {0, 1, 2, 3});
  for (const int i : {0, 3, 0, 1}) hit(order, i);
  CHECK(evict_all(order) == Ids{2, 3, 1, 0});
}

TEST_CASE("LFU halves the counts of all blocks in 8 accesses each, high ids first") {
  LfuEviction order(4);
  make_idle(order, {3, 0});
  for (int i = 0; i < 4; ++i) hit(order, 3);
  hit(order, 0);  // the seventh access
  CHECK(order.coldest() == BlockId{0});
  for (int i = 0; i < 1 + 8; ++i) order.touched(BlockId{1}, {});  // block 3 keeps 2 hits, block 2 none
  CHECK(order.coldest() == BlockId{0});
  for (int i = 0; i < 4 * 8; ++i) order.touched(BlockId{1}, {});  // blocks 1, 0, 3, 2: 0 hits, 1 hit
  CHECK(evict_all(order) == Ids{0, 3});
}

TEST_CASE("LFU counts to fifteen") {
  LfuEviction order(1000);
  make_idle(order, {0, 1});
  for (int i = 0; i < 100; ++i) hit(order, 0);
  for (int i = 0; i < 15; ++i) hit(order, 1);
  CHECK(evict_all(order) == Ids{0, 1});
}
