// StepPlan: what a step copies and stores, and how it is closed.
#include "pagedkv/cache/step_plan.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

#include "cache/death.hpp"
#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;

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

TEST_CASE("a sequence takes part in one open step at a time") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan first, second;
  Sequence a{blocks};
  REQUIRE(a.append(1, first));
  CHECK_THROWS_AS(static_cast<void>(a.append(1, second)), InvalidArgument);
  CHECK(second.empty());
  a.truncate(0);
  REQUIRE(a.append(1, second));
  second.commit();
  first.commit();
  CHECK(a.num_committed() == 1);
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
  CHECK(pagedkv_test::dies([] {
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    Sequence a{blocks};
    StepPlan step;
    static_cast<void>(a.append(1, step));
  }));
}

TEST_CASE("an open plan that outlives its allocator is noticed, also without live rows") {
  CHECK(pagedkv_test::dies([] {
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
