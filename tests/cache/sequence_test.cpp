// Sequence: append, fork, truncate, release_before; when blocks are copied and when they are not.
#include "pagedkv/cache/sequence.hpp"

#include <doctest/doctest.h>

#include <array>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cache/sequences.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("appending piece by piece gives the same table as appending at once") {
  for (const int piece : {1, 4, 129}) {
    BlockAllocator blocks{{.num_blocks = 64, .block_size = 16}}, others{{.num_blocks = 64, .block_size = 16}};
    const Sequence whole = committed(blocks, 3 * 129);
    Sequence pieces{others};
    StepPlan step;
    for (int i = 0; i < 3 * 129; i += piece) REQUIRE(pieces.append(min(piece, 3 * 129 - i), step));
    CHECK(ids_of(pieces) == ids_of(whole));
    CHECK(pieces.size() == whole.size());
    step.commit();
  }
}

TEST_CASE("an append that does not fit changes nothing, also when the tail would be copied") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  Sequence parent = committed(blocks, 6);
  Sequence child = parent.fork();
  StepPlan step;
  const auto before = blocks.state_hash();
  CHECK_FALSE(child.append(1, step));
  CHECK(blocks.state_hash() == before);
  CHECK(ids_of(child) == ids_of(parent));
  CHECK(child.size() == 6);
  CHECK(step.empty());
  parent.truncate(4);
  CHECK(child.append(2, step));  // the last owner writes in place
  CHECK(step.copies().empty());
  step.commit();
}

TEST_CASE("a fork costs nothing, whatever the length, and parent and child can die in any order") {
  for (const int size : {1, 3, 4, 5, 33}) {
    BlockAllocator blocks{{.num_blocks = 9, .block_size = 4}};
    std::optional<Sequence> parent = committed(blocks, size);
    const int num_free = blocks.num_free();
    std::optional<Sequence> child = parent->fork();
    CHECK(blocks.num_free() == num_free);
    CHECK(ids_of(*child) == ids_of(*parent));
    CHECK(child->num_committed() == size);
    (size % 2 == 0 ? parent : child).reset();
    CHECK(blocks.num_free() == num_free);
    (size % 2 == 0 ? child : parent).reset();
    CHECK(blocks.num_free() == 9);
  }
}

TEST_CASE("a full tail is never copied") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence parent = committed(blocks, 8);
  Sequence child = parent.fork();
  StepPlan step;
  REQUIRE(parent.append(1, step));
  REQUIRE(child.append(1, step));
  CHECK(step.copies().empty());
  step.commit();
}

TEST_CASE("n owners of a partial tail cost n - 1 copies of its valid rows: the last owner writes in place") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  Sequence parent = committed(blocks, 13);
  const BlockId tail = parent.blocks()[1];
  std::array beams{parent.fork(), parent.fork(), parent.fork()};
  StepPlan step;
  REQUIRE(parent.append(1, step));
  for (Sequence& beam : beams) REQUIRE(beam.append(1, step));
  CHECK(step.copies().size() == 3);
  for (const BlockCopy& copy : step.copies()) {
    CHECK(copy.source == tail);
    CHECK(copy.num_rows == 5);
  }
  CHECK(beams[2].blocks()[1] == tail);
  step.commit();
}

TEST_CASE("dropping losers before appending saves their copies") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  Sequence parent = committed(blocks, 13);
  std::optional<Sequence> loser = parent.fork();
  loser.reset();
  StepPlan step;
  REQUIRE(parent.append(1, step));
  CHECK(step.copies().empty());
  step.commit();
}

TEST_CASE("uncommitted tokens are not forked, and their one writer keeps its place") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  Sequence parent = committed(blocks, 5);
  const BlockId tail = parent.blocks()[0];
  StepPlan step;
  REQUIRE(parent.append(1, step));
  Sequence child = parent.fork();
  CHECK(child.size() == 5);
  REQUIRE(parent.append(1, step));  // the shared rows are those before its own
  CHECK(parent.blocks()[0] == tail);
  REQUIRE(child.append(1, step));
  CHECK(step.copies().size() == 1);
  CHECK(step.copies()[0].num_rows == 5);
  step.commit();
}

TEST_CASE("a fork shares the source of a pending copy, so copies never depend on each other") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  Sequence parent = committed(blocks, 5);
  const BlockId source = parent.blocks()[0];
  Sequence child = parent.fork();
  StepPlan step;
  REQUIRE(child.append(1, step));
  Sequence grandchild = child.fork();
  CHECK(grandchild.blocks()[0] == source);
  REQUIRE(grandchild.append(1, step));
  REQUIRE(step.copies().size() == 2);
  CHECK(step.copies()[0].source == source);
  CHECK(step.copies()[1].source == source);
  CHECK(step.copies()[0].destination != step.copies()[1].destination);
  step.commit();
}

TEST_CASE("the last owner may append behind the rows that a pending copy reads, but not into them") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  Sequence parent = committed(blocks, 5);
  Sequence child = parent.fork();
  StepPlan first, second;
  REQUIRE(child.append(1, first));
  SUBCASE("behind") {
    REQUIRE(parent.append(1, second));
    CHECK(second.copies().empty());
  }
  SUBCASE("into") {
    parent.truncate(3);
    REQUIRE(parent.append(1, second));
    REQUIRE(second.copies().size() == 1);
    CHECK(second.copies()[0].num_rows == 3);
  }
  second.commit();
  first.commit();
}

TEST_CASE("truncate gives back whole blocks and a later append writes where it cut") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 14);
  s.truncate(14);
  CHECK(s.blocks().size() == 4);
  s.truncate(6);
  CHECK(s.blocks().size() == 2);
  CHECK(s.num_committed() == 6);
  StepPlan step;
  REQUIRE(s.append(1, step));
  CHECK(step.slots()[0] == s.table().slot(6));
  CHECK(step.copies().empty());
  step.commit();
  CHECK_THROWS_AS(s.truncate(8), InvalidArgument);
  CHECK_THROWS_AS(s.truncate(-1), InvalidArgument);
  s.truncate(0);
  CHECK(blocks.num_free() == 8);
}

TEST_CASE("tokens that were not accepted leave nothing behind, whether truncated before or after the commit") {
  for (int accepted = 0; accepted <= 6; ++accepted) {
    for (const bool before_commit : {true, false}) {
      BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
      Sequence s = committed(blocks, 3);
      StepPlan step;
      REQUIRE(s.append(6, step));
      if (before_commit) s.truncate(3 + accepted);
      step.commit();
      if (!before_commit) s.truncate(3 + accepted);
      CHECK(s.num_committed() == 3 + accepted);
      CHECK(blocks.num_used() == ceil_div(3 + accepted, 4));
    }
  }
}

TEST_CASE("blocks behind a sliding window are given back and never come back") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 18);
  s.release_before(3);
  CHECK(blocks.num_used() == 5);
  s.release_before(11);
  CHECK(blocks.num_used() == 3);
  CHECK(s.blocks()[1] == BlockId::none);
  CHECK(s.blocks()[2] != BlockId::none);
  CHECK(s.size() == 18);
  s.release_before(5);  // behind already
  CHECK(blocks.num_used() == 3);
  CHECK_THROWS_AS(s.truncate(7), InvalidArgument);
  CHECK_THROWS_AS(s.release_before(19), InvalidArgument);
  Sequence child = s.fork();
  CHECK(blocks.num_used() == 3);
  s.truncate(8);
  StepPlan step;
  REQUIRE(s.append(1, step));
  CHECK(s.blocks().size() == 3);
  step.commit();
  s.truncate(0);
  CHECK(child.blocks()[4] != BlockId::none);
}

TEST_CASE("a window cannot drop uncommitted tokens") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s{blocks};
  StepPlan step;
  REQUIRE(s.append(8, step));
  CHECK_THROWS_AS(s.release_before(4), InvalidArgument);
  step.commit();
  s.release_before(8);
  CHECK(blocks.num_used() == 0);
  REQUIRE(s.append(1, step));
  CHECK(s.blocks().size() == 3);
  step.commit();
}

TEST_CASE("a moved sequence is the same sequence, and what it replaces gives its blocks back") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan step;
  Sequence a{blocks}, b = committed(blocks, 9);
  REQUIRE(a.append(3, step));
  b = std::move(a);
  CHECK(b.size() == 3);
  CHECK(b.num_committed() == 0);
  CHECK(blocks.num_used() == 1);
  Sequence c = std::move(b);
  step.commit();
  CHECK(c.num_committed() == 3);
  CHECK_THROWS_AS(static_cast<void>(b.append(1, step)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(b.fork()), InvalidArgument);
  b = committed(blocks, 2);
  CHECK(b.size() == 2);
}

TEST_CASE("negative and overflowing appends are refused") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 1);
  StepPlan step;
  CHECK_THROWS_AS(static_cast<void>(s.append(-1, step)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.append(std::numeric_limits<int>::max(), step)), InvalidArgument);
  CHECK(s.append(0, step));
  CHECK(step.empty());
}

TEST_CASE("adopted blocks are shared, and a partly used last one is copied on write") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence owner = committed(blocks, 8);
  Sequence s{blocks};
  CHECK_THROWS_AS(s.adopt(ids_of(owner), 4), InvalidArgument);
  s.adopt(ids_of(owner), 7);
  CHECK(s.num_committed() == 7);
  CHECK_THROWS_AS(s.adopt(ids_of(owner), 7), InvalidArgument);
  StepPlan step;
  REQUIRE(s.append(1, step));
  REQUIRE(step.copies().size() == 1);
  CHECK(step.copies()[0].num_rows == 3);
  step.commit();
}

TEST_CASE("what may not be published may not be published by forks and after moves either") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence s = committed(blocks, 3);
  const Sequence before = s.fork();
  CHECK(before.may_publish());
  s.forbid_publishing();
  CHECK_FALSE(s.may_publish());
  CHECK_FALSE(s.fork().may_publish());
  CHECK_FALSE(s.fork().fork().may_publish());
  CHECK(before.may_publish());
  const Sequence moved = std::move(s);
  CHECK_FALSE(moved.may_publish());
  s = before.fork();
  CHECK(s.may_publish());
}

TEST_CASE("of a sequence that was moved from nothing may be asked that needs its allocator") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence s = committed(blocks, 3);
  const Sequence moved = std::move(s);
  StepPlan step;
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(static_cast<void>(s.append(0, step)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.reserve(1, step)), InvalidArgument);
  CHECK_THROWS_AS(s.accept(0), InvalidArgument);
  CHECK_THROWS_AS(s.rollback(), InvalidArgument);
  CHECK_THROWS_AS(s.truncate(0), InvalidArgument);
  CHECK_THROWS_AS(s.release_before(0), InvalidArgument);
  CHECK_THROWS_AS(s.adopt({}, 0), InvalidArgument);
  CHECK_THROWS_AS(s.remap(0, moved.blocks()[0]), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.fork()), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  CHECK(step.empty());
}

TEST_CASE("an append to the greatest length there is is refused for blocks, one beyond it as a mistake") {
  constexpr int most = std::numeric_limits<int>::max();
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 16}};
  Sequence s = committed(blocks, 3);
  StepPlan step;
  const auto before = blocks.state_hash();
  CHECK_FALSE(s.append(most - 3, step));
  CHECK_THROWS_AS(static_cast<void>(s.append(most - 2, step)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.reserve(most, step)), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  BlockAllocator huge{{.num_blocks = 2, .block_size = most}};
  Sequence t{huge};
  REQUIRE(t.append(3, step));
  CHECK(t.table().slot(2) == 2);
  step.commit();
  CHECK_THROWS_AS(static_cast<void>(t.append(most - 2, step)), InvalidArgument);
  CHECK(t.blocks().size() == 1);
}
