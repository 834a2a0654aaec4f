// Reservations: blocks that are promised cannot be taken, revived or pinned by anybody else.
#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "cache/death.hpp"
#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

static_assert(!std::is_copy_constructible_v<Reservation> && !std::is_copy_assignable_v<Reservation>);

TEST_CASE("reserved blocks are free, but not available") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  const std::optional<Reservation> reserved = blocks.reserve(3);
  REQUIRE(reserved);
  CHECK(reserved->size() == 3);
  CHECK(blocks.num_reserved() == 3);
  CHECK(blocks.num_free() == 4);
  CHECK(blocks.num_available() == 1);
  const auto before = blocks.state_hash();
  std::array<BlockId, 2> two{};
  CHECK_FALSE(blocks.allocate(two));
  CHECK_FALSE(blocks.reserve(2));
  Sequence s{blocks};
  StepPlan step;
  CHECK_FALSE(s.append(3, step));
  CHECK(blocks.state_hash() == before);
  CHECK(s.append(2, step));
  step.commit();
  blocks.check_invariants();
}

TEST_CASE("all blocks can be reserved, none or fewer than none is decided without a pool") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  const auto before = blocks.state_hash();
  CHECK_FALSE(blocks.reserve(5));
  CHECK_THROWS_AS(static_cast<void>(blocks.reserve(-1)), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  const auto none = blocks.reserve(0);
  REQUIRE(none);
  CHECK(none->size() == 0);
  const auto all = blocks.reserve(4);
  REQUIRE(all);
  CHECK(blocks.num_available() == 0);
}

TEST_CASE("what is taken out of a reservation leaves it") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  auto reserved = blocks.reserve(3);
  std::array<BlockId, 2> two{};
  REQUIRE(blocks.allocate(two, *reserved));
  CHECK(reserved->size() == 1);
  CHECK(blocks.num_reserved() == 1);
  CHECK(blocks.num_available() == 1);
  std::array<BlockId, 2> more{};
  REQUIRE(blocks.allocate(more, *reserved));  // one that was reserved and one that was not
  CHECK(reserved->size() == 0);
  CHECK(blocks.num_available() == 0);
  blocks.release(two);
  blocks.release(more);
  blocks.check_invariants();
}

TEST_CASE("an allocation beyond the reservation and what else is there takes nothing from either") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  auto mine = blocks.reserve(2);
  const auto others = blocks.reserve(1);
  const auto before = blocks.state_hash();
  std::array<BlockId, 4> four{};
  CHECK_FALSE(blocks.allocate(four, *mine));
  CHECK(mine->size() == 2);
  CHECK(blocks.state_hash() == before);
  std::array<BlockId, 3> three{};
  CHECK(blocks.allocate(three, *mine));
  CHECK(others->size() == 1);
  blocks.release(three);
}

TEST_CASE("an append takes its new blocks and its copy out of the reservation") {
  BlockAllocator blocks{{.num_blocks = 6, .block_size = 4}};
  const Sequence parent = committed(blocks, 6);
  Sequence child = parent.fork();
  auto reserved = blocks.reserve(3);
  StepPlan step;
  REQUIRE(child.append(3, step, *reserved));  // copies the tail and adds a block
  CHECK(step.copies().size() == 1);
  CHECK(reserved->size() == 1);
  CHECK(blocks.num_reserved() == 1);
  CHECK(blocks.num_available() == 1);
  REQUIRE(child.append(3, step, *reserved));  // there is room for them
  CHECK(reserved->size() == 1);
  step.commit();
}

TEST_CASE("an append beyond the reservation and what else is there changes nothing") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  Sequence s = committed(blocks, 4);
  auto mine = blocks.reserve(1);
  const auto others = blocks.reserve(1);
  StepPlan step;
  const auto before = blocks.state_hash();
  CHECK_FALSE(s.append(9, step, *mine));
  CHECK(blocks.state_hash() == before);
  CHECK(mine->size() == 1);
  CHECK(step.empty());
  CHECK(s.append(8, step, *mine));
  step.commit();
}

TEST_CASE("a reservation that is shrunk or destroyed gives its blocks back, one that was moved has none") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  {
    auto reserved = blocks.reserve(4);
    CHECK_THROWS_AS(reserved->shrink(5), InvalidArgument);
    CHECK_THROWS_AS(reserved->shrink(-1), InvalidArgument);
    CHECK(blocks.num_reserved() == 4);
    reserved->shrink(0);
    reserved->shrink(1);
    CHECK(reserved->size() == 3);
    CHECK(blocks.num_available() == 1);
    Reservation moved = std::move(*reserved);
    CHECK(reserved->size() == 0);
    CHECK(moved.size() == 3);
    reserved.reset();
    CHECK(blocks.num_available() == 1);
  }
  CHECK(blocks.num_available() == 4);
}

TEST_CASE("what an assignment replaces is given back at once") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  auto a = blocks.reserve(3), b = blocks.reserve(2);
  *a = std::move(*b);
  CHECK(a->size() == 2);
  CHECK(b->size() == 0);
  CHECK(blocks.num_reserved() == 2);
  *a = Reservation{};
  CHECK(blocks.num_reserved() == 0);
}

TEST_CASE("an empty reservation is of no allocator and adds nothing") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 2}};
  Reservation none;
  none.shrink(0);
  std::array<BlockId, 1> one{};
  std::array<BlockId, 2> two{};
  CHECK_FALSE(blocks.allocate(two, none));
  REQUIRE(blocks.allocate(one, none));
  blocks.release(one);
  Sequence s{blocks};
  StepPlan step;
  CHECK(s.append(1, step, none));
  step.commit();
}

TEST_CASE("a reservation of another allocator is refused and keeps its blocks") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}}, others{{.num_blocks = 4, .block_size = 2}};
  auto foreign = others.reserve(2);
  const auto before = blocks.state_hash();
  std::array<BlockId, 1> one{};
  CHECK_THROWS_AS(static_cast<void>(blocks.allocate(one, *foreign)), InvalidArgument);
  Sequence s{blocks};
  StepPlan step;
  CHECK_THROWS_AS(static_cast<void>(s.append(1, step, *foreign)), InvalidArgument);
  CHECK(foreign->size() == 2);
  CHECK(others.num_reserved() == 2);
  CHECK(blocks.state_hash() == before);
  s.truncate(0);
  step.commit();
}

TEST_CASE("idle blocks can be reserved, and are evicted for whom they are reserved") {
  BlockAllocator blocks{{.num_blocks = 3, .block_size = 2}};
  FakeReclaimer reclaimer{blocks};
  blocks.release(take_published(blocks, 3));
  auto reserved = blocks.reserve(2);
  REQUIRE(reserved);
  CHECK(blocks.num_available() == 1);
  CHECK(reclaimer.num_evicted == 0);
  std::array<BlockId, 2> two{};
  CHECK_FALSE(blocks.allocate(two));
  CHECK(reclaimer.num_evicted == 0);
  REQUIRE(blocks.allocate(two, *reserved));
  CHECK(reclaimer.num_evicted == 2);
  CHECK(blocks.num_available() == 1);
  blocks.release(two);
}

TEST_CASE("idle blocks that are reserved can be neither revived nor guarded nor held") {
  BlockAllocator blocks{{.num_blocks = 3, .block_size = 2}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 3);
  blocks.release(ids);
  auto reserved = blocks.reserve(2);
  const auto before = blocks.state_hash();
  const std::span pair = std::span(ids).first(2);
  CHECK_THROWS_AS(blocks.retain(pair), InvalidArgument);
  CHECK_THROWS_AS(blocks.guard(pair, 1), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  CHECK(reclaimer.idle == std::vector(ids.rbegin(), ids.rend()));
  blocks.retain(pair.first(1));
  CHECK(blocks.num_available() == 0);
  CHECK_THROWS_AS(blocks.retain(pair.last(1)), InvalidArgument);
  CHECK_THROWS_AS(blocks.guard(pair.last(1), 1), InvalidArgument);
  CHECK_THROWS_AS(blocks.hold(pair[1], 1), InvalidArgument);
  blocks.retain(pair.first(1));  // has an owner already
  blocks.guard(pair.first(1), 1);
  blocks.hold(pair[0], 1);
  blocks.check_invariants();
  std::array<BlockId, 2> two{};
  CHECK(blocks.allocate(two, *reserved));
  blocks.release(two);
  blocks.drop_hold(pair[0]);
  blocks.release(std::array{pair[0], pair[0]});
  blocks.retire(1);
}

TEST_CASE("an append of one token does not take a free block that is reserved, also the short way") {
  BlockAllocator blocks{{.num_blocks = 6, .block_size = 2}};
  StepPlan step;
  blocks.release(take(blocks, 6));  // a block that was never used is not taken the short way
  Sequence s = committed(blocks, 2);
  const Sequence first = open_with_room(blocks, step);
  auto reserved = blocks.reserve(3);
  REQUIRE(s.append(1, step));
  REQUIRE(s.append(1, step));
  CHECK(blocks.num_available() == 0);
  CHECK_FALSE(s.append(1, step));
  CHECK(s.size() == 4);
  REQUIRE(s.append(1, step, *reserved));
  CHECK(reserved->size() == 2);
  step.commit();
  blocks.check_invariants();
}

TEST_CASE("a reservation walks dead tables before it says no") {
  BlockAllocator blocks{{.num_blocks = 5000, .block_size = 1}};
  std::optional<Sequence> s = committed(blocks, 5000);
  s.reset();
  REQUIRE(blocks.has_dead_tables());
  CHECK(blocks.num_available() < 5000);
  CHECK(blocks.reserve(5000));
  CHECK_FALSE(blocks.has_dead_tables());
}

TEST_CASE("a promise to running requests holds while others fill the pool") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence running = committed(blocks, 4);
  auto promised = blocks.reserve(3);
  std::vector<Sequence> others;
  StepPlan step;
  for (int i = 0; i < 8; ++i) {
    Sequence other{blocks};
    if (other.append(2, step)) others.push_back(std::move(other));
  }
  CHECK(others.size() == 3);
  for (int i = 0; i < 6; ++i) REQUIRE(running.append(1, step, *promised));
  CHECK_FALSE(running.append(1, step, *promised));
  step.commit();
}

TEST_CASE("a reservation that outlives its allocator is noticed") {
  CHECK(dies([] {
    std::optional<Reservation> reserved;
    BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
    reserved = blocks.reserve(1);
  }));
}
