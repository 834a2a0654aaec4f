// The states of a block in the life of its sequence: sealed when full and committed, never earlier, not after a cut.
#include <doctest/doctest.h>

#include <array>

#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("a block is sealed when its last row is committed, and not before") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s{blocks};
  StepPlan step;
  REQUIRE(s.append(3, step));
  step.commit();
  CHECK(blocks.state(s.blocks()[0]) == BlockState::writing);
  REQUIRE(s.append(6, step));
  for (int i = 0; i < 3; ++i) CHECK(blocks.state(s.table()[i]) == BlockState::writing);
  step.commit();
  CHECK(blocks.state(s.blocks()[0]) == BlockState::sealed);
  CHECK(blocks.state(s.blocks()[1]) == BlockState::sealed);
  CHECK(blocks.state(s.blocks()[2]) == BlockState::writing);
  const Sequence first = open_with_room(blocks, step);
  for (int i = 0; i < 3; ++i) REQUIRE(s.append(1, step));
  CHECK(blocks.state(s.blocks()[2]) == BlockState::writing);
  step.commit();
  CHECK(is_sealed_as_far_as_committed(s));
}

TEST_CASE("a block that is cut and written again is sealed again only when it is full again") {
  for (const bool as_drafts : {false, true}) {
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    Sequence s = committed(blocks, 8);
    StepPlan step;
    const Sequence first = open_with_room(blocks, step);
    s.truncate(6);
    REQUIRE((as_drafts ? s.reserve(1, step) : s.append(1, step)));
    CHECK(blocks.state(s.blocks()[0]) == BlockState::sealed);
    CHECK(blocks.state(s.blocks()[1]) == BlockState::writing);
    step.commit();
    s.accept(s.num_drafts());
    CHECK(blocks.state(s.blocks()[1]) == BlockState::writing);
    REQUIRE(s.append(1, step));
    step.commit();
    CHECK(blocks.state(s.blocks()[1]) == BlockState::sealed);
  }
}

TEST_CASE("rows that are cut before the commit seal nothing, whatever is appended in their place") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 2);
  StepPlan step;
  REQUIRE(s.append(7, step));
  s.truncate(3);
  REQUIRE(s.append(2, step));
  CHECK(s.num_committed() == 2);
  step.commit();
  CHECK(s.num_committed() == 5);
  CHECK(is_sealed_as_far_as_committed(s));
  REQUIRE(s.append(5, step));
  s.truncate(6);
  step.commit();
  CHECK(is_sealed_as_far_as_committed(s));
}

TEST_CASE("each state of a block in the life of a sequence") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 2}};
  FakeReclaimer reclaimer{blocks};
  Sequence s{blocks};
  StepPlan step;
  REQUIRE(s.append(2, step));
  const BlockId block = s.blocks()[0];
  CHECK(blocks.state(block) == BlockState::writing);
  step.commit();
  CHECK(blocks.state(block) == BlockState::sealed);
  blocks.publish(block);
  CHECK(blocks.state(block) == BlockState::active);
  blocks.guard(std::array{block}, 1);
  s.truncate(0);
  CHECK(blocks.state(block) == BlockState::quarantined);
  blocks.retire(1);
  CHECK(blocks.state(block) == BlockState::idle);
  s.adopt(std::array{block}, 2);
  CHECK(blocks.state(block) == BlockState::active);
  s.truncate(0);
  REQUIRE(s.append(4, step));  // evicts it
  CHECK(blocks.state(block) == BlockState::writing);
  s.truncate(0);
  CHECK(blocks.state(block) == BlockState::free);
  step.commit();
}

TEST_CASE("a published tail is copied when it is written behind a cut, also by its only owner") {
  BlockAllocator blocks{{.num_blocks = 3, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  Sequence s = committed(blocks, 8);
  const BlockId tail = s.blocks()[1];
  blocks.publish(s.blocks()[0]);
  blocks.publish(tail);
  s.truncate(7);
  StepPlan step;
  REQUIRE(s.append(1, step));
  REQUIRE(step.copies().size() == 1);
  CHECK(step.copies()[0].source == tail);
  CHECK(step.copies()[0].num_rows == 3);
  CHECK(blocks.state(tail) == BlockState::active);  // the copy holds it
  CHECK(blocks.num_available() == 0);
  step.commit();
  CHECK(blocks.state(tail) == BlockState::idle);
  CHECK(blocks.state(s.blocks()[1]) == BlockState::sealed);
}
