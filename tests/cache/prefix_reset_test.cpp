// PrefixCache: reset() in O(1), requests that may not write, duplicates that are given back, retention.
#include <doctest/doctest.h>

#include <vector>

#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"
#include "pagedkv/cache/eviction_priority.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

TEST_CASE("after a reset nothing is found, what is owned stays, and what is computed anew is found") {
  Server server{16, 4};
  Sequence running = server.serve(iota(9));
  server.serve(iota(9, 100));
  server.cache.reset();
  CHECK(running.size() == 9);
  CHECK(server.blocks.is_published(running.blocks()[0]));
  CHECK(server.cache.num_cached_tokens(iota(9)) == 0);
  CHECK(server.cached(iota(9, 100)) == 0);
  CHECK(server.cached(iota(9, 100)) == 8);
  CHECK(server.cached(iota(9)) == 0);
  CHECK(server.cached(iota(9)) == 8);
  CHECK(running.blocks()[0] != server.serve(iota(9)).blocks()[0]);
}

TEST_CASE("a sequence with blocks from before a reset publishes no more, nor do its forks") {
  Server server{16, 4};
  const Tokens tokens = iota(17);
  Sequence running = server.serve(iota(9));
  server.cache.reset();
  REQUIRE(running.append(8, server.step));
  server.step.commit();
  server.cache.publish(tokens, running);
  server.cache.publish(tokens, running.fork());
  CHECK(server.cache.stats().published_blocks == 2);
  CHECK(server.cache.num_cached_tokens(tokens) == 0);
  server.cache.check_invariants();
}

TEST_CASE("blocks from before a reset are evicted in their turn and never come back") {
  Server server{6, 4};
  server.serve(iota(9));
  const Sequence running = server.serve(iota(5, 50));
  server.cache.reset();
  CHECK(server.blocks.num_available() == 4);
  Sequence filler{server.blocks};
  REQUIRE(filler.append(16, server.step));
  CHECK(server.blocks.num_idle() == 0);
  server.step.commit();
  filler.truncate(0);
  CHECK(server.cached(iota(9)) == 0);
}

TEST_CASE("a new scope after a reset is not the old one") {
  Server server{16, 4};
  for (int round = 0; round < 50; ++round) {
    CHECK(server.cached(iota(9), {.salt = 5}) == 0);
    CHECK(server.cached(iota(9), {.salt = 5}) == 8);
    server.cache.reset();
  }
}

TEST_CASE("a request that may not write publishes nothing, nor do its forks, but hits") {
  Server server{16, 4};
  server.serve(iota(5));
  Sequence secret = server.serve(iota(13), {.no_write = true});
  CHECK((*server.admission)->cached == 4);
  Sequence fork = secret.fork();
  server.cache.publish(iota(13), fork);
  CHECK(server.cache.stats().published_blocks == 1);
  CHECK(server.cache.num_cached_tokens(iota(13)) == 4);
}

TEST_CASE("a refused request that may not write leaves the sequence free to publish") {
  Server server{4, 4};
  Sequence s{server.blocks};
  CHECK_FALSE(server.cache.admit(iota(17), s, server.step, {.no_write = true}));
  CHECK(s.may_publish());
}

TEST_CASE("remapped duplicates give their blocks back") {
  Server server{16, 4};
  Sequence first{server.blocks}, twin{server.blocks};
  Tokens other = iota(13);
  other[9] = -1;
  REQUIRE(server.cache.admit(iota(13), first, server.step));
  REQUIRE(server.cache.admit(other, twin, server.step));
  server.step.commit();
  server.cache.publish(iota(13), first);
  const BlockId last = twin.blocks()[2], tail = twin.blocks()[3];
  server.cache.publish_and_remap(other, twin);
  CHECK(twin.blocks()[0] == first.blocks()[0]);
  CHECK(twin.blocks()[1] == first.blocks()[1]);
  CHECK(twin.blocks()[2] == last);
  CHECK(twin.blocks()[3] == tail);
  CHECK(server.blocks.is_published(last));
  CHECK(server.blocks.num_used() == 6);
  CHECK(server.cache.stats().remapped_blocks == 2);
  CHECK(server.cache.stats().duplicate_blocks == 0);
  server.cache.publish_and_remap(other, twin);  // nothing new
  CHECK(server.cache.stats().remapped_blocks == 2);
  server.cache.check_invariants();
  first.truncate(0);
  twin.truncate(0);
  CHECK(server.cached(other) == 12);
  CHECK(server.cached(iota(13)) == 12);
}

TEST_CASE("a remapped sequence revives an idle block") {
  Server server{16, 4};
  Sequence twin{server.blocks};
  REQUIRE(server.cache.admit(iota(9), twin, server.step, {.no_read = true}));
  server.serve(iota(9));  // commits both
  CHECK(server.blocks.num_idle() == 2);
  server.cache.publish_and_remap(iota(9), twin);
  CHECK(server.blocks.num_idle() == 0);
  CHECK(server.blocks.num_used() == 3);
}

TEST_CASE("a fork keeps the duplicate that its parent gives back") {
  Server server{16, 4};
  Sequence twin{server.blocks};
  REQUIRE(server.cache.admit(iota(9), twin, server.step));
  server.serve(iota(9));
  Sequence fork = twin.fork();
  const BlockId own = twin.blocks()[0];
  server.cache.publish_and_remap(iota(9), twin);
  CHECK(fork.blocks()[0] == own);
  CHECK(server.blocks.ref_count(own) == 1);
  server.cache.publish(iota(9), fork);
  CHECK(server.blocks.is_published(own));
  CHECK(server.cache.stats().duplicate_blocks == 2);
}

TEST_CASE("the policy is told the retention that a request asks for") {
  pagedkv_test::PrefixServer<BasicPrefixCache<PriorityEviction>> server{7, 4};
  server.serve(iota(9, 100), {.retention = {.priority = 3}});
  server.serve(iota(9, 200));
  server.serve(iota(17, 300));  // two blocks more than are free
  CHECK(server.cache.num_cached_tokens(iota(9, 100)) == 8);
  CHECK(server.cache.num_cached_tokens(iota(9, 200)) == 0);

  Sequence s{server.blocks};
  CHECK_THROWS_AS(static_cast<void>(server.cache.admit(iota(5), s, server.step, {.retention = {.priority = 16}})),
                  InvalidArgument);
  REQUIRE(server.cache.admit(iota(5, 400), s, server.step));
  server.step.commit();
  CHECK_THROWS_AS(server.cache.publish(iota(5, 400), s, {}, {.priority = 16}), InvalidArgument);
  s.truncate(0);
  CHECK(server.blocks.num_used() == 0);
}

TEST_CASE("time reaches the policy: what has expired goes first, unless it is hit again") {
  for (const bool is_hit_again : {false, true}) {
    pagedkv_test::PrefixServer<BasicPrefixCache<PriorityEviction>> server{7, 4};
    server.serve(iota(9, 200), {.retention = {.priority = 3}});
    server.serve(iota(9, 100), {.retention = {.priority = 3, .expires_at = 10}});
    if (is_hit_again) server.serve(iota(9, 100), {.retention = {.priority = 3, .expires_at = 30}});
    server.cache.advance(20);
    server.serve(iota(17, 300));  // two blocks more than are free
    CHECK(server.cache.num_cached_tokens(iota(9, 100)) == (is_hit_again ? 8 : 0));
    CHECK(server.cache.num_cached_tokens(iota(9, 200)) == (is_hit_again ? 0 : 8));
  }
}
