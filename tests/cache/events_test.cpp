// Events: folding them rebuilds what is cached; losses are signalled and a snapshot repairs them.
#include "pagedkv/cache/events.hpp"

#include <doctest/doctest.h>

#include <array>
#include <map>
#include <set>
#include <vector>

#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

namespace {

/// What a router knows: the keys that are cached, with the scope of each.
struct Router {
  std::map<ContentKey, ContentKey> cached;

  void fold(const std::vector<CacheEvent>& events) {
    for (const CacheEvent& event : events) {
      switch (event.kind) {
        case CacheEventKind::stored:
          CHECK(cached.emplace(event.key, event.scope).second);
          CHECK((event.parent == event.scope || cached.count(event.parent) == 1));
          CHECK(event.key == content_key(event.parent, event.tokens));
          break;
        case CacheEventKind::removed:
          CHECK(cached.erase(event.key) == 1);
          break;
        case CacheEventKind::cleared:
          cached.clear();
          break;
      }
    }
  }

  /// Blocks of a prompt that are cached, as far as the router knows.
  int depth(const Tokens& tokens, const PrefixScope& scope, int block_size) const {
    int depth = 0;
    for (const ContentKey& key : content_keys(tokens, scope, block_size)) {
      if (cached.count(key) == 0) break;
      ++depth;
    }
    return depth;
  }
};

}  // namespace

TEST_CASE("stored tells keys, parents, tokens, block size and scope") {
  Server server{16, 4, {.event_capacity = 100}};
  server.serve(iota(9), {.salt = 7});
  const auto [events, num_lost] = server.cache.drain_events();
  const ContentKey scope = content_key(PrefixScope{.salt = 7});
  const auto keys = content_keys(iota(9), {.salt = 7}, 4);
  REQUIRE(events.size() == 2);
  CHECK(num_lost == 0);
  CHECK(keys.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(events[i].kind == CacheEventKind::stored);
    CHECK(events[i].key == keys[i]);
    CHECK(events[i].parent == (i == 0 ? scope : keys[0]));
    CHECK(events[i].scope == scope);
    CHECK(events[i].block_size == 4);
    CHECK(events[i].tokens == iota(4, 4 * static_cast<int>(i)));
  }
  CHECK(server.cache.drain_events().events.empty());
}

TEST_CASE("a content key does not depend on the cache's own hash, and is the same everywhere") {
  const auto keys = content_keys(iota(8), {.salt = 3, .model = "m"}, 4);
  CHECK(keys[1].high == 0xdcc002a224fe3be5u);
  CHECK(keys[1].low == 0x190a25de216751e9u);
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  PrefixCache cache{blocks, {.event_capacity = 10}, BlockHash{12345}};
  StepPlan step;
  Sequence s{blocks};
  REQUIRE(cache.admit(iota(9), s, step, {.salt = 3, .model = "m"}));
  step.commit();
  cache.publish(iota(9), s, {.salt = 3, .model = "m"});
  CHECK(cache.drain_events().events[1].key == keys[1]);
}

TEST_CASE("content keys tell scopes, extras, orders and parents apart") {
  const std::array cat{PrefixExtra{0, 2, "cat"}};
  std::set<ContentKey> keys;
  for (const PrefixScope& scope : {PrefixScope{}, PrefixScope{.salt = 'x'}, PrefixScope{.model = "x"},
                                   PrefixScope{.adapter = "x"}, PrefixScope{.extras = cat}})
    for (const ContentKey& key : content_keys(iota(8), scope, 4)) keys.insert(key);
  for (const ContentKey& key : content_keys(Tokens{1, 0, 2, 3, 4, 5, 6, 7}, {}, 4)) keys.insert(key);
  CHECK(keys.size() == 12);
}

TEST_CASE("the key of a stored block knows its image") {
  const std::array cat{PrefixExtra{1, 6, "cat"}};
  Server server{16, 4, {.event_capacity = 10}};
  server.serve(iota(13), {.extras = cat});
  const auto events = server.cache.drain_events().events;
  const auto keys = content_keys(iota(13), {.extras = cat}, 4);
  REQUIRE(events.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(events[i].key == keys[i]);
  CHECK(keys[0] != content_keys(iota(13), {}, 4)[0]);
}

TEST_CASE("nothing is recorded unless it is asked for") {
  Server server{16, 4};
  server.serve(iota(9));
  CHECK(server.cache.drain_events().events.empty());
  CHECK(server.cache.drain_events().num_lost == 0);
  CHECK(server.cache.snapshot_events().empty());
  CHECK_THROWS_AS((PrefixCache{server.blocks, {.event_capacity = -1}}), InvalidArgument);
}

TEST_CASE("a duplicate is no event; a key is removed with its last copy") {
  Server server{8, 4, {.event_capacity = 100}};
  Sequence first{server.blocks}, twin{server.blocks}, filler{server.blocks};
  REQUIRE(server.cache.admit(iota(5), first, server.step));
  REQUIRE(server.cache.admit(iota(5), twin, server.step));
  server.step.commit();
  server.cache.publish(iota(5), first);
  server.cache.publish(iota(5), twin);
  CHECK(server.cache.drain_events().events.size() == 1);
  first.truncate(0);
  twin.truncate(0);
  REQUIRE(filler.append(7 * 4, server.step));
  CHECK(server.cache.drain_events().events.empty());
  REQUIRE(filler.append(4, server.step));
  const auto events = server.cache.drain_events().events;
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == CacheEventKind::removed);
  CHECK(events[0].key == content_keys(iota(4), {}, 4)[0]);
  server.step.commit();
}

TEST_CASE("clear and reset are one event each, and what goes later is not removed a second time") {
  for (const bool reset : {true, false}) {
    Server server{4, 4, {.event_capacity = 100}};
    server.serve(iota(9));
    server.cache.drain_events();
    reset ? server.cache.reset() : server.cache.clear();
    server.serve(iota(16, 100));  // takes all blocks
    const auto events = server.cache.drain_events().events;
    REQUIRE(events.size() == 5);
    CHECK(events[0].kind == CacheEventKind::cleared);
    CHECK(events[1].kind == CacheEventKind::stored);
  }
}

TEST_CASE("a ring that overflows drops the oldest and says how many") {
  Server server{16, 4, {.event_capacity = 3}};
  server.serve(iota(21));
  const auto [events, num_lost] = server.cache.drain_events();
  CHECK(num_lost == 2);
  REQUIRE(events.size() == 3);
  CHECK(events[0].tokens == iota(4, 8));
  CHECK(server.cache.drain_events().num_lost == 0);
  const auto snapshot = server.cache.snapshot_events();
  CHECK(snapshot.size() == 5);
  Router router;
  router.fold(snapshot);
  CHECK(router.depth(iota(21), {}, 4) == 5);
}

TEST_CASE("a snapshot replaces the events before it and lists parents first") {
  Server server{32, 4, {.event_capacity = 100}};
  server.serve(iota(13));
  Tokens branch = iota(17);
  branch[5] = -1;
  server.serve(branch);
  server.serve(iota(9), {.salt = 1});
  server.cache.reset();
  server.serve(iota(13), {.salt = 2});
  server.serve(branch, {.salt = 2});
  Router router;
  router.fold(server.cache.snapshot_events());
  CHECK(router.cached.size() == 6);
  CHECK(server.cache.drain_events().events.empty());
  CHECK(router.depth(branch, {.salt = 2}, 4) == 4);
  CHECK(router.depth(iota(13), {}, 4) == 0);
}

TEST_CASE("over a random run the folded events are what is cached, at every drain, scopes included") {
  for (const int capacity : {1000, 20}) {
    pagedkv_test::Random random{static_cast<std::uint64_t>(capacity)};
    Server server{24, 2, {.event_capacity = capacity}};
    Router router;
    int num_repairs = 0;
    std::vector<Sequence> running;
    std::vector<std::pair<Tokens, PrefixScope>> seen;
    for (int step = 0; step < 4000; ++step) {
      const PrefixScope scope{.salt = static_cast<std::uint64_t>(random.between(0, 2))};
      Tokens tokens;
      for (int i = random.between(1, 14); i > 0; --i) tokens.push_back(random.between(0, 1));
      if (running.size() > 2) running.erase(running.begin() + random.between(0, 2));
      Sequence s{server.blocks};
      if (server.cache.admit(tokens, s, server.step, {.salt = scope.salt})) {
        server.step.commit();
        random.one_in(3) ? server.cache.publish_and_remap(tokens, s, scope) : server.cache.publish(tokens, s, scope);
        running.push_back(std::move(s));
        seen.emplace_back(tokens, scope);
      }
      if (random.one_in(300)) server.cache.reset();
      if (random.one_in(300)) server.cache.clear();
      if (!random.one_in(4)) continue;
      const CacheEvents drained = server.cache.drain_events();
      if (drained.num_lost > 0) {
        router.cached.clear();
        router.fold(server.cache.snapshot_events());
        ++num_repairs;
      } else {
        router.fold(drained.events);
      }
      // Exactly: as deep as the cache finds each prompt, and nothing beyond the union of those.
      std::set<ContentKey> reachable;
      for (const auto& [prompt, where] : seen) {
        Tokens longer = prompt;
        longer.push_back(-1);  // the last token is never hit
        const int depth = server.cache.num_cached_tokens(longer, where) / 2;
        REQUIRE(router.depth(prompt, where, 2) == depth);
        const auto keys = content_keys(prompt, where, 2);
        reachable.insert(keys.begin(), keys.begin() + depth);
      }
      REQUIRE(router.cached.size() == reachable.size());
      if (seen.size() > 200) seen.erase(seen.begin(), seen.begin() + 50);
    }
    CHECK((num_repairs > 0) == (capacity == 20));
  }
}
