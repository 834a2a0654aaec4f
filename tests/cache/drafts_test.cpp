// Drafts: tokens that are guessed have rows and blocks, but nobody else sees them until they are accepted.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

/// What is stored in each slot; -1: never written.
class Rows {
 public:
  Rows(int num_blocks, int block_size) : block_size_(block_size) {
    stored_.assign(static_cast<std::size_t>(num_blocks * block_size), -1);
  }

  /// `tokens` are those of the step's rows, in order.
  void execute(const StepPlan& step, const std::vector<int>& tokens) {
    for (const BlockCopy& copy : step.copies())
      for (int i = 0; i < copy.num_rows; ++i)
        at(Slot{to_index(copy.destination)} * block_size_ + i) = at(Slot{to_index(copy.source)} * block_size_ + i);
    REQUIRE(step.num_rows() == std::ssize(tokens));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (step.slots()[i] != dead_slot) at(step.slots()[i]) = tokens[i];
  }

  bool holds(const Sequence& s, const std::vector<int>& tokens) {
    if (s.size() != std::ssize(tokens)) return false;
    for (int i = 0; i < s.size(); ++i)
      if (at(s.table().slot(i)) != tokens[static_cast<std::size_t>(i)]) return false;
    return true;
  }

 private:
  int& at(Slot slot) { return stored_[static_cast<std::size_t>(slot)]; }

  int block_size_;
  std::vector<int> stored_;
};

}  // namespace

TEST_CASE("of k drafts any number can be accepted, and the blocks are those of the tokens that are left") {
  constexpr int block_size = 4;
  for (int before = 0; before <= 9; ++before) {
    for (int k = 0; k <= 9; ++k) {
      for (int m = 0; m <= k; ++m) {
        CAPTURE(before);
        CAPTURE(k);
        CAPTURE(m);
        BlockAllocator blocks{{.num_blocks = 8, .block_size = block_size}};
        Sequence s = committed(blocks, before);
        const auto ids = ids_of(s);
        StepPlan step;
        REQUIRE(s.reserve(k, step));
        CHECK(step.num_rows() == k);
        CHECK(s.size() == before + k);
        CHECK(s.num_drafts() == k);
        CHECK(s.num_committed() == before);
        CHECK(blocks.num_used() == ceil_div(before + k, block_size));
        CHECK(is_sealed_as_far_as_committed(s));
        step.commit();
        CHECK(s.num_committed() == before);
        CHECK(s.num_drafts() == k);
        CHECK(is_sealed_as_far_as_committed(s));
        s.accept(m);
        CHECK(s.num_drafts() == 0);
        CHECK(s.size() == before + m);
        CHECK(s.num_committed() == before + m);
        CHECK(blocks.num_used() == ceil_div(before + m, block_size));
        CHECK(is_sealed_as_far_as_committed(s));
        CHECK(std::equal(ids.begin(), ids.end(), s.blocks().begin()));
        REQUIRE(s.append(1, step));  // goes on where the accepted ones end
        CHECK(step.slots()[0] == s.table().slot(before + m));
        CHECK(step.copies().empty());
        step.commit();
        CHECK(is_sealed_as_far_as_committed(s));
        blocks.check_invariants();
      }
    }
  }
}

TEST_CASE("a rollback leaves the sequence as if nothing had been guessed") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 6);
  const auto ids = ids_of(s);
  const auto before = blocks.state_hash();
  StepPlan step;
  REQUIRE(s.reserve(11, step));
  step.commit();
  s.rollback();
  CHECK(s.size() == 6);
  CHECK(ids_of(s) == ids);
  CHECK(blocks.num_used() == 2);
  CHECK(is_sealed_as_far_as_committed(s));
  StepPlan again;
  REQUIRE(s.reserve(11, again));
  again.commit();
  s.rollback();
  CHECK(blocks.num_used() == 2);
  CHECK(blocks.state_hash() != before);  // ids that were never used have records now
}

TEST_CASE("tokens and drafts in one step: the tokens are committed with it, the drafts wait") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s{blocks};
  StepPlan step;
  REQUIRE(s.append(3, step));
  REQUIRE(s.reserve(3, step));
  REQUIRE(s.reserve(2, step));
  CHECK(s.num_committed() == 0);
  CHECK(s.num_drafts() == 5);
  step.commit();
  CHECK(s.num_committed() == 3);
  CHECK(blocks.state(s.blocks()[0]) == BlockState::writing);  // full, but with a draft
  s.accept(1);
  CHECK(s.num_committed() == 4);
  CHECK(blocks.state(s.blocks()[0]) == BlockState::sealed);
  CHECK(blocks.num_used() == 1);
}

TEST_CASE("drafts are decided on after their step and before anything is appended") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  Sequence s = committed(blocks, 2);
  StepPlan step;
  const Sequence first = open_with_room(blocks, step);
  REQUIRE(s.reserve(3, step));
  CHECK_THROWS_AS(s.accept(1), InvalidArgument);
  CHECK_THROWS_AS(s.rollback(), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.append(1, step)), InvalidArgument);
  CHECK(s.size() == 5);
  CHECK(step.num_rows() == 4);
  step.commit();
  const Sequence next = open_with_room(blocks, step);
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(static_cast<void>(s.append(1, step)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(s.reserve(1, step)), InvalidArgument);
  CHECK_THROWS_AS(s.accept(4), InvalidArgument);
  CHECK_THROWS_AS(s.accept(-1), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  CHECK(s.num_drafts() == 3);
  s.accept(3);
  CHECK_THROWS_AS(s.accept(1), InvalidArgument);
  s.accept(0);
  CHECK(s.size() == 5);
  step.commit();
}

TEST_CASE("a reservation of drafts that does not fit changes nothing") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  Sequence s = committed(blocks, 3);
  StepPlan step;
  const auto before = blocks.state_hash();
  CHECK_FALSE(s.reserve(6, step));
  CHECK(blocks.state_hash() == before);
  CHECK(step.empty());
  CHECK(s.num_drafts() == 0);
  CHECK_THROWS_AS(static_cast<void>(s.reserve(-1, step)), InvalidArgument);
  REQUIRE(s.append(1, step));
  step.commit();
}

TEST_CASE("a cut among the drafts forgets those behind it, a cut before them forgets them all") {
  for (const bool is_open : {true, false}) {
    for (int kept = 0; kept <= 8; ++kept) {
      CAPTURE(is_open);
      CAPTURE(kept);
      BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
      Sequence s = committed(blocks, 3);
      StepPlan step;
      REQUIRE(s.append(1, step));
      REQUIRE(s.reserve(4, step));
      if (!is_open) step.commit();
      s.truncate(kept);
      CHECK(s.num_drafts() == max(0, kept - 4));
      CHECK(s.num_committed() == min(kept, is_open ? 3 : 4));
      CHECK(blocks.num_used() == ceil_div(kept, 2));
      if (is_open) {
        for (int i = 0; i < 5; ++i) CHECK((step.slots()[static_cast<std::size_t>(i)] == dead_slot) == (3 + i >= kept));
        step.commit();
      }
      CHECK(s.num_committed() == min(kept, 4));
      s.accept(s.num_drafts());
      CHECK(s.num_committed() == kept);
      REQUIRE(s.append(3, step));
      CHECK(is_sealed_as_far_as_committed(s));
      step.commit();
      CHECK(is_sealed_as_far_as_committed(s));
      blocks.check_invariants();
    }
  }
}

TEST_CASE("drafts are not forked, neither while their step is open nor while they wait") {
  for (const bool is_open : {true, false}) {
    BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
    Sequence parent = committed(blocks, 6);
    const BlockId tail = parent.blocks()[1];
    StepPlan step, next;
    REQUIRE(parent.reserve(7, step));
    if (!is_open) step.commit();
    Sequence child = parent.fork();
    CHECK(child.size() == 6);
    CHECK(child.num_committed() == 6);
    CHECK(child.num_drafts() == 0);
    CHECK(child.blocks().size() == 2);
    CHECK(child.blocks()[1] == tail);
    CHECK(blocks.ref_count(parent.blocks()[2]) == 1);
    REQUIRE(child.append(1, next));  // the parent writes behind the shared rows
    REQUIRE(next.copies().size() == 1);
    CHECK(next.copies()[0].num_rows == 6 % 4);
    next.commit();
    step.commit();
    CHECK(parent.num_drafts() == 7);
    parent.accept(2);
    CHECK(blocks.state(tail) == BlockState::sealed);
    CHECK(blocks.state(child.blocks()[1]) == BlockState::writing);
    CHECK(parent.blocks()[1] == tail);
    blocks.check_invariants();
  }
}

TEST_CASE("a fork of a parent with drafts keeps what it shares when the parent goes on, rolls back or dies") {
  for (int what = 0; what < 3; ++what) {
    CAPTURE(what);
    BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
    Rows rows{16, 4};
    StepPlan step;
    std::optional<Sequence> parent{blocks};
    REQUIRE(parent->append(6, step));
    rows.execute(step, {0, 1, 2, 3, 4, 5});
    step.commit();
    REQUIRE(parent->reserve(3, step));
    Sequence child = parent->fork();
    rows.execute(step, {6, 7, 8});
    step.commit();
    if (what == 0) parent->accept(2);
    if (what == 1) parent->rollback();
    if (what == 2) parent.reset();
    CHECK(rows.holds(child, {0, 1, 2, 3, 4, 5}));
    REQUIRE(child.append(1, step));
    std::vector<int> stored{60};
    if (parent) {
      REQUIRE(parent->append(1, step));
      stored.push_back(90);
    }
    rows.execute(step, stored);
    step.commit();
    CHECK(rows.holds(child, {0, 1, 2, 3, 4, 5, 60}));
    if (what == 0) CHECK(rows.holds(*parent, {0, 1, 2, 3, 4, 5, 6, 7, 90}));
    if (what == 1) CHECK(rows.holds(*parent, {0, 1, 2, 3, 4, 5, 90}));
    blocks.check_invariants();
  }
}

TEST_CASE("drafts behind a shared tail copy it as tokens do") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  const Sequence parent = committed(blocks, 6);
  Sequence child = parent.fork();
  StepPlan step;
  REQUIRE(child.reserve(2, step));
  REQUIRE(step.copies().size() == 1);
  CHECK(step.copies()[0].num_rows == 2);
  const BlockId own = child.blocks()[1];
  step.commit();
  child.accept(0);
  CHECK(child.blocks()[1] == own);
  CHECK(blocks.num_used() == 3);
  REQUIRE(child.append(1, step));
  CHECK(step.copies().empty());
  step.commit();
}

TEST_CASE("a sequence with drafts can be moved, dropped and preempted in its step") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan step;
  Sequence s = committed(blocks, 3);
  REQUIRE(s.reserve(3, step));
  Sequence moved = std::move(s);
  CHECK(moved.num_drafts() == 3);
  step.commit();
  moved.accept(2);
  CHECK(moved.size() == 5);
  REQUIRE(moved.reserve(4, step));
  moved.truncate(0);
  CHECK(moved.num_drafts() == 0);
  CHECK(blocks.num_free() == 8);
  CHECK(std::ranges::count(step.slots(), dead_slot) == 4);
  step.commit();
  CHECK(moved.num_committed() == 0);
}

TEST_CASE("a thousand speculative rounds end in the tokens, blocks and seals of plain decoding") {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    Random random{seed};
    const int block_size = random.pick({1, 2, 5, 16});
    constexpr int num_tokens = 8'000;
    const int num_blocks = num_tokens / block_size + 16;
    BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = block_size}};
    Rows rows{num_blocks, block_size};
    StepPlan step;
    Sequence s{blocks};
    std::vector<int> tokens;  // those that plain decoding would give
    bool all = true;
    for (int round = 0; round < 1'000; ++round) {
      const int num_drafts = random.between(0, 6), num_accepted = random.between(0, num_drafts);
      REQUIRE(s.append(1, step));
      REQUIRE(s.reserve(num_drafts, step));
      std::vector<int> stored{static_cast<int>(tokens.size())};
      for (int i = 1; i <= num_drafts; ++i)
        stored.push_back(i <= num_accepted ? static_cast<int>(tokens.size()) + i : -1000 - i);
      tokens.insert(tokens.end(), stored.begin(), stored.begin() + 1 + num_accepted);
      rows.execute(step, stored);
      all = all && is_sealed_as_far_as_committed(s);
      step.commit();
      all = all && is_sealed_as_far_as_committed(s);
      s.accept(num_accepted);
      all = all && is_sealed_as_far_as_committed(s);
      all = all && blocks.num_used() == ceil_div(static_cast<int>(tokens.size()), block_size);
      if (round % 50 == 0) REQUIRE(rows.holds(s, tokens));
    }
    CHECK(all);
    CHECK(rows.holds(s, tokens));
    BlockAllocator others{{.num_blocks = num_blocks, .block_size = block_size}};
    const Sequence plain = committed(others, static_cast<int>(tokens.size()));
    CHECK(s.num_committed() == plain.num_committed());
    CHECK(s.blocks().size() == plain.blocks().size());
    blocks.check_invariants();
  }
}
