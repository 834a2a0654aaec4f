// PrefixCache: two requests of one step that need the same block; the second computes it as well, or waits.
#include <doctest/doctest.h>

#include <array>

#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

namespace {

/// A first request of 13 tokens in blocks of 4 has been admitted; its step is open.
struct Twin : Server {
  explicit Twin(const AdmitOptions& options = {}) : Server{64, 4} {
    REQUIRE(cache.admit(iota(13), first, step, options));
  }
  ~Twin() { step.commit(); }

  bool waits(const Tokens& tokens, AdmitOptions options = {}) {
    options.twins = Twins::wait;
    const auto before = cache.state_hash();
    Sequence s{blocks};
    const Admission admitted = cache.admit(tokens, s, step, options);
    if (admitted) return false;
    CHECK(admitted.refusal() == Refusal::twin);
    CHECK(cache.state_hash() == before);
    CHECK(s.size() == 0);
    return true;
  }

  Sequence first{blocks};
};

}  // namespace

TEST_CASE("a twin computes the same blocks by default, and they become duplicates") {
  Twin t;
  Sequence twin{t.blocks};
  REQUIRE(t.cache.admit(iota(13), twin, t.step));
  t.step.commit();
  t.cache.publish(iota(13), t.first);
  t.cache.publish(iota(13), twin);
  CHECK(t.cache.stats().duplicate_blocks == 3);
}

TEST_CASE("a twin that waits changes nothing, and after commit and publish it hits") {
  Twin t;
  CHECK(t.waits(iota(13)));
  CHECK(t.cache.stats().rejected_twins == 1);
  t.step.commit();
  t.cache.publish(iota(13), t.first);
  CHECK(t.cached(iota(13), {.twins = Twins::wait}) == 12);
}

TEST_CASE("who needs another block does not wait") {
  Twin t;
  CHECK_FALSE(t.waits(iota(13, 1)));
  CHECK_FALSE(t.waits(iota(13), {.salt = 1}));
  CHECK_FALSE(t.waits(iota(13), {.adapter = "x"}));
  const std::array image{PrefixExtra{1, 3, "cat"}};
  CHECK_FALSE(t.waits(iota(13), {.extras = image}));
  CHECK_FALSE(t.waits(iota(13), {.no_read = true}));
  CHECK(t.waits(iota(5)));        // the same first block
  CHECK_FALSE(t.waits(iota(4)));  // would have to compute it even if it were cached
  CHECK_FALSE(t.waits(iota(3)));
  CHECK(t.waits(iota(4), {.partial_blocks = true}));  // three rows could be copied
}

TEST_CASE("images tell twins apart") {
  const std::array cat{PrefixExtra{1, 3, "cat"}};
  const std::array dog{PrefixExtra{1, 3, "dog"}};
  Twin t{{.extras = cat}};
  CHECK(t.waits(iota(13), {.extras = cat}));
  CHECK_FALSE(t.waits(iota(13), {.extras = dog}));
  CHECK_FALSE(t.waits(iota(13)));
}

TEST_CASE("a step that is committed or given up keeps nobody waiting") {
  SUBCASE("committed, though not published") {
    Twin t;
    t.step.commit();
    CHECK_FALSE(t.waits(iota(13)));
  }
  SUBCASE("the first request was dropped") {
    Twin t;
    t.first.truncate(0);
    CHECK_FALSE(t.waits(iota(13)));
  }
  SUBCASE("in a later step another request writes into its blocks") {
    Twin t;
    t.first.truncate(0);
    t.step.commit();
    Sequence other{t.blocks};
    REQUIRE(other.append(2, t.step));
    CHECK_FALSE(t.waits(iota(13)));
  }
  SUBCASE("another request has taken its blocks") {
    Twin t;
    t.first.truncate(0);
    Sequence other{t.blocks};
    REQUIRE(t.cache.admit(iota(13, 100), other, t.step));
    CHECK_FALSE(t.waits(iota(13)));
  }
}

TEST_CASE("nobody waits for what will not be published") {
  Twin forbidden{{.no_write = true}};
  CHECK_FALSE(forbidden.waits(iota(13)));
  Twin chunk{{.max_append = 3}};  // not a full block in this step
  CHECK_FALSE(chunk.waits(iota(13)));
  Twin block{{.max_append = 4}};
  CHECK(block.waits(iota(13)));
}

TEST_CASE("twins behind a common cached prefix are told by the block that follows") {
  Server server{64, 4};
  server.serve(iota(8));
  Tokens a = iota(13), b = iota(13);
  b[9] = -1;
  Sequence first{server.blocks}, second{server.blocks}, third{server.blocks};
  REQUIRE(server.cache.admit(a, first, server.step));
  const auto other = server.cache.admit(b, second, server.step, {.twins = Twins::wait});
  REQUIRE(other);
  CHECK(other->cached == 8);
  CHECK_FALSE(server.cache.admit(a, third, server.step, {.twins = Twins::wait}));
  CHECK_FALSE(server.cache.admit(b, third, server.step, {.twins = Twins::wait}));
  server.step.commit();
}

TEST_CASE("the same block behind other prefixes is no twin") {
  Server server{64, 4};
  server.serve(iota(8));
  server.serve(iota(8, 100));
  Tokens a = iota(13), b = iota(13);
  for (int i = 0; i < 8; ++i) b[static_cast<std::size_t>(i)] = 100 + i;
  Sequence first{server.blocks}, second{server.blocks};
  REQUIRE(server.cache.admit(a, first, server.step));
  CHECK(server.cache.admit(b, second, server.step, {.twins = Twins::wait}));
  server.step.commit();
}

TEST_CASE("whoever gives up takes nobody else's announcement along") {
  Server server{64, 4};
  Sequence first{server.blocks}, second{server.blocks}, third{server.blocks}, twin{server.blocks};
  REQUIRE(server.cache.admit(iota(9), first, server.step));
  REQUIRE(server.cache.admit(iota(9, 100), second, server.step));
  first.truncate(0);
  REQUIRE(server.cache.admit(iota(9, 200), third, server.step));  // takes over the first one's blocks
  const AdmitOptions wait{.twins = Twins::wait};
  CHECK(server.cache.admit(iota(9, 100), twin, server.step, wait).refusal() == Refusal::twin);
  CHECK(server.cache.admit(iota(9, 200), twin, server.step, wait).refusal() == Refusal::twin);
  CHECK(server.cache.admit(iota(9), twin, server.step, wait));
  server.step.commit();
}

TEST_CASE("two hundred twins of one step wait, and then all of them hit") {
  Server server{1024, 4};
  std::vector<Sequence> running;
  for (int i = 0; i < 200; ++i) {  // each of them alone
    running.emplace_back(server.blocks);
    REQUIRE(server.cache.admit(iota(9, 1000 * i), running.back(), server.step));
  }
  for (int i = 0; i < 200; ++i) {
    Sequence twin{server.blocks};
    REQUIRE_FALSE(server.cache.admit(iota(9, 1000 * i), twin, server.step, {.twins = Twins::wait}));
  }
  server.step.commit();
  for (int i = 0; i < 200; ++i) server.cache.publish(iota(9, 1000 * i), running[static_cast<std::size_t>(i)]);
  for (int i = 0; i < 200; ++i) CHECK(server.cached(iota(9, 1000 * i), {.twins = Twins::wait}) == 8);
}

TEST_CASE("later chunks of a long prompt are announced") {
  Server server{64, 4};
  const Tokens tokens = iota(17);
  Sequence first{server.blocks}, twin{server.blocks};
  REQUIRE(server.cache.admit(tokens, first, server.step, {.max_append = 8}));
  server.step.commit();
  server.cache.publish(tokens, first);
  REQUIRE(first.append(8, server.step));
  const AdmitOptions wait{.twins = Twins::wait};
  SUBCASE("without a word the twin computes") {
    const auto admitted = server.cache.admit(tokens, twin, server.step, wait);
    REQUIRE(admitted);
    CHECK(admitted->cached == 8);
  }
  SUBCASE("announced, it waits") {
    server.cache.announce(tokens, first);
    CHECK(server.cache.admit(tokens, twin, server.step, wait).refusal() == Refusal::twin);
    server.step.commit();
    server.cache.publish(tokens, first);
    const auto admitted = server.cache.admit(tokens, twin, server.step, wait);
    REQUIRE(admitted);
    CHECK(admitted->cached == 16);
  }
  SUBCASE("the first chunk can be announced as well") {
    Sequence other{server.blocks};
    REQUIRE(other.append(5, server.step));
    server.cache.announce(iota(5, 50), other, {.salt = 2});
    CHECK(server.cache.admit(iota(9, 50), twin, server.step, {.salt = 2, .twins = Twins::wait}).refusal() ==
          Refusal::twin);
    CHECK(server.cache.admit(iota(9, 50), twin, server.step, wait));
  }
  SUBCASE("there is nothing to announce") {
    Sequence forbidden{server.blocks}, unfinished{server.blocks};
    const auto before = server.cache.state_hash();
    server.cache.announce(iota(5), unfinished);
    CHECK(server.cache.state_hash() == before);
    REQUIRE(unfinished.append(3, server.step));
    REQUIRE(forbidden.append(8, server.step));
    forbidden.forbid_publishing();
    server.cache.announce(iota(8, 70), forbidden);
    server.cache.announce(iota(8, 70), unfinished);
    CHECK(server.cache.admit(iota(9, 70), twin, server.step, wait));
    CHECK_THROWS_AS(server.cache.announce(iota(2), unfinished), InvalidArgument);
  }
  server.step.commit();
}
