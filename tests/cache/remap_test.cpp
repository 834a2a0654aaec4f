// Sequence::remap: a duplicate of a block that others share is given back for that one.
#include <doctest/doctest.h>

#include <vector>

#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("a duplicate is given back for the block that others share") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence first = committed(blocks, 5);
  Sequence twin = committed(blocks, 5);
  const Sequence fork = twin.fork();
  const auto before = ids_of(twin);
  twin.remap(0, first.blocks()[0]);
  CHECK(ids_of(twin) == std::vector{first.blocks()[0], before[1], before[2]});
  CHECK(ids_of(fork) == before);
  CHECK(blocks.ref_count(first.blocks()[0]) == 2);
  CHECK(blocks.ref_count(before[0]) == 1);
  twin.remap(1, first.blocks()[1]);
  const auto hash = blocks.state_hash();
  CHECK_THROWS_AS(twin.remap(2, first.blocks()[2]), InvalidArgument);  // not full
  CHECK_THROWS_AS(twin.remap(-1, first.blocks()[0]), InvalidArgument);
  CHECK_THROWS_AS(twin.remap(0, BlockId{7}), InvalidArgument);
  CHECK_THROWS_AS(twin.remap(0, BlockId::none), InvalidArgument);
  CHECK(blocks.state_hash() == hash);
  CHECK(twin.blocks()[0] == first.blocks()[0]);
  blocks.check_invariants();
}

TEST_CASE("a block that its only owner remaps is free at once, one that it remaps to itself stays") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence first = committed(blocks, 4);
  Sequence twin = committed(blocks, 4);
  const BlockId own = twin.blocks()[1];
  twin.remap(1, own);
  CHECK(blocks.ref_count(own) == 1);
  twin.remap(1, first.blocks()[1]);
  CHECK(blocks.state(own) == BlockState::free);
  CHECK(blocks.num_used() == 3);
  twin.release_before(2);
  CHECK_THROWS_AS(twin.remap(0, first.blocks()[0]), InvalidArgument);
}

TEST_CASE("uncommitted and guessed tokens are not remapped") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence first = committed(blocks, 4);
  Sequence twin{blocks};
  StepPlan step;
  REQUIRE(twin.append(2, step));
  CHECK_THROWS_AS(twin.remap(0, first.blocks()[0]), InvalidArgument);
  step.commit();
  REQUIRE(twin.reserve(2, step));
  step.commit();
  CHECK_THROWS_AS(twin.remap(1, first.blocks()[1]), InvalidArgument);
  twin.remap(0, first.blocks()[0]);
  twin.accept(2);
  twin.remap(1, first.blocks()[1]);
  CHECK(ids_of(twin) == ids_of(first));
}
