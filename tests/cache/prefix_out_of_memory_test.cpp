// PrefixCache: every allocation of every operation fails once; nothing has changed then, and the operation can be
// repeated.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>

#include "cache/counted_new.hpp"
#include "cache/prefix_server.hpp"
#include "cache/tokens.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"

using namespace pagedkv;

namespace {

template <class Cache>
struct World : pagedkv_test::PrefixServer<Cache> {
  World() : pagedkv_test::PrefixServer<Cache>{64, 4, {.pin_budget = 6, .event_capacity = 8}} {}
  ~World() {
    sequence.truncate(0);
    other.truncate(0);
    this->step.commit();
  }
  Sequence sequence{this->blocks}, other{this->blocks};
};

/// Runs `operation`, which returns true, in a fresh world for each of its allocations, which fails, and then once more
/// in the same world. Returns their number.
template <class Cache, class SetUp, class Operation>
int fail_each_allocation(SetUp set_up, Operation operation) {
  for (int failing = 0;; ++failing) {
    World<Cache> world;
    set_up(world);
    world.cache.drain_events();
    const std::uint64_t before = world.cache.state_hash();
    const PrefixStats stats = world.cache.stats();
    bool failed = false, succeeded = false;
    pagedkv_test::AllocationFailures::num_left = failing;
    try {
      succeeded = operation(world);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    pagedkv_test::AllocationFailures::num_left = -1;
    CAPTURE(failing);
    REQUIRE(failed != succeeded);
    if (!failed) return failing;
    CHECK(world.cache.state_hash() == before);
    CHECK(world.cache.stats() == stats);
    CHECK(world.cache.drain_events().events.empty());
    world.cache.check_invariants();
    CHECK(operation(world));
    CHECK(world.cache.state_hash() != before);
  }
}

const std::array images{PrefixExtra{2, 7, "an image whose name is longer than a short string"},
                        PrefixExtra{9, 30, "another image whose name is longer than a short string"}};

template <class World>
void compute(World& w, Sequence& sequence, int num_tokens) {
  REQUIRE(sequence.append(num_tokens, w.step));
  w.step.commit();
}

}  // namespace

TEST_CASE_TEMPLATE("a publication that runs out of memory changes nothing", Cache, PrefixCache,
                   BasicPrefixCache<PriorityEviction>, BasicPrefixCache<S3FifoEviction>) {
  const auto set_up = [](auto& w) {
    w.serve(iota(9));
    compute(w, w.sequence, 160);
  };
  CHECK(fail_each_allocation<Cache>(set_up, [](auto& w) {
          w.cache.publish(iota(160), w.sequence, {.salt = 3, .extras = images}, {.priority = 2, .expires_at = 100});
          return true;
        }) > 5);
  CHECK(fail_each_allocation<Cache>(set_up, [](auto& w) {
          w.cache.publish(iota(160), w.sequence, {}, {.priority = 2, .expires_at = 100});  // two duplicates
          return true;
        }) > 3);
}

TEST_CASE("an admission that runs out of memory changes nothing") {
  const auto admit = [](auto& w) {
    const AdmitOptions options{.salt = 9, .model = "a model whose name is longer than a short string"};
    return static_cast<bool>(w.cache.admit(iota(70), w.sequence, w.step, options));
  };
  CHECK(fail_each_allocation<PrefixCache>([](auto& w) { w.serve(iota(50)); }, admit) > 3);
  const auto admit_hit = [](auto& w) {
    return w.cache.admit(iota(190), w.sequence, w.step, {.partial_blocks = true})->cached == 48;
  };
  CHECK(fail_each_allocation<PrefixCache>([](auto& w) { w.other = w.serve(iota(50)); }, admit_hit) > 3);
  const auto set_up_idle_hits = [](auto& w) {
    for (const int first : {0, 500}) w.serve(iota(50, first));  // so that they are not the hottest
  };
  CHECK(fail_each_allocation<PrefixCache>(set_up_idle_hits, admit_hit) > 3);
}

TEST_CASE("an announcement that runs out of memory changes nothing") {
  const auto append = [](auto& w) { REQUIRE(w.sequence.append(8, w.step)); };
  CHECK(fail_each_allocation<PrefixCache>(append, [](auto& w) {
          w.cache.announce(iota(8), w.sequence, {.extras = images});
          return true;
        }) > 2);
}

TEST_CASE("a pin that runs out of memory drops no other") {
  const auto set_up = [](auto& w) {
    for (const int first : {0, 200, 100}) w.serve(iota(17, first));
    REQUIRE(w.cache.pin(iota(16, 100)));
  };
  CHECK(fail_each_allocation<PrefixCache>(set_up, [](auto& w) { return w.cache.pin(iota(16)).has_value(); }) > 3);
}

TEST_CASE("events that cannot be drained for lack of memory stay") {
  World<PrefixCache> w;
  w.serve(iota(13));
  for (int failing = 0; failing < 3; ++failing) {
    pagedkv_test::AllocationFailures::num_left = failing;
    CHECK_THROWS_AS(static_cast<void>(w.cache.drain_events()), std::bad_alloc);
  }
  pagedkv_test::AllocationFailures::num_left = -1;
  CHECK(w.cache.drain_events().events.size() == 3);
}

TEST_CASE("giving back, evicting, resetting and clearing need no memory") {
  World<PrefixCache> w;
  REQUIRE(w.cache.admit(iota(161), w.sequence, w.step));
  w.step.commit();
  w.cache.publish(iota(161), w.sequence);
  w.cache.drain_events();
  std::array<BlockId, 40> out;
  const auto pin = w.cache.pin(iota(20));
  pagedkv_test::AllocationFailures::num_left = 0;
  w.sequence.truncate(0);
  const bool unpinned = w.cache.unpin(*pin);
  const bool allocated = w.blocks.allocate(out);
  w.blocks.release(out);
  w.cache.reset();
  w.cache.clear();
  pagedkv_test::AllocationFailures::num_left = -1;
  CHECK(unpinned);
  CHECK(allocated);
  CHECK(w.cache.stats().evicted_blocks == 16);
  CHECK(w.blocks.num_free() == 64);
}
