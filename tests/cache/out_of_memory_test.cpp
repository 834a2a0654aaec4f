// Every allocation of every operation on sequences fails once: nothing has changed then, and the operation can be
// repeated. For those of the prefix cache see prefix_out_of_memory_test.cpp.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "cache/counted_new.hpp"
#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

struct World {
  World() { others.reserve(1000); }
  ~World() {
    for (Sequence* const s : {&sequence, &sibling}) s->truncate(0);
    step.commit();
  }

  void compute(int num_tokens) {
    REQUIRE(sequence.append(num_tokens, step));
    step.commit();
  }

  /// The next change of a shared table needs a new slab of chunks: of the last one a single chunk is left.
  void use_up_chunks() {
    constexpr std::size_t slab_bytes = 64 * 1024;  // 256 chunks
    others.push_back(committed(blocks, 8));
    const auto use_one = [&] {
      others.push_back(others.front().fork());
      others.back().truncate(4);  // a chunk of its own
    };
    largest_allocation = 0;
    while (largest_allocation < slab_bytes) use_one();
    for (int i = 0; i < 255; ++i) use_one();
  }

  /// What can be seen of the sequences and their step.
  std::vector<std::int64_t> shape() const {
    std::vector<std::int64_t> all;
    for (const Sequence* s : {&sequence, &sibling}) {
      for (const int number : {s->size(), s->num_committed(), s->num_drafts()}) all.push_back(number);
      for (const BlockId id : s->blocks()) all.push_back(to_index(id));
    }
    for (const Slot slot : step.slots()) all.push_back(slot);
    for (const BlockCopy& copy : step.copies()) all.push_back(to_index(copy.destination));
    return all;
  }

  BlockAllocator blocks{{.num_blocks = 100, .block_size = 4}};
  StepPlan step;
  std::vector<Sequence> others;
  Sequence sequence{blocks}, sibling{blocks};
};

/// Runs `operation`, which returns true, in a fresh world for each of its allocations, which fails; then once more in
/// the same world. Returns their number.
template <class SetUp, class Operation>
int fail_each_allocation(SetUp set_up, Operation operation) {
  for (int failing = 0;; ++failing) {
    World world;
    set_up(world);
    const std::uint64_t before = world.blocks.state_hash();
    const auto shape = world.shape();
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
    CHECK(world.blocks.state_hash() == before);
    CHECK(world.shape() == shape);
    world.blocks.check_invariants();
    CHECK(operation(world));
    world.blocks.check_invariants();
  }
}

/// Eleven tokens, the first eight and three in a tail that the sibling shares, and no chunk to copy.
void share(World& w) {
  w.compute(11);
  w.sibling = w.sequence.fork();
  w.use_up_chunks();
}

}  // namespace

TEST_CASE("an append that runs out of memory changes nothing") {
  CHECK(fail_each_allocation([](World&) {}, [](World& w) { return w.sequence.append(9, w.step); }) > 3);
  CHECK(fail_each_allocation([](World& w) { w.use_up_chunks(); },
                             [](World& w) { return w.sequence.append(90, w.step); }) > 3);
}

TEST_CASE(
    "an append that copies a shared tail, or what it shares of the table, and runs out of memory changes nothing") {
  CHECK(fail_each_allocation(share, [](World& w) { return w.sibling.append(3, w.step); }) > 1);
  const auto share_full_blocks = [](World& w) {
    w.compute(12);
    w.sibling = w.sequence.fork();
    w.use_up_chunks();
  };
  CHECK(fail_each_allocation(share_full_blocks, [](World& w) { return w.sibling.append(1, w.step); }) > 1);
}

TEST_CASE("an append in a step where others have rows in between, that runs out of memory, changes nothing") {
  const auto alternate = [](World& w) {
    for (int i = 0; i < 2; ++i) {
      REQUIRE(w.sequence.append(1, w.step));
      REQUIRE(w.sibling.append(1, w.step));
    }
  };
  CHECK(fail_each_allocation(alternate, [](World& w) { return w.sequence.append(9, w.step); }) >= 1);
}

TEST_CASE("a guess that runs out of memory changes nothing") {
  CHECK(fail_each_allocation(share, [](World& w) { return w.sibling.reserve(30, w.step); }) > 3);
}

TEST_CASE("an acceptance that runs out of memory changes nothing") {
  const auto guess = [](World& w) {
    w.compute(5);
    REQUIRE(w.sequence.reserve(270, w.step));  // more than a chunk of blocks
    w.step.commit();
    w.use_up_chunks();
  };
  CHECK(fail_each_allocation(guess, [](World& w) {
          w.sequence.accept(w.sequence.num_drafts() > 0 ? 2 : 0);
          return w.sequence.size() == 7;
        }) > 0);
}

TEST_CASE("a fork that leaves uncommitted tokens behind and runs out of memory changes nothing") {
  const auto append = [](World& w) {
    w.compute(5);
    REQUIRE(w.sequence.append(30, w.step));
    w.use_up_chunks();
  };
  CHECK(fail_each_allocation(append, [](World& w) { return w.sequence.fork().size() == 5; }) > 0);
  const auto copy = [](World& w) {
    w.compute(5);
    w.sibling = w.sequence.fork();
    REQUIRE(w.sibling.append(1, w.step));
    w.use_up_chunks();
  };
  CHECK(fail_each_allocation(copy, [](World& w) { return w.sibling.fork().size() == 5; }) > 0);
}

TEST_CASE("a fork of committed tokens needs no memory, whatever is left") {
  CHECK(fail_each_allocation(share, [](World& w) { return w.sibling.fork().fork().size() == 11; }) == 0);
}

TEST_CASE("a cut, a window and a remapped block that run out of memory change nothing") {
  CHECK(fail_each_allocation(share, [](World& w) {
          w.sibling.truncate(6);
          return w.sibling.blocks().size() == 2;
        }) > 0);
  CHECK(fail_each_allocation(share, [](World& w) {
          w.sibling.release_before(8);
          return w.sibling.blocks()[1] == BlockId::none;
        }) > 0);
  CHECK(fail_each_allocation(share, [](World& w) {
          w.sibling.remap(0, w.sibling.blocks()[1]);
          return w.sibling.blocks()[0] == w.sibling.blocks()[1];
        }) > 0);
}

TEST_CASE("an adoption, a guard and a reservation that run out of memory change nothing") {
  const auto adopt = [](World& w) {
    w.compute(11);
    w.use_up_chunks();
  };
  CHECK(fail_each_allocation(adopt, [](World& w) {
          std::array<BlockId, 3> blocks{};
          for (std::size_t i = 0; i < 3; ++i) blocks[i] = w.sequence.blocks()[i];
          w.sibling.adopt(blocks, 11);
          return w.blocks.ref_count(blocks[2]) == 2;
        }) > 0);
  CHECK(fail_each_allocation(share, [](World& w) {
          const BlockId block = w.sequence.blocks()[0];
          w.blocks.guard({&block, 1}, 1);
          w.blocks.retire(1);
          return true;
        }) > 0);
  CHECK(fail_each_allocation(share, [](World& w) { return w.blocks.reserve(2).has_value(); }) == 0);
}

TEST_CASE("an adoption and an append for which room was made need no memory") {
  World w;
  w.compute(11);
  const auto ids = ids_of(w.sequence);
  w.use_up_chunks();
  w.sibling.prepare(3, 50, w.step);
  const long before = num_allocations;
  w.sibling.adopt(ids, 11);
  const bool appended = w.sibling.append(50, w.step);
  CHECK(num_allocations == before);
  CHECK(appended);
  CHECK(w.step.copies().size() == 1);
}

TEST_CASE("giving blocks back needs no memory") {
  for (int what = 0; what < 4; ++what) {
    World w;
    share(w);
    FakeReclaimer reclaimer{w.blocks};
    reclaimer.became.reserve(100);
    reclaimer.idle.reserve(100);
    for (int i = 0; i < 2; ++i) w.blocks.publish(w.sequence.table()[i]);
    REQUIRE(w.sequence.append(20, w.step));
    const long before = num_allocations;
    if (what == 0) w.sequence.truncate(0);
    if (what == 1) w.step.commit();
    if (what == 2) w.sequence = std::move(w.sibling);
    if (what == 3) w.others.clear();
    CHECK(num_allocations == before);
    w.sequence.truncate(0);
    w.step.commit();
    w.others.clear();
    if (what != 2) w.sibling.truncate(0);
    w.blocks.drain();
    CHECK(num_allocations == before);
    CHECK(w.blocks.num_idle() == 2);
    if (what == 2) w.sibling = Sequence{w.blocks};
  }
}

TEST_CASE("an append that is far too large says so before it makes room") {
  World world;
  largest_allocation = 0;
  CHECK_FALSE(world.sequence.append(std::numeric_limits<int>::max(), world.step));
  CHECK(largest_allocation < 1'000'000);
}
