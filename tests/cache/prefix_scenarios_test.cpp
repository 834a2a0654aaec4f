// PrefixCache: whole stories, as engines live them.
#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

TEST_CASE("two requests share three blocks; when both have gone a third takes everything in the promised order") {
  Server server{10, 4};
  std::vector<BlockId> shared, tails;
  {
    const Sequence first = server.serve(iota(3 * 4 + 3));
    const Sequence second = server.serve(iota(3 * 4 + 3));
    for (int i = 0; i < 3; ++i) {
      shared.push_back(first.table()[i]);
      CHECK(second.table()[i] == shared.back());
      CHECK(server.blocks.ref_count(shared.back()) == 2);
    }
    tails = {first.table()[3], second.table()[3]};
    CHECK(server.blocks.num_free() == 5);
  }
  CHECK(server.blocks.num_free() == 7);
  CHECK(server.blocks.num_idle() == 3);
  Sequence third{server.blocks};
  for (int i = 0; i < 10; ++i) REQUIRE(third.append(4, server.step));
  server.step.commit();
  const std::vector<BlockId> order(third.blocks().begin(), third.blocks().end());
  CHECK(order[0] == tails[0]);  // let go of last
  CHECK(order[1] == tails[1]);
  CHECK(std::vector(order.begin() + 7, order.end()) == std::vector{shared[2], shared[1], shared[0]});
}

TEST_CASE("the same tokens at another depth, or behind another block, are other prefixes") {
  Server server{64, 2};
  const auto cached = [&](const Tokens& tokens) { return server.cache.num_cached_tokens(tokens); };
  server.serve({1, 2, 1, 2, 1, 2, 9});
  CHECK(cached({1, 2, 1, 2, 1, 2, 1, 2, 9}) == 6);
  CHECK(cached({1, 2, 9}) == 2);
  server.serve({3, 4, 7, 8, 9});
  CHECK(cached({1, 2, 7, 8, 9}) == 2);
  server.serve({1, 2, 7, 8, 9});
  CHECK(server.cache.stats().duplicate_blocks == 0);
  CHECK(cached({1, 2, 7, 8, 9}) == 4);
  CHECK(cached({3, 4, 7, 8, 9}) == 4);
}

TEST_CASE("a preempted request hits its own blocks when it comes back") {
  Server server{8, 4};
  Tokens tokens = iota(10);
  Sequence request = server.serve(tokens);
  for (int i = 0; i < 5; ++i) {  // it generates 100, 101, ...
    REQUIRE(request.append(1, server.step));
    server.step.commit();
    tokens.push_back(100 + i);
    server.cache.publish(tokens, request);
  }
  request.truncate(0);
  const auto resumed = server.cache.admit(tokens, request, server.step);
  REQUIRE(resumed);
  CHECK(resumed->cached == 12);
  CHECK(resumed->to_compute == 3);
  CHECK(server.step.num_rows() == 3);
  server.step.commit();
}

TEST_CASE("eight samples of one prompt fill the same block in one step: kept, or given back") {
  for (const bool remap : {false, true}) {
    Server server{64, 4};
    Sequence prompt = server.serve(iota(6));
    std::vector<Sequence> samples;
    for (int i = 0; i < 8; ++i) samples.push_back(prompt.fork());
    prompt.truncate(0);
    for (Sequence& sample : samples) REQUIRE(sample.append(2, server.step));
    server.step.commit();
    for (Sequence& sample : samples)
      remap ? server.cache.publish_and_remap(iota(8), sample) : server.cache.publish(iota(8), sample);
    CHECK(server.blocks.num_used() == (remap ? 2 : 9));
    CHECK(server.cache.stats().duplicate_blocks == (remap ? 0 : 7));
    CHECK(server.cache.stats().remapped_blocks == (remap ? 7 : 0));
    server.cache.check_invariants();
    // The canonical block goes first; whoever is left can still be found.
    while (!samples.empty()) {
      samples.erase(samples.begin());
      Sequence filler{server.blocks};
      REQUIRE(filler.append(4 * (server.blocks.num_available() - (samples.empty() ? 2 : 0)), server.step));
      filler.truncate(0);
      CHECK(server.cache.num_cached_tokens(iota(9)) == 8);
      server.cache.check_invariants();
    }
    server.step.commit();
  }
}

TEST_CASE("publishing again changes nothing") {
  Server server{16, 4};
  Sequence s = server.serve(iota(9));
  const auto before = server.cache.state_hash();
  server.cache.publish(iota(9), s);
  server.cache.publish_and_remap(iota(9), s);
  CHECK(server.cache.state_hash() == before);
  CHECK(server.cache.stats().published_blocks == 2);
}

TEST_CASE("a sequence published under one scope cannot go on under another") {
  Server server{16, 4};
  Sequence s = server.serve(iota(6), {.salt = 1});
  REQUIRE(s.append(2, server.step));
  server.step.commit();
  const auto before = server.cache.state_hash();
  CHECK_THROWS_AS(server.cache.publish(iota(8), s), InvalidArgument);
  CHECK(server.cache.state_hash() == before);
  server.cache.publish(iota(8), s, {.salt = 1});
  CHECK(server.cache.num_cached_tokens(iota(9), {.salt = 1}) == 8);
}

TEST_CASE("blocks that came from elsewhere are published once they are sealed") {
  Server server{16, 4};
  std::vector<BlockId> foreign(2);
  REQUIRE(server.blocks.allocate(foreign));
  Sequence s{server.blocks};
  s.adopt(foreign, 8);
  CHECK_THROWS_AS(server.cache.publish(iota(8), s), InvalidArgument);
  server.blocks.seal(foreign[0]);
  const auto before = server.cache.state_hash();
  CHECK_THROWS_AS(server.cache.publish(iota(8), s), InvalidArgument);
  CHECK(server.cache.state_hash() == before);
  server.blocks.seal(foreign[1]);
  server.blocks.release(foreign);
  server.cache.publish(iota(8), s);
  CHECK(server.cache.num_cached_tokens(iota(9)) == 8);
}

TEST_CASE("drafts that were not accepted are never found") {
  Server server{16, 4};
  Sequence s = server.serve(iota(6));
  Tokens tokens = iota(6);
  REQUIRE(s.reserve(6, server.step));
  server.step.commit();
  for (const int guess : {6, 7, 80, 81, 82, 83}) tokens.push_back(guess);
  server.cache.publish(tokens, s);
  CHECK(server.cache.stats().published_blocks == 1);
  s.accept(2);
  server.cache.publish(tokens, s);
  CHECK(server.cache.stats().published_blocks == 2);
  CHECK(server.cache.num_cached_tokens(iota(9)) == 8);
  tokens.push_back(9);
  CHECK(server.cache.num_cached_tokens(tokens) == 8);
}

TEST_CASE("a long prompt that was let go of in pieces is all there for the next one") {
  constexpr int num_blocks = 5000;  // more than one call walks
  Server server{num_blocks + 10, 2};
  server.serve(iota(2 * num_blocks));
  CHECK(server.cached(iota(2 * num_blocks)) == 2 * (num_blocks - 1));
  server.serve(iota(2 * num_blocks, 1'000'000));  // needs what is still to be walked
  CHECK(server.cache.num_cached_tokens(iota(2 * num_blocks, 1'000'000)) == 2 * (num_blocks - 1));
}

TEST_CASE("a long prefix behind a window is given up from its end, block by block") {
  constexpr int num_blocks = 300;
  Server server{num_blocks, 2};
  const Tokens tokens = iota(2 * num_blocks);
  Sequence s{server.blocks};
  for (int i = 0; i < num_blocks; ++i) {
    REQUIRE(s.append(2, server.step));
    server.step.commit();
    server.cache.publish(tokens, s);
    s.release_before(2 * max(0, i - 9));
  }
  CHECK(server.blocks.num_idle() == 290);
  std::vector<BlockId> taken;
  const auto take = [&] {
    taken.emplace_back();
    REQUIRE(server.blocks.allocate({&taken.back(), 1}));
  };
  for (int left = 290; left > 100; --left) {  // the first block is the coldest: it was dropped first
    REQUIRE(server.cache.num_cached_tokens(tokens) == 2 * (left == 290 ? 299 : left));
    take();
  }
  server.blocks.release(std::span(taken).last(5));
  taken.resize(taken.size() - 5);
  server.serve({0, 1, 2, 3, -4, -5, -6});  // two of them, and a branch that is given up before they are
  CHECK(server.blocks.num_idle() == 101);
  while (server.blocks.num_available() > 0) {
    take();
    server.cache.check_invariants();
  }
  CHECK(server.cache.num_cached_tokens(tokens) == 0);
  server.blocks.release(taken);
}

TEST_CASE("extras far behind the beginning of a long prompt") {
  Server server{600, 4};
  const std::vector<PrefixExtra> images{{401, 410, "cat"}, {410, 411, "dog"}, {1000, 1200, "video"}};
  const std::vector<PrefixExtra> others{{401, 410, "cat"}, {410, 411, "dog"}, {1000, 1200, "film"}};
  server.serve(iota(1300), {.extras = images});
  CHECK(server.cache.num_cached_tokens(iota(1300), {.extras = images}) == 1296);
  CHECK(server.cache.num_cached_tokens(iota(1300), {.extras = others}) == 1000);
  CHECK(server.cache.num_cached_tokens(iota(1300)) == 400);
  CHECK(server.cache.num_cached_tokens(iota(1100), {.extras = images}) == 1000);
  CHECK(server.cache.num_cached_tokens(iota(405), {.extras = images}) == 400);
}
