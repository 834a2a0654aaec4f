// PrefixCache: pinned prefixes stay until they are unpinned, within a budget; the oldest ones give way.
#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

namespace {

/// Serves `num_blocks` blocks of tokens from `first` on and pins them.
std::optional<PinId> serve_and_pin(Server& server, int num_blocks, int first) {
  server.serve(iota(4 * num_blocks + 1, first));
  return server.cache.pin(iota(4 * num_blocks, first));
}

}  // namespace

TEST_CASE("a pinned prefix survives a flood, and none other does") {
  Server server{8, 4};
  const auto pin = serve_and_pin(server, 2, 100);
  server.serve(iota(9, 200));
  REQUIRE(pin);
  CHECK(server.cache.num_pinned_blocks(*pin) == 2);
  for (int i = 0; i < 20; ++i) server.serve(iota(20, 1000 * (i + 1)));
  CHECK(server.cached(iota(9, 100)) == 8);
  CHECK(server.cached(iota(9, 200)) == 0);
  CHECK(server.cache.unpin(*pin));
  CHECK_FALSE(server.cache.unpin(*pin));
  CHECK(server.cache.num_pinned_blocks(*pin) == 0);
  for (int i = 0; i < 20; ++i) server.serve(iota(20, 1000 * (i + 1)));
  CHECK(server.cached(iota(9, 100)) == 0);
}

TEST_CASE("what is not cached cannot be pinned, and a prefix is pinned as far as it is cached") {
  Server server{16, 4};
  server.serve(iota(9));
  CHECK_FALSE(server.cache.pin(iota(9, 1)));
  CHECK_FALSE(server.cache.pin(iota(3)));
  CHECK_FALSE(server.cache.pin(iota(9), {.salt = 1}));
  const auto pin = server.cache.pin(iota(100));
  REQUIRE(pin);
  CHECK(server.cache.num_pinned_blocks(*pin) == 2);
}

TEST_CASE("a block in several pins counts once and goes with the last of them") {
  Server server{16, 4};
  server.serve(iota(13));
  const auto lower = server.cache.pin(iota(8));
  const auto upper = server.cache.pin(iota(12));
  const auto again = server.cache.pin(iota(12));
  REQUIRE((lower && upper && again));
  CHECK(server.cache.num_pinned_blocks() == 3);
  CHECK(server.cache.unpin(*again));
  CHECK(server.cache.unpin(*upper));
  CHECK(server.cache.num_pinned_blocks() == 2);
  CHECK(server.blocks.num_idle() == 1);
  server.cache.check_invariants();
}

TEST_CASE("over the budget the oldest pins are dropped, and a pin that alone exceeds it is refused") {
  pagedkv_test::PrefixServer<> server{64, 4, {.pin_budget = 5}};
  const auto first = serve_and_pin(server, 2, 100);
  const auto second = serve_and_pin(server, 2, 200);
  CHECK(server.cache.num_pinned_blocks() == 4);
  const auto third = serve_and_pin(server, 3, 300);
  REQUIRE((first && second && third));
  CHECK(server.cache.num_pinned_blocks(*first) == 0);
  CHECK(server.cache.num_pinned_blocks(*second) == 2);
  CHECK(server.cache.num_pinned_blocks(*third) == 3);
  CHECK(server.cache.stats().dropped_pins == 1);
  CHECK_FALSE(server.cache.unpin(*first));

  server.serve(iota(25, 400));
  const auto before = server.cache.state_hash();
  CHECK_FALSE(server.cache.pin(iota(24, 400)));
  CHECK(server.cache.state_hash() == before);
}

TEST_CASE("when pins hold the whole pool a request is told so, and nothing has changed") {
  Server server{6, 4};
  const auto first = serve_and_pin(server, 2, 100);
  const auto second = serve_and_pin(server, 2, 200);
  REQUIRE((first && second));
  Sequence s{server.blocks};
  const auto before = server.cache.state_hash();
  CHECK(server.cache.admit(iota(12, 300), s, server.step).refusal() == Refusal::pinned);
  CHECK(server.cache.state_hash() == before);
  CHECK_FALSE(s.append(12, server.step));
  CHECK(server.cache.unpin(*first));
  CHECK(server.cache.admit(iota(12, 300), s, server.step));
  server.step.commit();
}

TEST_CASE("a request that pins do not stand in the way of is told to come later") {
  Server server{6, 4};
  serve_and_pin(server, 1, 100);
  Sequence running = server.serve(iota(16, 200));
  Sequence s{server.blocks};
  CHECK(server.cache.admit(iota(8, 300), s, server.step).refusal() == Refusal::pinned);
  CHECK(server.cache.admit(iota(12, 300), s, server.step).refusal() == Refusal::later);
  // The pinned block is the request's own hit: dropping the pin would not make room.
  CHECK(server.cache.admit(iota(12, 100), s, server.step).refusal() == Refusal::later);
  running.truncate(0);
  // A pinned block that a sequence uses as well would not be free either.
  running = server.serve(iota(20, 100));
  CHECK(server.cache.admit(iota(8, 300), s, server.step).refusal() == Refusal::later);
}

TEST_CASE("reset and clear drop the pins") {
  for (const bool reset : {true, false}) {
    Server server{16, 4};
    const auto pin = serve_and_pin(server, 2, 100);
    REQUIRE(pin);
    reset ? server.cache.reset() : server.cache.clear();
    CHECK(server.cache.num_pinned_blocks() == 0);
    CHECK_FALSE(server.cache.unpin(*pin));
    CHECK(server.blocks.num_available() == 16);
  }
}

TEST_CASE("a negative budget is refused") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  CHECK_THROWS_AS((PrefixCache{blocks, {.pin_budget = -1}}), InvalidArgument);
  PrefixCache cache{blocks};  // nothing of the refused one is left
}
