// Every allocation of the cache's operations fails once: they change nothing or can be repeated, and nothing is lost.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

#include "cache/tokens.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

namespace {

int allocations_left = -1;  // negative: no limit
std::size_t largest_allocation = 0;

}  // namespace

// Not inlined, or GCC takes malloc and operator delete for a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  largest_allocation = pagedkv::max(largest_allocation, size);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace pagedkv;

namespace {

/// Six blocks; three of them may be idle with the tokens 0 .. 11.
struct World {
  void fill_cache() {
    Sequence other{blocks};
    REQUIRE(cache.admit(iota(12), other, step));
    step.commit();
    cache.publish(iota(12), other);
  }

  void compute(int num_tokens) {
    REQUIRE(sequence.append(num_tokens, step));
    step.commit();
  }

  ~World() {
    sequence.truncate(0);
    sibling.truncate(0);
    step.commit();
  }

  BlockAllocator blocks{{.num_blocks = 6, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  Sequence sequence{blocks}, sibling{blocks};
};

/// Runs `operation`, which returns true, in a fresh world for each of its allocations, which fails; then once more in the
/// same world. Returns their number. `check` sees the world after the failure, with the state hash from before.
template <class SetUp, class Operation, class Check>
int fail_each_allocation(SetUp set_up, Operation operation, Check check) {
  for (int failing = 0;; ++failing) {
    World world;
    set_up(world);
    const std::uint64_t before = world.cache.state_hash();
    bool failed = false, succeeded = false;
    allocations_left = failing;
    try {
      succeeded = operation(world);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    CAPTURE(failing);
    CHECK(failed != succeeded);
    if (!failed) return failing;
    world.cache.check_invariants();
    check(world, before);
    CHECK(operation(world));
    world.cache.check_invariants();
  }
}

void nothing_changed(World& world, std::uint64_t before) {
  CHECK(world.cache.state_hash() == before);
  CHECK(world.step.empty());
}

void sequence_is_empty(World& world, std::uint64_t) {
  CHECK(world.sequence.size() == 0);
  CHECK(world.blocks.num_used() == 0);
  CHECK(world.step.empty());
}

}  // namespace

TEST_CASE("an append that runs out of memory changes nothing") {
  const int fresh =
      fail_each_allocation([](World&) {}, [](World& w) { return w.sequence.append(9, w.step); }, nothing_changed);
  CHECK(fresh > 3);
  fail_each_allocation([](World& w) { w.fill_cache(); }, [](World& w) { return w.sequence.append(24, w.step); },
                       nothing_changed);
  fail_each_allocation(
      [](World& w) {
        w.compute(6);
        w.sibling = w.sequence.fork();
      },
      [](World& w) { return w.sibling.append(3, w.step); }, nothing_changed);
}

TEST_CASE("an admission that runs out of memory leaves the sequence empty and can be repeated") {
  const Tokens prompt = iota(11);
  const auto admit = [&prompt](World& w) {
    return w.cache.admit(prompt, w.sequence, w.step, {.partial_blocks = true})->cached == 10;
  };
  CHECK(fail_each_allocation([](World& w) { w.fill_cache(); }, admit, sequence_is_empty) > 3);
}

TEST_CASE("a publication that runs out of memory goes on where it stopped") {
  const Tokens tokens = iota(20);
  const auto publish = [&tokens](World& w) {
    const std::array extras{PrefixExtra{2, 7, "an image whose name is longer than a short string"}};
    w.cache.publish(tokens, w.sequence, {.salt = 3, .extras = extras});
    return true;
  };
  const auto check = [](World& w, std::uint64_t) { CHECK(w.cache.stats().published_blocks < 5); };
  CHECK(fail_each_allocation([](World& w) { w.compute(20); }, publish, check) > 3);
}

TEST_CASE("giving blocks back and clearing the cache need no memory") {
  const auto publish = [](World& w) {
    w.compute(20);
    w.cache.publish(iota(20), w.sequence);
  };
  const auto never = [](World&, std::uint64_t) { FAIL("an allocation"); };
  const auto truncate = [](World& w) {
    w.sequence.truncate(0);
    return w.blocks.num_idle() == 5;
  };
  const auto clear = [](World& w) {
    w.cache.clear();
    return !w.blocks.is_published(w.sequence.blocks()[0]);
  };
  CHECK(fail_each_allocation(publish, truncate, never) == 0);
  CHECK(fail_each_allocation(publish, clear, never) == 0);
}

TEST_CASE("an append that is far too large says so before it makes room") {
  World world;
  largest_allocation = 0;
  CHECK_FALSE(world.sequence.append(std::numeric_limits<int>::max(), world.step));
  CHECK(largest_allocation < 1'000'000);
}
