// PrefixCache: what is hit, what is refused, what is published, and in which order blocks are given up.
#include "pagedkv/cache/prefix_cache.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "cache/death.hpp"
#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"

using namespace pagedkv;
using Server = pagedkv_test::PrefixServer<>;

TEST_CASE("a second request starts from the blocks that the first one published") {
  Server server{16, 4};
  const Sequence first = server.serve(iota(3 * 4 + 2));
  CHECK((*server.admission)->cached == 0);
  Sequence second{server.blocks};
  const auto admitted = server.cache.admit(iota(3 * 4 + 2), second, server.step);
  REQUIRE(admitted);
  CHECK(admitted->cached == 12);
  CHECK(admitted->to_compute == 2);
  CHECK(admitted->appended == 2);
  CHECK(server.step.num_rows() == 2);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(second.blocks()[i] == first.blocks()[i]);
    CHECK(server.blocks.ref_count(first.blocks()[i]) == 2);
  }
  CHECK(server.blocks.num_used() == 5);
  CHECK(server.cache.stats().hit_tokens == 12);
  CHECK(server.cache.stats().missed_tokens == 16);
  server.step.commit();
}

TEST_CASE("the last token is always computed") {
  Server server{16, 4};
  server.serve(iota(12));
  CHECK(server.cached(iota(12)) == 8);
  CHECK(server.cached(iota(12), {.partial_blocks = true}) == 11);
  CHECK(server.cached(iota(13)) == 12);
  CHECK(server.cached(iota(1)) == 0);
}

TEST_CASE("with partial blocks the matching rows of one more block are copied") {
  Server server{16, 4};
  const Sequence first = server.serve(iota(12));
  Tokens other = iota(12);
  other[6] = 99;
  Sequence second{server.blocks};
  const auto admitted = server.cache.admit(other, second, server.step, {.partial_blocks = true});
  REQUIRE(admitted);
  CHECK(admitted->cached == 6);
  REQUIRE(server.step.copies().size() == 1);
  CHECK(server.step.copies()[0].source == first.blocks()[1]);
  CHECK(server.step.copies()[0].destination == second.blocks()[1]);
  CHECK(server.step.copies()[0].num_rows == 2);
  server.step.commit();
}

TEST_CASE("a partial hit whose source cannot be spared becomes a hit of whole blocks") {
  Server server{3, 4};
  server.serve(iota(12));
  Tokens other = iota(12);
  other[10] = 99;
  Sequence s{server.blocks};
  const auto admitted = server.cache.admit(other, s, server.step, {.partial_blocks = true});
  REQUIRE(admitted);
  CHECK(admitted->cached == 8);
  server.step.commit();
}

TEST_CASE("no allocation evicts a block that the same call matched, and a refusal changes nothing") {
  Server server{4, 4};
  server.serve(iota(12));  // three idle blocks, one free
  const auto before = server.cache.state_hash();
  Sequence s{server.blocks};
  const auto refused = server.cache.admit(iota(16), s, server.step, {.watermark = 1});
  CHECK_FALSE(refused);
  CHECK(refused.refusal() == Refusal::later);
  CHECK(server.cache.state_hash() == before);
  CHECK(s.size() == 0);
  CHECK(server.step.empty());
  CHECK(server.cache.stats().rejected == 1);
  const auto admitted = server.cache.admit(iota(16), s, server.step);
  REQUIRE(admitted);
  CHECK(admitted->cached == 12);
  CHECK(server.blocks.num_available() == 0);
  server.step.commit();
}

TEST_CASE("a prompt larger than the pool never fits, one that is too large for now fits later") {
  Server server{4, 4};
  Sequence running = server.serve(iota(5, 100));
  Sequence s{server.blocks};
  CHECK(server.cache.admit(iota(17), s, server.step).refusal() == Refusal::never);
  CHECK(server.cache.admit(iota(17), s, server.step, {.max_append = 4}).refusal() == Refusal::never);
  CHECK(server.cache.admit(iota(16), s, server.step).refusal() == Refusal::later);
  running.truncate(0);
  CHECK(server.cache.admit(iota(16), s, server.step));
  server.step.commit();
}

TEST_CASE("a refusal has no result and an admission no reason") {
  const Admission refused = Refusal::later;
  const Admission admitted = Admitted{.cached = 1, .to_compute = 2, .appended = 2};
  CHECK_FALSE(refused);
  CHECK_THROWS_AS(static_cast<void>(refused->cached), InvalidArgument);
  CHECK(admitted->to_compute == 2);
  CHECK_THROWS_AS(static_cast<void>(admitted.refusal()), InvalidArgument);
}

TEST_CASE("a long prompt can be appended chunk by chunk") {
  Server server{8, 4};
  server.serve(iota(8));
  const Tokens tokens = iota(20);
  Sequence s{server.blocks};
  const auto admitted = server.cache.admit(tokens, s, server.step, {.max_append = 5});
  REQUIRE(admitted);
  CHECK(admitted->cached == 8);
  CHECK(admitted->to_compute == 12);
  CHECK(admitted->appended == 5);
  CHECK(s.size() == 13);
  CHECK(server.blocks.num_used() == 4);
  server.step.commit();
  server.cache.publish(tokens, s);
  CHECK(server.cache.stats().published_blocks == 3);
  REQUIRE(s.append(7, server.step));
  server.step.commit();
  server.cache.publish(tokens, s);
  CHECK(server.cache.stats().published_blocks == 5);
}

TEST_CASE("a block is findable only after the commit of the step that writes it") {
  Server server{16, 4};
  Sequence first{server.blocks}, twin{server.blocks};
  REQUIRE(server.cache.admit(iota(9), first, server.step));
  server.cache.publish(iota(9), first);
  const auto admitted = server.cache.admit(iota(9), twin, server.step);
  REQUIRE(admitted);
  CHECK(admitted->cached == 0);
  server.step.commit();
  server.cache.publish(iota(9), first);
  CHECK(server.cached(iota(9)) == 8);
}

TEST_CASE("blocks that were computed twice are registered together, and the copy outlives the canonical one") {
  Server server{6, 4};
  Sequence first{server.blocks}, twin{server.blocks};
  REQUIRE(server.cache.admit(iota(5), first, server.step));
  REQUIRE(server.cache.admit(iota(5), twin, server.step));
  server.step.commit();
  server.cache.publish(iota(5), first);
  server.cache.publish(iota(5), twin);
  server.cache.publish(iota(5), twin);  // nothing new
  CHECK(server.cache.stats().published_blocks == 2);
  CHECK(server.cache.stats().duplicate_blocks == 1);
  const BlockId canonical = first.blocks()[0], copy = twin.blocks()[0];
  first.truncate(0);
  twin.truncate(0);
  Sequence filler{server.blocks};
  REQUIRE(filler.append(5 * 4, server.step));
  CHECK_FALSE(server.blocks.is_published(canonical));
  CHECK(server.blocks.is_published(copy));
  filler.truncate(0);
  CHECK(server.cached(iota(5)) == 4);
  server.step.commit();
}

TEST_CASE("a hit shares the copy that has an owner, so that the other one stays available") {
  Server server{3, 4};
  Sequence first{server.blocks}, twin{server.blocks};
  REQUIRE(server.cache.admit(iota(4), first, server.step));
  REQUIRE(server.cache.admit(iota(4), twin, server.step));
  server.step.commit();
  server.cache.publish(iota(4), first);
  server.cache.publish(iota(4), twin);
  first.truncate(0);
  Sequence third{server.blocks};
  REQUIRE(server.cache.admit(iota(9), third, server.step));  // two blocks more: only with the idle copy's
  CHECK(third.blocks()[0] == twin.blocks()[0]);
  server.step.commit();
}

TEST_CASE("unpublished blocks are reused first, then idle ones, continuations before their prefix") {
  Server server{6, 4};
  std::vector<BlockId> ids;
  {
    const Sequence s = server.serve(iota(14));
    ids.assign(s.blocks().begin(), s.blocks().end());
  }
  CHECK(server.blocks.num_idle() == 3);
  std::vector<BlockId> order(6);
  for (BlockId& block : order) REQUIRE(server.blocks.allocate({&block, 1}));
  CHECK(order == std::vector{ids[3], BlockId{4}, BlockId{5}, ids[2], ids[1], ids[0]});
  CHECK(server.cache.stats().evicted_blocks == 3);
  server.blocks.release(order);
}

TEST_CASE("the prefix that was used least recently is given up first") {
  Server server{6, 4};
  server.serve(iota(8, 100));
  server.serve(iota(8, 200));
  server.serve(iota(8, 100));  // used again
  server.serve(iota(12, 300));
  CHECK(server.cached(iota(9, 100)) == 8);
  CHECK(server.cached(iota(9, 200)) == 0);
}

TEST_CASE("scopes and positions are separate, also for the same tokens") {
  Server server{64, 4};
  server.serve(iota(9), {.salt = 'x'});
  CHECK(server.cached(iota(9)) == 0);
  CHECK(server.cached(iota(9), {.model = "x"}) == 0);
  CHECK(server.cached(iota(9), {.adapter = "x"}) == 0);
  CHECK(server.cached(iota(9), {.salt = 'x'}) == 8);
  CHECK(server.cached(iota(9), {.adapter = "x"}) == 8);
  Tokens shifted = iota(4, 50);
  for (const int token : iota(9)) shifted.push_back(token);
  CHECK(server.cached(shifted) == 0);  // the same blocks, one position further
}

TEST_CASE("placeholders of another image do not hit, and a hit never ends inside an image") {
  const Tokens tokens(17, 7);
  for (const int begin : {0, 2, 3, 4}) {
    Server server{64, 4};
    const std::array cat{PrefixExtra{begin, begin + 6, "cat"}};
    const std::array dog{PrefixExtra{begin, begin + 6, "dog"}};
    server.serve(tokens, {.extras = cat});
    CHECK(server.cached(tokens, {.extras = cat}) == 16);
    CHECK(server.cached(tokens, {.extras = dog}) == begin / 4 * 4);
    CHECK(server.cached(tokens) <= begin / 4 * 4);
    // The prompt ends inside the image: what is hit ends before it.
    const Tokens cut(static_cast<std::size_t>(begin) + 6, 7);
    CHECK(server.cached(cut, {.extras = cat}) == begin / 4 * 4);
    CHECK(server.cached(cut, {.extras = cat, .partial_blocks = true}) == begin);
  }
}

TEST_CASE("a request that skips the lookup computes everything and still publishes") {
  Server server{16, 4};
  server.serve(iota(9));
  CHECK(server.cached(iota(9), {.no_read = true}) == 0);
  CHECK(server.cache.stats().missed_tokens == 9);
  CHECK(server.cache.stats().duplicate_blocks == 2);
}

TEST_CASE("clear forgets everything, and what is owned stays with its owners") {
  Server server{16, 4};
  Sequence s = server.serve(iota(9));
  server.serve(iota(9, 100));
  server.cache.clear();
  CHECK(server.blocks.num_idle() == 0);
  CHECK(server.blocks.num_used() == 3);
  CHECK(server.cached(iota(9)) == 0);
  server.cache.publish(iota(9), s);
  CHECK(server.cached(iota(9)) == 8);
}

TEST_CASE("a prefix that a window dropped can be evicted, and then its continuation leaves the cache") {
  Server server{5, 4};
  Sequence s = server.serve(iota(13));
  s.release_before(8);
  CHECK(server.blocks.num_idle() == 2);
  Sequence filler{server.blocks};
  REQUIRE(filler.append(12, server.step));
  CHECK(server.blocks.num_idle() == 0);
  CHECK_FALSE(server.blocks.is_published(s.blocks()[2]));
  CHECK(server.blocks.ref_count(s.blocks()[2]) == 1);
  server.cache.check_invariants();
  server.step.commit();
}

TEST_CASE("publishing costs only the newly full blocks") {
  struct CountingHash {
    int* calls;
    std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
      ++*calls;
      return BlockHash{}(parent, tokens, extra);
    }
  };
  int calls = 0;
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 4}};
  BasicPrefixCache<LruEviction, CountingHash> cache{blocks, {}, {.calls = &calls}};
  StepPlan step;
  Sequence s{blocks};
  REQUIRE(s.append(4 * 32, step));
  step.commit();
  const Tokens tokens = iota(4 * 34);
  cache.publish(tokens, s);
  calls = 0;
  REQUIRE(s.append(3, step));
  step.commit();
  cache.publish(tokens, s);
  CHECK(calls == 0);
  REQUIRE(s.append(1, step));
  step.commit();
  cache.publish(tokens, s);
  CHECK(calls == 1);
}

TEST_CASE("publishing goes on with the tokens it began with") {
  Server server{8, 4};
  Sequence s = server.serve(iota(5));
  REQUIRE(s.append(3, server.step));
  server.step.commit();
  const auto before = server.cache.state_hash();
  CHECK_THROWS_AS(server.cache.publish(iota(8, 1), s), InvalidArgument);
  CHECK(server.cache.state_hash() == before);
  server.cache.publish(iota(8), s);
  CHECK(server.cache.stats().published_blocks == 2);
}

TEST_CASE("wrong calls are refused before any change") {
  Server server{8, 4};
  BlockAllocator others{{.num_blocks = 8, .block_size = 4}};
  StepPlan foreign_step;
  Sequence foreign{others}, empty{server.blocks}, used = server.serve(iota(5));
  REQUIRE(foreign.append(1, foreign_step));
  const auto before = server.cache.state_hash();
  const auto admit = [&](const Tokens& tokens, Sequence& s, StepPlan& step, const AdmitOptions& options = {}) {
    static_cast<void>(server.cache.admit(tokens, s, step, options));
  };
  const Tokens one{7};
  const std::span longest(one.data(), (std::size_t{1} << 32) + 1);  // its length alone is looked at
  CHECK_THROWS_AS(static_cast<void>(server.cache.admit(longest, empty, server.step)), InvalidArgument);
  CHECK_THROWS_AS(admit(iota(5), foreign, server.step), InvalidArgument);
  CHECK_THROWS_AS(admit(iota(5), used, server.step), InvalidArgument);
  CHECK_THROWS_AS(admit({}, empty, server.step), InvalidArgument);
  CHECK_THROWS_AS(admit(iota(5), empty, foreign_step), InvalidArgument);
  CHECK_THROWS_AS(admit(iota(5), empty, server.step, {.max_append = 0}), InvalidArgument);
  CHECK_THROWS_AS(admit(iota(5), empty, server.step, {.watermark = -1}), InvalidArgument);
  CHECK_THROWS_AS(server.cache.publish(iota(5), foreign), InvalidArgument);
  CHECK_THROWS_AS(server.cache.publish(iota(3), used), InvalidArgument);
  CHECK_THROWS_AS(PrefixCache{server.blocks}, InvalidArgument);
  CHECK(server.cache.state_hash() == before);
  foreign_step.commit();
}

TEST_CASE("a cache that dies before its sequences says so") {
  CHECK(pagedkv_test::dies([] {
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    StepPlan step;
    Sequence s{blocks};
    PrefixCache cache{blocks};
    static_cast<void>(cache.admit(iota(5), s, step));
    step.commit();
  }));
}
