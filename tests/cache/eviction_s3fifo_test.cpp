// S3FifoEviction: which queue, chances, ghosts; tests/cache/eviction_test.cpp holds it against its model.
#include "pagedkv/cache/eviction_s3fifo.hpp"

#include <doctest/doctest.h>

#include <cstdint>

#include "cache/eviction_oracle.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("S3-FIFO: a hit leads to the main queue, which waits while the small one has a tenth") {
  S3FifoEviction order(64);
  for (int i = 0; i < 40; ++i) make_idle(order, {i});
  for (int i = 0; i < 36; ++i) hit(order, i);
  CHECK(order.coldest() == BlockId{36});
  order.remove(BlockId{36});  // 3 of 39 are small
  CHECK(order.coldest() == BlockId{0});
  order.insert(BlockId{36});  // 4 of 40, and the oldest of them is 37
  CHECK(order.coldest() == BlockId{37});
}

TEST_CASE("S3-FIFO: who has a chance is passed over and loses it") {
  S3FifoEviction order(64);
  make_idle(order, {0, 1, 2});
  for (const int i : {0, 1, 2}) hit(order, i);  // to the main queue
  for (const int i : {0, 0, 1, 2}) hit(order, i);
  hit(order, 0);
  make_idle(order, {3});
  hit(order, 3);  // main: 1 (one chance), 2 (one), 0 (three), 3 (none)
  CHECK(evict_all(order) == Ids{3, 1, 2, 0});
}

TEST_CASE("S3-FIFO: at most eight are passed over") {
  S3FifoEviction order(64);
  for (int i = 0; i < 10; ++i) {
    make_idle(order, {i});
    hit(order, i);
    if (i < 9) hit(order, i);
  }
  CHECK(order.coldest() == BlockId{0});
  order.remove(BlockId{0});
  CHECK(order.coldest() == BlockId{1});
  order.remove(BlockId{1});
  CHECK(order.coldest() == BlockId{9});
}

TEST_CASE("S3-FIFO: who is published again soon after leaving the small queue is in the main one") {
  S3FifoEviction order(64);
  const auto leave = [&](int block, std::uint64_t key, bool evicted) {
    order.published(BlockId{block}, key, {});
    order.insert(BlockId{block});
    order.remove(BlockId{block});
    order.forgotten(BlockId{block}, key, evicted);
  };
  leave(0, 100, true);
  leave(0, 200, false);
  order.published(BlockId{1}, 100, {});
  order.published(BlockId{2}, 200, {});
  order.insert(BlockId{1});
  order.insert(BlockId{2});
  CHECK(order.coldest() == BlockId{2});  // was not evicted: no ghost
  order.remove(BlockId{2});
  CHECK(order.coldest() == BlockId{1});
}

TEST_CASE("the last keys are ghosts, and each only once") {
  detail::GhostKeys eight(8);  // one bucket
  for (std::uint64_t key = 1; key <= 10; ++key) eight.add(key);
  for (std::uint64_t key = 1; key <= 2; ++key) CHECK_FALSE(eight.take(key));
  for (std::uint64_t key = 3; key <= 10; ++key) CHECK(eight.take(key));
  for (std::uint64_t key = 1; key <= 10; ++key) CHECK_FALSE(eight.take(key));
  for (std::uint64_t key = 1; key <= 8; ++key) eight.add(key);
  CHECK(eight.take(4));
  eight.add(9);
  for (const std::uint64_t key : {1u, 2u, 3u, 5u, 6u, 7u, 8u, 9u}) CHECK(eight.take(key));

  detail::GhostKeys many(8'000);
  for (std::uint64_t key = 0; key < 80'000; ++key) many.add(key);
  int num_recent = 0, num_old = 0;
  for (std::uint64_t key = 76'000; key < 80'000; ++key) num_recent += many.take(key);
  for (std::uint64_t key = 0; key < 56'000; ++key) num_old += many.take(key);
  CHECK(num_recent > 3'600);  // the half that is newest
  CHECK(num_old < 100);       // thrice as many have come since
}
