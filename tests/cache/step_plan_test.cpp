// StepPlan: what a step copies and stores, and how it is closed.
#include "pagedkv/cache/step_plan.hpp"

#include <doctest/doctest.h>

#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cache/death.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

std::vector<Slot> slots(const StepPlan& step) { return {step.slots().begin(), step.slots().end()}; }

}  // namespace

TEST_CASE("rows keep the order of the appends, whatever sequence they belong to") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  StepPlan step;
  Sequence a{blocks}, b{blocks};
  REQUIRE(a.append(1, step));
  REQUIRE(b.append(1, step));
  REQUIRE(a.append(2, step));
  CHECK(slots(step) == std::vector<Slot>{0, 2, 1, 4});
  CHECK(step.num_rows() == 4);
  step.commit();
  CHECK(step.empty());
  CHECK(step.num_rows() == 0);
}

TEST_CASE("truncated rows are dead, the others keep their place") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  StepPlan step;
  Sequence a{blocks}, b{blocks};
  REQUIRE(a.append(1, step));
  REQUIRE(b.append(1, step));
  REQUIRE(a.append(2, step));
  a.truncate(2);
  CHECK(slots(step) == std::vector<Slot>{0, 2, 1, dead_slot});
  a.truncate(0);
  CHECK(slots(step) == std::vector<Slot>{dead_slot, 2, dead_slot, dead_slot});
  step.commit();
  CHECK(a.num_committed() == 0);
  CHECK(b.num_committed() == 1);
}

TEST_CASE("a sequence that dies kills its rows and its copy, and its blocks are free at once") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  StepPlan step;
  Sequence parent{blocks};
  REQUIRE(parent.append(2, step));
  step.commit();
  {
    Sequence child = parent.fork();
    REQUIRE(child.append(4, step));
    CHECK(step.copies().size() == 1);
    CHECK(blocks.num_used() == 3);
  }
  CHECK(step.copies().empty());
  CHECK(slots(step) == std::vector<Slot>(4, dead_slot));
  CHECK(blocks.num_used() == 1);
}

TEST_CASE("the source of a copy is held until the commit, also without an owner") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  StepPlan step;
  Sequence parent{blocks};
  REQUIRE(parent.append(2, step));
  step.commit();
  Sequence child = parent.fork();
  REQUIRE(child.append(1, step));
  const BlockId source = step.copies()[0].source;
  parent.truncate(0);
  CHECK(blocks.ref_count(source) == 0);
  CHECK(blocks.num_available() == 0);
  Sequence other{blocks};
  CHECK_FALSE(other.append(1, step));
  step.commit();
  CHECK(blocks.num_available() == 1);
}

TEST_CASE("two steps can be open at once and are committed in any order") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan first, second;
  Sequence a{blocks}, b{blocks};
  REQUIRE(a.append(3, first));
  REQUIRE(b.append(2, second));
  second.commit();
  CHECK(a.num_committed() == 0);
  CHECK(b.num_committed() == 2);
  first.commit();
  CHECK(a.num_committed() == 3);
}

TEST_CASE("a sequence takes part in one open step at a time, whether the other one has room for its row or not") {
  for (const bool has_room : {false, true}) {
    for (const bool is_older : {false, true}) {
      BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
      StepPlan first, second;
      Sequence a = committed(blocks, 1), b{blocks};
      if (is_older) REQUIRE(a.append(1, first));
      if (has_room) b = open_with_room(blocks, second);
      if (!is_older) REQUIRE(a.append(1, first));
      const int num_rows = second.num_rows();
      CHECK_THROWS_AS(static_cast<void>(a.append(1, second)), InvalidArgument);
      CHECK(a.size() == 2);
      CHECK(second.num_rows() == num_rows);
      a.truncate(0);
      REQUIRE(a.append(1, second));
      second.commit();
      first.commit();
      CHECK(a.num_committed() == 1);
    }
  }
}

TEST_CASE("one step serves one allocator") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}}, others{{.num_blocks = 8, .block_size = 4}};
  StepPlan step;
  Sequence a{blocks}, b{others};
  REQUIRE(a.append(1, step));
  CHECK_THROWS_AS(static_cast<void>(b.append(1, step)), InvalidArgument);
  step.commit();
  REQUIRE(b.append(1, step));
  step.commit();
}

TEST_CASE("a plan that dies uncommitted says so") {
  CHECK(dies([] {
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    Sequence a{blocks};
    StepPlan step;
    static_cast<void>(a.append(1, step));
  }));
}

TEST_CASE("an open plan that outlives its allocator is noticed, also without live rows") {
  CHECK(dies([] {
    StepPlan step;
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    Sequence a{blocks};
    static_cast<void>(a.append(1, step));
  }));
}

TEST_CASE("a plan may die with dead rows, and when an exception passes by") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  {
    StepPlan step;
    Sequence a{blocks};
    REQUIRE(a.append(1, step));
  }
  const auto fail = [&blocks] {
    Sequence a{blocks};
    StepPlan step;
    static_cast<void>(a.append(1, step));
    throw std::runtime_error("the back end failed");
  };
  CHECK_THROWS_AS(fail(), std::runtime_error);
  CHECK(blocks.num_free() == 8);
}

TEST_CASE("a sequence preempted in its step leaves no live row and no copy, and can begin again in the same step") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  const Sequence parent = committed(blocks, 6);
  Sequence child = parent.fork();
  StepPlan step;
  REQUIRE(child.append(4, step));
  CHECK(step.copies().size() == 1);
  child.truncate(0);
  CHECK(step.copies().empty());
  for (const Slot slot : step.slots()) CHECK(slot == dead_slot);
  CHECK(blocks.num_used() == 2);
  REQUIRE(child.append(5, step));
  CHECK(step.num_rows() == 9);
  step.commit();
  CHECK(child.num_committed() == 5);
  CHECK(is_sealed_as_far_as_committed(child));
}

TEST_CASE("a cut in a step keeps the copy as long as a row of its block is left") {
  for (int kept = 0; kept <= 7; ++kept) {
    CAPTURE(kept);
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    const Sequence parent = committed(blocks, 7);
    Sequence child = parent.fork();
    StepPlan step;
    REQUIRE(child.append(2, step));
    const BlockId own = child.blocks()[1];
    child.truncate(kept);
    CHECK(step.copies().size() == (kept > 4 ? 1 : 0));
    CHECK(child.num_committed() == kept);
    const Sequence grandchild = child.fork();
    if (kept > 4) CHECK(grandchild.blocks()[1] == parent.blocks()[1]);
    REQUIRE(child.append(1, step));
    if (kept > 4) CHECK(child.blocks()[1] == own);
    if (kept > 4) CHECK(step.copies().size() == 1);
    step.commit();
    CHECK(child.num_committed() == kept + 1);
    blocks.check_invariants();
  }
}

TEST_CASE("chains of fork and append in one step are copies of one source") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 8}};
  std::vector<Sequence> chain;
  chain.push_back(committed(blocks, 13));
  const BlockId source = chain[0].blocks()[1];
  StepPlan step;
  for (int i = 0; i < 6; ++i) {
    chain.push_back(chain.back().fork());
    REQUIRE(chain.back().append(i + 1, step));
  }
  REQUIRE(step.copies().size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(step.copies()[i].source == source);
    CHECK(step.copies()[i].num_rows == 5);
    for (std::size_t j = 0; j < i; ++j) CHECK(step.copies()[i].destination != step.copies()[j].destination);
  }
  for (std::size_t i = 0; i < 7; ++i) CHECK(chain[i].num_committed() == 13);
  step.commit();
  for (std::size_t i = 1; i < 7; ++i) CHECK(chain[i].num_committed() == 13 + static_cast<int>(i));
  blocks.check_invariants();
}

TEST_CASE("a fork whose parent dies in the same step keeps what was committed") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan step;
  std::optional<Sequence> parent = committed(blocks, 6);
  REQUIRE(parent->append(5, step));
  Sequence child = parent->fork();
  parent.reset();
  CHECK(blocks.num_used() == 2);
  REQUIRE(child.append(1, step));  // alone now, so in place
  CHECK(step.copies().empty());
  CHECK(step.slots().back() == child.table().slot(6));
  step.commit();
  CHECK(child.num_committed() == 7);
}

TEST_CASE("a step that is committed twice, or without rows, is committed once") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  StepPlan step;
  step.commit();
  Sequence a{blocks};
  REQUIRE(a.append(3, step));
  step.commit();
  const auto before = blocks.state_hash();
  step.commit();
  CHECK(blocks.state_hash() == before);
  CHECK(step.empty());
  CHECK(a.num_committed() == 3);
}

TEST_CASE("an append that is refused does not open the step, so that it can serve another allocator") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 2}}, others{{.num_blocks = 1, .block_size = 2}};
  StepPlan step;
  Sequence a{blocks}, b{others};
  CHECK_FALSE(a.append(3, step));
  CHECK(a.append(0, step));
  REQUIRE(b.append(1, step));
  step.commit();
  CHECK(b.num_committed() == 1);
}

TEST_CASE(
    "rows of a sequence that lie apart in its step are killed from the last on, whether there was room for them or "
    "not") {
  for (const bool has_room : {false, true}) {
    BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
    StepPlan step;
    blocks.release(take(blocks, 16));  // a block that was never used is not taken the short way
    Sequence first{blocks}, a{blocks}, b{blocks};
    if (has_room) first = open_with_room(blocks, step);
    const int num_before = step.num_rows();
    for (int i = 0; i < 6; ++i) {
      REQUIRE(a.append(1, step));
      if (i % 2 == 1) REQUIRE(b.append(1, step));
    }
    const std::vector<Slot> all = slots(step);
    for (int size = 5; size >= 0; --size) {
      a.truncate(size);
      int alive = 0;
      for (int i = 0; i < 9; ++i) {
        const auto row = static_cast<std::size_t>(num_before + i);
        const bool is_live = i % 3 == 2 || alive++ < size;  // of b, or before the cut
        CHECK(step.slots()[row] == (is_live ? all[row] : dead_slot));
      }
    }
    REQUIRE(a.append(1, step));
    a.truncate(0);
    CHECK(step.slots().back() == dead_slot);
    step.commit();
    CHECK(b.num_committed() == 3);
  }
}
