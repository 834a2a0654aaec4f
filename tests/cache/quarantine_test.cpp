// Guards: blocks that other streams still use come back only when those have finished, and only once.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "cache/death.hpp"
#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

bool can_take_one(BlockAllocator& blocks) {
  std::array<BlockId, 1> one{};
  if (!blocks.allocate(one)) return false;
  blocks.release(one);
  return true;
}

}  // namespace

TEST_CASE("a guarded block without owners is quarantined, not available, and free when its fence retires") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(ids, 7);
  CHECK(blocks.state(ids[0]) == BlockState::writing);
  CHECK(blocks.num_quarantined() == 0);
  CHECK(blocks.ref_count(ids[0]) == 1);
  blocks.release(ids);
  CHECK(blocks.state(ids[0]) == BlockState::quarantined);
  CHECK(blocks.num_quarantined() == 1);
  CHECK(blocks.num_used() == 0);
  CHECK(blocks.num_available() == 0);
  blocks.check_invariants();
  const auto before = blocks.state_hash();
  CHECK_FALSE(can_take_one(blocks));
  CHECK(blocks.state_hash() == before);
  blocks.retire(6);
  CHECK(blocks.state_hash() == before);
  blocks.retire(7);
  CHECK(blocks.state(ids[0]) == BlockState::free);
  CHECK(blocks.num_free() == 1);
  CHECK(can_take_one(blocks));
  blocks.check_invariants();
}

TEST_CASE("a block that is released after its fence retired is free at once") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(ids, 7);
  blocks.retire(7);
  CHECK(blocks.state(ids[0]) == BlockState::writing);
  blocks.release(ids);
  CHECK(blocks.num_free() == 1);
  blocks.check_invariants();
}

TEST_CASE("a published block goes from its quarantine to the idle ones") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 1);
  blocks.guard(ids, 1);
  blocks.release(ids);
  CHECK(blocks.state(ids[0]) == BlockState::quarantined);
  CHECK(reclaimer.idle.empty());
  CHECK(blocks.num_available() == 1);
  blocks.retire(1);
  CHECK(blocks.state(ids[0]) == BlockState::idle);
  CHECK(reclaimer.idle == ids);
  CHECK(blocks.num_available() == 2);
  blocks.check_invariants();
}

TEST_CASE("a block that is unpublished in quarantine is free afterwards") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 1);
  blocks.guard(ids, 1);
  blocks.release(ids);
  blocks.unpublish(ids[0]);
  CHECK(blocks.state(ids[0]) == BlockState::quarantined);
  blocks.retire(1);
  CHECK(blocks.state(ids[0]) == BlockState::free);
  CHECK(reclaimer.became.empty());
  blocks.check_invariants();
}

TEST_CASE("an idle block that is guarded is not evictable until the fence retires") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 2);
  blocks.release(ids);
  blocks.guard(std::span(ids).first(1), 3);
  CHECK(blocks.state(ids[0]) == BlockState::quarantined);
  CHECK(reclaimer.idle == std::vector{ids[1]});
  CHECK(blocks.num_available() == 1);
  const auto taken = take(blocks, 1);
  CHECK(taken[0] == ids[1]);
  CHECK_FALSE(can_take_one(blocks));
  blocks.retire(3);
  CHECK(can_take_one(blocks));
  blocks.release(taken);
  blocks.check_invariants();
}

TEST_CASE("guards nest over fences, which may retire in any step") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  const auto ids = take(blocks, 2);
  blocks.guard(ids, 5);
  blocks.guard(ids, 5);
  blocks.guard(std::span(ids).last(1), 9);
  blocks.guard(ids, 2);
  blocks.release(ids);
  blocks.retire(2);
  CHECK(blocks.num_quarantined() == 2);
  blocks.check_invariants();
  blocks.retire(8);
  CHECK(blocks.state(ids[0]) == BlockState::free);
  CHECK(blocks.state(ids[1]) == BlockState::quarantined);
  blocks.retire(9);
  CHECK(blocks.num_free() == 2);
  blocks.check_invariants();
}

TEST_CASE("a block named twice in one guard is guarded twice and comes back once") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(std::array{ids[0], ids[0]}, 1);
  blocks.release(ids);
  blocks.retire(1);
  CHECK(blocks.num_free() == 1);
  blocks.check_invariants();
}

TEST_CASE("retaining a quarantined block revives it, and the fence then takes nothing away") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(ids, 1);
  blocks.release(ids);
  blocks.retain(ids);
  CHECK(blocks.state(ids[0]) == BlockState::writing);
  CHECK(blocks.num_quarantined() == 0);
  blocks.retire(1);
  CHECK(blocks.ref_count(ids[0]) == 1);
  blocks.release(ids);
  CHECK(blocks.num_free() == 1);
  blocks.check_invariants();
}

TEST_CASE("a block whose last owner goes while a copy reads it is quarantined when the copy is made") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(ids, 1);
  blocks.hold(ids[0], 2);
  blocks.release(ids);
  CHECK(blocks.num_used() == 1);
  blocks.drop_hold(ids[0]);
  CHECK(blocks.state(ids[0]) == BlockState::quarantined);
  blocks.retire(1);
  CHECK(blocks.num_free() == 1);
  blocks.check_invariants();
}

TEST_CASE("a copy that still reads a block keeps it when the fence retires first") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  const auto ids = take(blocks, 1);
  blocks.guard(ids, 1);
  blocks.hold(ids[0], 2);
  blocks.release(ids);
  blocks.retire(1);
  CHECK(blocks.num_used() == 1);
  CHECK(blocks.num_frozen_rows(ids[0]) == 2);
  blocks.drop_hold(ids[0]);
  CHECK(blocks.num_free() == 1);
  blocks.check_invariants();
}

TEST_CASE("blocks come out of quarantine deepest first") {
  BlockAllocator blocks{{.num_blocks = 6, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  const auto ids = take_published(blocks, 6);
  blocks.guard(std::span(ids).first(3), 1);
  blocks.guard(std::span(ids).last(3), 1);
  blocks.release(ids);
  blocks.retire(1);
  CHECK(std::ranges::equal(reclaimer.became, std::vector(ids.rbegin(), ids.rend())));
}

TEST_CASE("blocks that are nobody's cannot be guarded, and nothing changes") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  const auto ids = take(blocks, 2);
  blocks.release(std::span(ids).last(1));
  const auto before = blocks.state_hash();
  for (const BlockId wrong : {ids[1], BlockId{3}, BlockId{4}, BlockId::none})
    CHECK_THROWS_AS(blocks.guard(std::array{ids[0], wrong}, 1), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  blocks.release(std::span(ids).first(1));
  CHECK(blocks.num_free() == 4);
}

TEST_CASE("a table of any length can be guarded at once") {
  constexpr int num_blocks = 70'000;
  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 1}};
  const auto ids = take(blocks, num_blocks);
  blocks.guard(ids, 1);
  blocks.release(ids);
  CHECK(blocks.num_quarantined() == num_blocks);
  blocks.retire(1);
  CHECK(blocks.num_free() == num_blocks);
}

TEST_CASE("65,535 guards of one block are the most, and one more changes nothing") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  const auto ids = take(blocks, 1);
  for (int i = 0; i < 65'535; i += 3) blocks.guard(std::array{ids[0], ids[0], ids[0]}, 1);
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(blocks.guard(ids, 1), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  blocks.release(ids);
  CHECK(blocks.num_quarantined() == 1);
  blocks.retire(1);
  CHECK(blocks.num_free() == 1);
}

TEST_CASE("with 1 to 3 steps in flight a block is withheld until the newest of them retires") {
  for (int depth = 1; depth <= 3; ++depth) {
    constexpr int num_blocks = 4;
    BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 1}};
    Fence now = 0;
    std::vector<std::vector<BlockId>> running;  // the newest step last
    for (int round = 0; round < 50; ++round) {
      ++now;
      std::vector<BlockId> mine(1);
      if (blocks.allocate(mine)) {
        for (const auto& others : running) CHECK(others[0] != mine[0]);
        blocks.guard(mine, now);
        blocks.release(mine);  // the request was aborted while its step runs
        running.push_back(mine);
      }
      CHECK(blocks.num_quarantined() == std::ssize(running));
      CHECK(blocks.num_available() == num_blocks - std::ssize(running));
      if (std::ssize(running) == depth) {
        blocks.retire(now + 1 - static_cast<Fence>(depth));
        running.erase(running.begin());
      }
      blocks.check_invariants();
    }
    blocks.retire(now);
    CHECK(blocks.num_free() == num_blocks);
  }
}

TEST_CASE("preempting the running ones does not help while their step runs, and the counts say so") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 2}};
  Sequence victim = committed(blocks, 4), other = committed(blocks, 4);
  blocks.guard(ids_of(victim), 1);
  blocks.guard(ids_of(other), 1);
  StepPlan step;
  Sequence wanted{blocks};
  victim.truncate(0);
  other.truncate(0);
  CHECK(blocks.num_used() == 0);
  CHECK(blocks.num_quarantined() == 4);
  CHECK(blocks.num_available() == 0);
  CHECK_FALSE(wanted.append(1, step));
  blocks.retire(1);
  CHECK(wanted.append(8, step));
  step.commit();
}

TEST_CASE("a window that slides while a step runs withholds its blocks, each of them once") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence s = committed(blocks, 12);
  const auto ids = ids_of(s);
  blocks.guard(ids, 1);
  s.release_before(6);
  CHECK(blocks.num_quarantined() == 3);
  CHECK(blocks.num_available() == 2);
  const auto taken = take(blocks, 2);
  for (const BlockId id : taken) CHECK(std::ranges::find(ids, id) == ids.end());
  blocks.release(taken);
  blocks.retire(1);
  CHECK(blocks.num_available() == 5);
  s.truncate(0);
  const auto all = take(blocks, 8);
  for (const BlockId id : all) CHECK(std::ranges::count(all, id) == 1);
  blocks.release(all);
}

TEST_CASE("a pool that dies while blocks are guarded says so") {
  CHECK(dies([] {
    BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
    std::array<BlockId, 1> one{};
    static_cast<void>(blocks.allocate(one));
    blocks.guard(one, 1);
    blocks.release(one);
  }));
}

TEST_CASE("owners, holds and guards come and go in any order, and each block is where they say") {
  struct Block {
    BlockId id;
    int owners, holds;
    std::vector<Fence> guards;
    bool published;
  };
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random random{seed};
    BlockAllocator blocks{{.num_blocks = 6, .block_size = 4}};
    std::vector<Block> all;
    Fence now = 0;
    {
      FakeReclaimer reclaimer{blocks};
      for (const BlockId id : take(blocks, 6)) {
        const bool published = random.one_in(2);
        blocks.seal(id);
        if (published) blocks.publish(id);
        all.push_back({id, 1, 0, {}, published});
      }
      for (int i = 0; i < 400; ++i) {
        Block& b = all[static_cast<std::size_t>(random.between(0, 5))];
        const std::array id{b.id};
        const bool is_live = b.owners + b.holds > 0 || !b.guards.empty() || b.published;
        const int operation = random.between(0, 5);
        if (operation == 0 && is_live) {
          blocks.retain(id);
          ++b.owners;
        } else if (operation == 1 && b.owners > 0) {
          blocks.release(id);
          --b.owners;
        } else if (operation == 2 && is_live) {
          blocks.hold(b.id, 1);
          ++b.holds;
        } else if (operation == 3 && b.holds > 0) {
          blocks.drop_hold(b.id);
          --b.holds;
        } else if (operation == 4 && is_live) {
          b.guards.push_back(++now + static_cast<Fence>(random.between(0, 9)));
          blocks.guard(id, b.guards.back());
        } else if (operation == 5) {
          const Fence fence = ++now;
          blocks.retire(fence);
          for (Block& other : all) std::erase_if(other.guards, [fence](Fence f) { return f <= fence; });
        }
        for (const Block& other : all) {
          REQUIRE(blocks.ref_count(other.id) == other.owners);
          const BlockState state = blocks.state(other.id);
          if (other.owners + other.holds > 0) {
            REQUIRE(state == (other.published ? BlockState::active : BlockState::sealed));
          } else if (!other.guards.empty()) {
            REQUIRE(state == BlockState::quarantined);
          } else {
            REQUIRE(state == (other.published ? BlockState::idle : BlockState::free));
          }
          REQUIRE(blocks.is_idle(other.id) == (std::ranges::count(reclaimer.idle, other.id) == 1));
        }
        blocks.check_invariants();
      }
      for (const Block& b : all) {
        for (int i = 0; i < b.owners; ++i) blocks.release(std::array{b.id});
        for (int i = 0; i < b.holds; ++i) blocks.drop_hold(b.id);
      }
      blocks.retire(now + 10);
    }
    CHECK(blocks.num_free() == 6);
  }
}
