// BlockAllocator: every block is in one place, counts are exact, and a wrong call changes nothing.
#include "pagedkv/cache/block_allocator.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "cache/death.hpp"
#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("all blocks can be had, each once, and then no more") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 16}};
  const auto ids = take(blocks, 8);
  CHECK(std::set(ids.begin(), ids.end()).size() == 8);
  CHECK(blocks.num_free() == 0);
  const auto before = blocks.state_hash();
  std::array<BlockId, 1> one{};
  CHECK_FALSE(blocks.allocate(one));
  CHECK(blocks.state_hash() == before);
  blocks.release(ids);
  CHECK(blocks.num_free() == 8);
  blocks.check_invariants();
}

TEST_CASE("an allocation that is too large takes nothing") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 2);
  const auto before = blocks.state_hash();
  std::array<BlockId, 3> three{};
  CHECK_FALSE(blocks.allocate(three));
  CHECK(blocks.state_hash() == before);
  blocks.release(ids);
}

TEST_CASE("the block freed last is handed out first") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 3);
  blocks.release(ids);  // deepest first, so the first block is freed last
  const auto again = take(blocks, 4);
  CHECK(again == std::vector{ids[0], ids[1], ids[2], BlockId{3}});
  blocks.release(again);
}

TEST_CASE("a block comes home with its last owner") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 1}};
  const auto ids = take(blocks, 1);
  blocks.retain(ids);
  CHECK(blocks.ref_count(ids[0]) == 2);
  blocks.release(ids);
  CHECK(blocks.num_used() == 1);
  blocks.release(ids);
  CHECK(blocks.num_used() == 0);
}

TEST_CASE("a double free is refused before any change") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 2);
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(blocks.release(std::array{ids[0], ids[1], ids[0]}), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  blocks.release(ids);
  CHECK_THROWS_AS(blocks.release(ids), InvalidArgument);
  CHECK_THROWS_AS(blocks.retain(ids), InvalidArgument);
  blocks.check_invariants();
}

TEST_CASE("a block named twice in one release gives back two references") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 1);
  blocks.retain(ids);
  blocks.release(std::array{ids[0], ids[0]});
  CHECK(blocks.num_free() == 4);
  blocks.check_invariants();
}

TEST_CASE("a foreign id is refused before any change") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 1);
  const auto before = blocks.state_hash();
  for (const BlockId foreign : {BlockId::none, BlockId{2}, BlockId{4}, BlockId{std::numeric_limits<int>::max()}}) {
    CHECK_THROWS_AS(blocks.release(std::array{ids[0], foreign}), InvalidArgument);
    CHECK_THROWS_AS(blocks.retain(std::array{ids[0], foreign}), InvalidArgument);
    CHECK_THROWS_AS(blocks.hold(foreign, 1), InvalidArgument);
    CHECK_THROWS_AS(blocks.drop_hold(foreign), InvalidArgument);
    CHECK_THROWS_AS(blocks.publish(foreign), InvalidArgument);
    CHECK_THROWS_AS(blocks.unpublish(foreign), InvalidArgument);
    CHECK(blocks.ref_count(foreign) == 0);
  }
  CHECK(blocks.state_hash() == before);
  blocks.release(ids);
}

TEST_CASE("an error names the block, what was expected and what was given") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 1}};
  const auto ids = take(blocks, 1);
  blocks.release(ids);
  try {
    blocks.release(ids);
    FAIL("no error");
  } catch (const InvalidArgument& error) {
    CHECK(std::string(error.what()).find("release: block 0: an owner expected, none left given") != std::string::npos);
  }
}

TEST_CASE("a hold keeps the rows of a block without owners until it is dropped") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 8}};
  const auto ids = take(blocks, 1);
  blocks.hold(ids[0], 3);
  blocks.hold(ids[0], 5);
  CHECK(blocks.num_frozen_rows(ids[0]) == 5);
  blocks.release(ids);
  std::array<BlockId, 1> one{};
  CHECK_FALSE(blocks.allocate(one));
  blocks.drop_hold(ids[0]);
  CHECK(blocks.num_used() == 1);
  CHECK_THROWS_AS(blocks.release(ids), InvalidArgument);  // a hold is no owner
  blocks.drop_hold(ids[0]);
  CHECK(blocks.num_free() == 1);
  CHECK_THROWS_AS(blocks.drop_hold(ids[0]), InvalidArgument);
  blocks.check_invariants();
}

TEST_CASE("two billion blocks cost nothing until they are used") {
  BlockAllocator blocks{{.num_blocks = std::numeric_limits<std::int32_t>::max() - 1, .block_size = 16}};
  const auto ids = take(blocks, 1000);
  CHECK(blocks.num_free() == std::numeric_limits<std::int32_t>::max() - 1 - 1000);
  blocks.release(ids);
}

TEST_CASE("a pool without blocks or rows is refused") {
  CHECK_THROWS_AS((BlockAllocator{{.num_blocks = 0, .block_size = 16}}), InvalidArgument);
  CHECK_THROWS_AS((BlockAllocator{{.num_blocks = -1, .block_size = 16}}), InvalidArgument);
  CHECK_THROWS_AS((BlockAllocator{{.num_blocks = 16, .block_size = 0}}), InvalidArgument);
}

TEST_CASE("one block can be taken and given back a million times") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  std::array<BlockId, 1> one{};
  bool all = true;
  for (int i = 0; i < 1'000'000; ++i) {
    all = blocks.allocate(one) && all;
    blocks.release(one);
  }
  CHECK(all);
  blocks.check_invariants();
}

TEST_CASE("nothing can be published without a prefix cache") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  const auto ids = take(blocks, 1);
  CHECK_THROWS_AS(blocks.publish(ids[0]), InvalidArgument);
  blocks.release(ids);
}

TEST_CASE("an allocator that dies before its blocks came home says so") {
  CHECK(dies([] {
    BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
    std::array<BlockId, 1> one{};
    static_cast<void>(blocks.allocate(one));
  }));
}

TEST_CASE("blocks that are published wait in the order in which they were released, the last one of a batch first") {
  BlockAllocator blocks{{.num_blocks = 200, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 150);
  blocks.release(std::span(ids).first(100));
  blocks.release(std::span(ids).last(50));
  std::vector<BlockId> expected(ids.rbegin() + 50, ids.rend());
  expected.insert(expected.end(), ids.rbegin(), ids.rbegin() + 50);
  CHECK(reclaimer.became == expected);
  CHECK(blocks.num_idle() == 150);
  CHECK(blocks.num_available() == 200);
  blocks.check_invariants();
}

TEST_CASE("idle blocks are evicted when free ones run out, as many as are missing, the longest idle first") {
  BlockAllocator blocks{{.num_blocks = 6, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 4);
  blocks.release(ids);
  const auto two = take(blocks, 2);
  CHECK(reclaimer.num_evicted == 0);
  const auto three = take(blocks, 3);
  CHECK(reclaimer.num_evicted == 3);
  CHECK(std::set(three.begin(), three.end()) == std::set{ids[1], ids[2], ids[3]});
  CHECK(blocks.state(ids[0]) == BlockState::idle);
  const auto before = blocks.state_hash();
  std::array<BlockId, 2> more{};
  CHECK_FALSE(blocks.allocate(more));
  CHECK(blocks.state_hash() == before);
  CHECK(reclaimer.num_evicted == 3);
  blocks.release(two);
  blocks.release(three);
}

TEST_CASE("a revived block has left the idle ones, and comes back with its next release") {
  BlockAllocator blocks{{.num_blocks = 3, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 3);
  blocks.release(ids);
  blocks.retain(std::array{ids[2]});
  CHECK(reclaimer.idle == std::vector{ids[1], ids[0]});
  CHECK(blocks.state(ids[2]) == BlockState::active);
  CHECK(blocks.num_available() == 2);
  blocks.release(std::array{ids[2]});
  CHECK(reclaimer.idle == std::vector{ids[1], ids[0], ids[2]});
  blocks.check_invariants();
}

TEST_CASE("a block that is unpublished while it has owners is free after them, an idle one at once") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 2);
  blocks.unpublish(ids[0]);
  CHECK(blocks.state(ids[0]) == BlockState::sealed);
  blocks.release(ids);
  CHECK(blocks.state(ids[0]) == BlockState::free);
  CHECK(blocks.state(ids[1]) == BlockState::idle);
  blocks.unpublish(ids[1]);
  CHECK(blocks.state(ids[1]) == BlockState::free);
  CHECK(reclaimer.idle.empty());
  CHECK_THROWS_AS(blocks.unpublish(ids[1]), InvalidArgument);
  blocks.check_invariants();
}

TEST_CASE("only full and committed blocks are published, and a block that is used again is neither") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  for (int i = 0; i < 3; ++i) {
    const auto ids = take(blocks, 1);
    CHECK(blocks.state(ids[0]) == BlockState::writing);
    CHECK_FALSE(blocks.is_published(ids[0]));
    CHECK_THROWS_AS(blocks.publish(ids[0]), InvalidArgument);
    blocks.seal(ids[0]);
    CHECK(blocks.state(ids[0]) == BlockState::sealed);
    if (i > 0) blocks.publish(ids[0]);
    blocks.release(ids);
    CHECK(blocks.state(ids[0]) == (i > 0 ? BlockState::idle : BlockState::free));
  }
}

TEST_CASE("one block can be published, evicted and used again a million times") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  FakeReclaimer reclaimer{blocks};
  std::array<BlockId, 1> one{};
  bool all = true;
  for (int i = 0; i < 1'000'000; ++i) {
    all = blocks.allocate(one) && all;
    blocks.seal(one[0]);
    blocks.publish(one[0]);
    blocks.release(one);
    reclaimer.became.clear();
  }
  CHECK(all);
  CHECK(reclaimer.num_evicted == 999'999);
  blocks.check_invariants();
}

TEST_CASE("an allocator has one reclaimer at a time") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  {
    FakeReclaimer reclaimer{blocks};
    CHECK_THROWS_AS(FakeReclaimer{blocks}, InvalidArgument);
  }
  FakeReclaimer reclaimer{blocks};
  CHECK(blocks.num_free() == 1);
}

TEST_CASE("an allocator that dies before its reclaimer says so") {
  CHECK(dies([] {
    const auto evict = [](void*, int) {};
    BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
    blocks.install({.context = nullptr, .became_idle = nullptr, .left_idle = nullptr, .evict = evict});
  }));
}
