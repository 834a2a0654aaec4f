// PriorityEviction: levels, deadlines, clocks; tests/cache/eviction_test.cpp holds it against its model.
#include "pagedkv/cache/eviction_priority.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "cache/eviction_oracle.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("a lower priority goes first, and within one the least recently used") {
  PriorityEviction order(8);
  make_idle(order, {0}, {.priority = 15});
  make_idle(order, {1, 2}, {.priority = 3});
  make_idle(order, {3, 4});
  hit(order, 1);
  CHECK(evict_all(order) == Ids{3, 4, 2, 1, 0});
}

TEST_CASE("a deadline that passes puts a block before all others, a hit puts it back") {
  PriorityEviction order(8);
  make_idle(order, {0, 1}, {.priority = 9, .expires_at = 100});
  make_idle(order, {2});
  order.advance(99);
  CHECK(order.coldest() == BlockId{2});
  order.advance(100);
  CHECK(order.coldest() == BlockId{0});
  hit(order, 0, {.priority = 1, .expires_at = 200});
  CHECK(order.coldest() == BlockId{1});
  hit(order, 1);
  CHECK(order.coldest() == BlockId{2});
  order.advance(150);
  CHECK(order.coldest() == BlockId{2});
  order.advance(200);
  CHECK(evict_all(order) == Ids{0, 2, 1});
}

TEST_CASE("a hit prolongs a deadline before it has passed") {
  PriorityEviction order(8);
  make_idle(order, {0, 1}, {.expires_at = 100});
  hit(order, 0, {.expires_at = 150});
  hit(order, 1, {.expires_at = 50});  // nobody shortens what another asked for
  order.advance(99);
  CHECK(order.coldest() == BlockId{0});
  order.advance(100);
  CHECK(order.coldest() == BlockId{1});
}

TEST_CASE("only a hit with at least its priority changes what a block is kept for") {
  PriorityEviction order(8);
  make_idle(order, {0, 1}, {.priority = 5, .expires_at = 100});
  make_idle(order, {2}, {.priority = 4});
  hit(order, 0);                                     // priority 0, no deadline: stays 5 until 100
  hit(order, 1, {.priority = 6, .expires_at = 50});  // higher: replaces it, deadline and all
  CHECK(order.coldest() == BlockId{2});
  order.advance(50);
  CHECK(order.coldest() == BlockId{1});
  order.advance(100);
  CHECK(evict_all(order) == Ids{1, 0, 2});
}

TEST_CASE("equal deadlines expire in the order in which blocks became idle, however far away they were") {
  PriorityEviction order(8);
  make_idle(order, {4, 1}, {.priority = 2, .expires_at = 1'000'000});
  order.advance(999'990);
  make_idle(order, {0}, {.priority = 1, .expires_at = 1'000'000});
  make_idle(order, {3}, {.priority = 1, .expires_at = 999'995});
  order.advance(2'000'000);
  CHECK(evict_all(order) == Ids{3, 4, 1, 0});
}

TEST_CASE("a clock that steps back is ignored") {
  PriorityEviction order(8);
  make_idle(order, {0}, {.priority = 1, .expires_at = 100});
  make_idle(order, {1});
  order.advance(100);
  order.advance(-5);
  CHECK(order.coldest() == BlockId{0});
  make_idle(order, {2}, {.priority = 1, .expires_at = 60});
  CHECK(evict_all(order) == Ids{0, 2, 1});
}

TEST_CASE("what expires in use goes behind what has expired before") {
  PriorityEviction order(8);
  order.published(BlockId{0}, 0, {.priority = 3, .expires_at = 10});
  make_idle(order, {1}, {.expires_at = 20});
  make_idle(order, {2});
  order.advance(30);
  order.insert(BlockId{0});
  CHECK(evict_all(order) == Ids{1, 0, 2});
}

TEST_CASE("times from the smallest to the largest expire in order") {
  using Limits = std::numeric_limits<std::int64_t>;
  const std::vector<std::int64_t> deadlines{Limits::min() + 1, -1, 0, 1, 63, 64, 4096, std::int64_t{1} << 61,
                                            Limits::max() - 1};
  for (const bool at_once : {false, true}) {
    PriorityEviction order(16);
    for (int i = static_cast<int>(deadlines.size()); i-- > 0;)
      make_idle(order, {i}, {.priority = 1, .expires_at = deadlines[static_cast<std::size_t>(i)]});
    make_idle(order, {15});
    for (std::size_t i = 0; i < deadlines.size() && !at_once; ++i) {
      order.advance(deadlines[i] - 1);
      CHECK(order.coldest() == BlockId{i == 0 ? 15 : 0});
      order.advance(deadlines[i]);
    }
    order.advance(Limits::max());
    CHECK(evict_all(order) == Ids{0, 1, 2, 3, 4, 5, 6, 7, 8, 15});
  }
}
