// Long tables: forks of any length cost the same, tables die in pieces, and nothing is lost or late.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr int walked_at_once = 1024 + 64;

/// Of sealed blocks.
void publish(BlockAllocator& blocks, const std::vector<BlockId>& ids) {
  for (const BlockId id : ids) blocks.publish(id);
}

template <class T>
std::vector<T> reversed(const std::vector<T>& items) {
  return {items.rbegin(), items.rend()};
}

/// Calls `walk` until no dead tables are left; the free blocks grow, by at most so many a call. Returns the calls.
template <class Walk>
int walk_all(BlockAllocator& blocks, Walk walk) {
  int calls = 0;
  for (; blocks.has_dead_tables(); ++calls) {
    const int before = blocks.num_free();
    walk();
    const int change = blocks.num_free() - before;
    REQUIRE(change >= 0);
    REQUIRE(change <= walked_at_once);
    REQUIRE(calls < 20'000);
  }
  return calls;
}

}  // namespace

TEST_CASE("a million blocks are given back in pieces, by those who let go of tables or commit steps") {
  constexpr int length = 1'000'000;
  BlockAllocator blocks{{.num_blocks = length + 1, .block_size = 1}};
  std::optional<Sequence> s = committed(blocks, length);
  CHECK_FALSE(blocks.has_dead_tables());
  s.reset();
  CHECK(blocks.has_dead_tables());
  CHECK(blocks.num_free() > 1);
  CHECK(blocks.num_free() <= 1 + walked_at_once);
  SUBCASE("of a fork that dies") {
    Sequence other = committed(blocks, 1);
    CHECK(walk_all(blocks, [&] { static_cast<void>(other.fork()); }) >= length / walked_at_once - 1);
    other.truncate(0);
  }
  SUBCASE("of a window that slides") {
    Sequence other = committed(blocks, 2000);
    int position = 0;
    walk_all(blocks, [&] { other.release_before(++position); });
    other.truncate(0);
  }
  SUBCASE("of a step that is committed") {
    StepPlan step;
    Sequence other{blocks};
    walk_all(blocks, [&] {
      REQUIRE(other.append(1, step));
      step.commit();
    });
    other.truncate(0);
  }
  SUBCASE("of whoever has time") {
    walk_all(blocks, [&] { blocks.drain(1); });
  }
  blocks.drain();
  CHECK(blocks.num_free() == length + 1);
  blocks.check_invariants();
}

TEST_CASE("an append and an allocation walk dead tables before they say no, and not much farther than they need") {
  constexpr int length = 20'000;
  BlockAllocator blocks{{.num_blocks = length, .block_size = 1}};
  std::optional<Sequence> s = committed(blocks, length);
  s.reset();
  CHECK(blocks.num_available() <= walked_at_once);
  const auto few = take(blocks, 3000);
  CHECK(blocks.has_dead_tables());
  CHECK(blocks.num_available() <= walked_at_once);
  Sequence next{blocks};
  StepPlan step;
  REQUIRE(next.append(length - 3000, step));
  CHECK_FALSE(blocks.has_dead_tables());
  CHECK(blocks.num_available() == 0);
  CHECK_FALSE(next.append(1, step));
  step.commit();
  blocks.release(few);
}

TEST_CASE("a fork that outlives its long parent keeps everything") {
  constexpr int length = 300'000;
  BlockAllocator blocks{{.num_blocks = length + 100, .block_size = 1}};
  std::optional<Sequence> parent = committed(blocks, length);
  const auto ids = ids_of(*parent);
  Sequence child = parent->fork();
  StepPlan step;
  REQUIRE(child.append(10, step));
  REQUIRE(parent->append(20, step));
  step.commit();
  CHECK(blocks.num_used() == length + 30);
  parent.reset();
  blocks.drain();
  CHECK(blocks.num_used() == length + 10);
  CHECK(child.size() == length + 10);
  CHECK(std::equal(ids.begin(), ids.end(), child.blocks().begin()));
  bool all = true;
  for (const BlockId id : ids_of(child)) all = all && blocks.ref_count(id) == 1;
  CHECK(all);
  blocks.check_invariants();
}

TEST_CASE("a long table becomes idle deepest block first, however it is walked") {
  constexpr int length = 30'000;
  BlockAllocator blocks{{.num_blocks = length, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  std::optional<Sequence> s = committed(blocks, length);
  const auto ids = ids_of(*s);
  publish(blocks, ids);
  SUBCASE("when it dies") {
    s.reset();
    CHECK(reclaimer.became.size() <= walked_at_once);
  }
  SUBCASE("when it is truncated first") {
    s->truncate(length - 5);
    s->truncate(20'000);
    s->truncate(19'990);  // in the chunk that is the last one now
    s->truncate(70);
    s.reset();
  }
  SUBCASE("when a window passes first") {
    s->release_before(10'000);
    blocks.drain();
    CHECK(reclaimer.became == reversed(std::vector(ids.begin(), ids.begin() + 10'000)));
    reclaimer.became.clear();
    s.reset();
    blocks.drain();
    CHECK(reclaimer.became == reversed(std::vector(ids.begin() + 10'000, ids.end())));
    reclaimer.became = reversed(ids);
  }
  SUBCASE("when others die meanwhile") {
    std::optional<Sequence> fork = s->fork();
    s.reset();
    fork.reset();
    while (blocks.has_dead_tables()) blocks.drain(100);
  }
  blocks.drain();
  CHECK((reclaimer.became == reversed(ids)));
  CHECK(blocks.num_idle() == length);
}

TEST_CASE("a shared prefix becomes idle after the continuations of all who shared it") {
  BlockAllocator blocks{{.num_blocks = 40'000, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  std::optional<Sequence> parent = committed(blocks, 9'000);
  const auto prefix = ids_of(*parent);
  std::optional<Sequence> child = parent->fork();
  StepPlan step;
  REQUIRE(parent->append(5'000, step));
  REQUIRE(child->append(7'000, step));
  step.commit();
  const auto longer = ids_of(*parent), other = ids_of(*child);
  publish(blocks, other);
  publish(blocks, {longer.begin() + 9'000, longer.end()});
  SUBCASE("parent first") {
    parent.reset();
    child.reset();
  }
  SUBCASE("child first") {
    child.reset();
    parent.reset();
  }
  blocks.drain();
  REQUIRE(reclaimer.became.size() == 21'000);
  CHECK((std::vector(reclaimer.became.end() - 9'000, reclaimer.became.end()) == reversed(prefix)));
  // of each continuation the deepest first, whoever began
  std::vector<int> place(40'000);
  for (int i = 0; i < 21'000; ++i)
    place[static_cast<std::size_t>(to_index(reclaimer.became[static_cast<std::size_t>(i)]))] = i;
  for (const auto& ids : {longer, other}) {
    bool descending = true;
    for (std::size_t i = 1; i < ids.size(); ++i)
      descending = descending && place[static_cast<std::size_t>(to_index(ids[i]))] <
                                     place[static_cast<std::size_t>(to_index(ids[i - 1]))];
    CHECK(descending);
  }
}

TEST_CASE("behind a long dead parent the last owner of the tail writes in place") {
  constexpr int length = 100'001;  // odd: half of the last block is used
  BlockAllocator blocks{{.num_blocks = 70'000, .block_size = 2}};
  StepPlan step;
  std::optional<Sequence> parent = committed(blocks, length);
  std::optional<Sequence> child;
  SUBCASE("that shared all of its table") {
    child = parent->fork();
    parent.reset();
  }
  SUBCASE("that waits to be walked, with the tail in it") {
    REQUIRE(parent->append(20'000, step));
    child = parent->fork();
    parent.reset();
    CHECK(blocks.has_dead_tables());
    CHECK(blocks.ref_count(child->blocks().back()) == 2);
  }
  SUBCASE("that had a tail of its own") {
    child = parent->fork();
    REQUIRE(parent->append(20'000, step));
    step.commit();
    parent.reset();
    CHECK(blocks.has_dead_tables());
  }
  const BlockId tail = child->blocks().back();
  const int num_rows = step.num_rows();
  REQUIRE(child->append(1, step));
  CHECK(step.copies().empty());
  CHECK(child->blocks().back() == tail);
  CHECK(step.num_rows() == num_rows + 1);
  CHECK(blocks.state(tail) == BlockState::writing);
  step.commit();
  CHECK(blocks.state(tail) == BlockState::sealed);
}

TEST_CASE("a fork is the same work for any length, also where the parent has uncommitted tokens") {
  for (const int length : {1, 100, 200'000}) {
    BlockAllocator blocks{{.num_blocks = 210'000, .block_size = 1}};
    Sequence parent = committed(blocks, length);
    StepPlan step;
    REQUIRE(parent.append(200, step));
    const int used = blocks.num_used();
    {
      const Sequence child = parent.fork();
      CHECK(child.size() == length);
      CHECK(child.blocks().back() == parent.blocks()[static_cast<std::size_t>(length) - 1]);
      CHECK(blocks.num_used() == used);
    }
    blocks.drain();
    CHECK(blocks.num_used() == used);
    bool alone = true;
    for (const BlockId id : ids_of(parent)) alone = alone && blocks.ref_count(id) == 1;
    CHECK(alone);
    step.commit();
  }
}

TEST_CASE("a window, a cut and a fork meet in a table of three levels") {
  constexpr int length = 10'000;
  BlockAllocator blocks{{.num_blocks = 2 * length, .block_size = 1}};
  Sequence s = committed(blocks, length);
  auto expected = ids_of(s);
  s.release_before(4'500);
  std::fill(expected.begin(), expected.begin() + 4'500, BlockId::none);
  Sequence child = s.fork();
  CHECK(ids_of(child) == expected);
  CHECK_THROWS_AS(s.truncate(4'499), InvalidArgument);
  CHECK_THROWS_AS(child.truncate(4'499), InvalidArgument);
  s.truncate(4'500);  // nothing but the window's past is left
  blocks.drain();
  CHECK(ids_of(child) == expected);
  CHECK(blocks.num_used() == length - 4'500);
  StepPlan step;
  REQUIRE(s.append(300, step));
  step.commit();
  CHECK(s.blocks()[4'499] == BlockId::none);
  CHECK(s.blocks()[4'500] != BlockId::none);
  CHECK(s.blocks().size() == 4'800);
  CHECK(ids_of(child) == expected);
  child.release_before(length);
  blocks.drain();
  CHECK(blocks.num_used() == 300);
  REQUIRE(child.append(2, step));
  step.commit();
  CHECK(child.blocks().size() == length + 2);
  Sequence grandchild = child.fork();
  child.truncate(0);
  CHECK(grandchild.blocks()[length] != BlockId::none);
  CHECK(grandchild.blocks()[length - 1] == BlockId::none);
  CHECK(blocks.num_used() == 302);
  blocks.check_invariants();
}

TEST_CASE("a hundred thousand generations die without recursion and leave nothing") {
  BlockAllocator blocks{{.num_blocks = 200'000, .block_size = 2}};
  StepPlan step;
  Sequence youngest = committed(blocks, 1);
  for (int i = 0; i < 100'000; ++i) {
    Sequence child = youngest.fork();
    REQUIRE(child.append(1, step));
    step.commit();
    youngest = std::move(child);
  }
  CHECK(youngest.size() == 100'001);
  CHECK(blocks.num_used() == 50'001);
  youngest.truncate(0);
  blocks.drain();
  CHECK(blocks.num_free() == 200'000);
  blocks.check_invariants();
}

TEST_CASE("dead tables keep the pool's counts exact while they wait") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Random random{seed};
    constexpr int num_blocks = 30'000;
    BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 1}};
    std::vector<Sequence> alive;
    StepPlan step;
    for (int i = 0; i < 60; ++i) {
      if (alive.empty() || random.one_in(3)) {
        Sequence s{blocks};
        if (s.append(random.between(1, 8'000), step)) alive.push_back(std::move(s));
        step.commit();
      } else {
        const auto index = static_cast<std::size_t>(random.between(0, static_cast<int>(alive.size()) - 1));
        if (random.one_in(3)) {
          alive.push_back(alive[index].fork());
        } else if (random.one_in(2)) {
          alive[index].truncate(random.between(0, alive[index].size()));
        } else {
          alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(index));
        }
      }
      blocks.check_invariants();
      CHECK(blocks.num_used() + blocks.num_free() == num_blocks);
    }
    blocks.drain();
    std::vector<bool> named(num_blocks);
    for (const Sequence& s : alive)
      for (const BlockId id : s.blocks()) named[static_cast<std::size_t>(to_index(id))] = true;
    CHECK(blocks.num_used() == std::ranges::count(named, true));
  }
}
