// The users of a block: owners, holds and guards, one by one, in batches and up to the most; a refusal changes nothing.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cache/fake_reclaimer.hpp"
#include "cache/sequences.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("a release that is refused half-way gives everything back to its owners: free, published, held and guarded") {
  BlockAllocator blocks{{.num_blocks = 300, .block_size = 4}};
  FakeReclaimer reclaimer{blocks};
  const auto idle = take_published(blocks, 2), published = take_published(blocks, 150), plain = take(blocks, 100);
  const auto shared = take(blocks, 3);
  blocks.release(idle);
  blocks.seal(plain[0]);
  blocks.hold(plain[1], 3);
  blocks.hold(published[1], 2);
  blocks.guard(std::array{plain[2], published[2]}, 9);
  blocks.retain(shared);
  std::vector<BlockId> batch;
  const auto add = [&batch](const std::vector<BlockId>& ids) { batch.insert(batch.end(), ids.begin(), ids.end()); };
  add(shared);
  add(published);
  add(plain);
  add(shared);
  const auto before = blocks.state_hash();
  const auto idle_before = reclaimer.idle;
  for (const BlockId wrong : {shared[0], published[0], published[1], plain[0], plain[1], plain[2], published[2],
                              idle[0], BlockId{299}, BlockId{300}, BlockId::none}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{3}, batch.size() / 2, batch.size()}) {
      CAPTURE(to_index(wrong));
      CAPTURE(place);
      std::vector<BlockId> with = batch;
      with.insert(with.begin() + static_cast<std::ptrdiff_t>(place), wrong);
      CHECK_THROWS_AS(blocks.release(with), InvalidArgument);
      CHECK(blocks.state_hash() == before);
      CHECK(reclaimer.idle == idle_before);
      blocks.check_invariants();
    }
  }
  blocks.release(batch);
  CHECK(blocks.num_idle() == 2 + 148);  // two are held and guarded
  CHECK(blocks.num_quarantined() == 2);
  CHECK(blocks.num_used() == 2);
  blocks.drop_hold(plain[1]);
  blocks.drop_hold(published[1]);
  blocks.retire(9);
  blocks.check_invariants();
}

TEST_CASE("what pins a block cannot be released in place of an owner") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
  const auto ids = take(blocks, 16);
  for (const BlockId id : ids) blocks.hold(id, 1);
  blocks.guard(ids, 1);
  blocks.release(ids);
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(blocks.release(ids), InvalidArgument);
  for (const BlockId id : ids) blocks.drop_hold(id);
  CHECK_THROWS_AS(blocks.release(ids), InvalidArgument);
  for (const BlockId id : ids) blocks.hold(id, 1);
  CHECK(blocks.state_hash() == before);
  blocks.retire(1);
  CHECK_THROWS_AS(blocks.release(ids), InvalidArgument);
  for (const BlockId id : ids) blocks.drop_hold(id);
  CHECK(blocks.num_free() == 16);
  blocks.check_invariants();
}

TEST_CASE("a batch of blocks is as good as its blocks one by one, whatever lies between them") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    constexpr int num_blocks = 100;
    BlockAllocator batched{{.num_blocks = num_blocks, .block_size = 4}},
        single{{.num_blocks = num_blocks, .block_size = 4}};
    FakeReclaimer batched_idle{batched}, single_idle{single};
    std::vector<std::vector<BlockId>> owned;
    for (int i = 0; i < 60; ++i) {
      if (owned.empty() || random.one_in(2)) {
        std::vector<BlockId> ids(static_cast<std::size_t>(random.between(1, 40))), same(ids.size());
        const bool fits = batched.allocate(ids);
        REQUIRE(single.allocate(same) == fits);
        if (!fits) continue;
        REQUIRE(ids == same);
        for (BlockAllocator* const blocks : {&batched, &single}) {
          for (const BlockId id : ids) {
            REQUIRE(blocks->ref_count(id) == 1);
            REQUIRE(blocks->state(id) == BlockState::writing);
          }
        }
        for (int marks = random.between(0, 3); marks > 0; --marks) {
          const BlockId id = ids[static_cast<std::size_t>(random.between(0, static_cast<int>(ids.size()) - 1))];
          const int kind = random.between(0, 3);
          for (BlockAllocator* const blocks : {&batched, &single}) {
            blocks->seal(id);
            if (kind == 1) blocks->publish(id);
            if (kind == 2) blocks->hold(id, 1);
            if (kind == 3) blocks->guard(std::array{id}, static_cast<Fence>(i + 9));
          }
        }
        if (random.one_in(4)) std::swap(ids.front(), ids[ids.size() / 2]);
        owned.push_back(ids);
      } else {
        const auto chosen = owned.begin() + random.between(0, static_cast<int>(owned.size()) - 1);
        if (random.one_in(3)) {
          batched.retain(*chosen);
          for (const BlockId id : *chosen) single.retain(std::array{id});
          owned.push_back(*chosen);
        } else {
          batched.release(*chosen);
          for (auto id = chosen->rbegin(); id != chosen->rend(); ++id) single.release(std::array{*id});
          owned.erase(chosen);
        }
      }
      batched.retire(static_cast<Fence>(i));
      single.retire(static_cast<Fence>(i));
      REQUIRE(batched.state_hash() == single.state_hash());
      REQUIRE(batched_idle.idle == single_idle.idle);
      batched.check_invariants();
    }
    for (BlockAllocator* const blocks : {&batched, &single}) {
      for (const auto& ids : owned) blocks->release(ids);
      blocks->retire(1000);
      for (int i = 0; i < num_blocks; ++i) {
        const BlockId id{i};
        while (blocks->state(id) != BlockState::free && blocks->state(id) != BlockState::idle) blocks->drop_hold(id);
      }
    }
  }
}

TEST_CASE("holds nest, and the most rows that any of them reads count until the last is dropped") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 8}};
  const auto ids = take(blocks, 1);
  CHECK(blocks.num_frozen_rows(ids[0]) == 0);
  blocks.hold(ids[0], 5);
  blocks.hold(ids[0], 3);
  blocks.drop_hold(ids[0]);
  CHECK(blocks.num_frozen_rows(ids[0]) == 5);
  CHECK(blocks.ref_count(ids[0]) == 1);
  blocks.drop_hold(ids[0]);
  CHECK(blocks.num_frozen_rows(ids[0]) == 0);
  blocks.hold(ids[0], 2);
  CHECK(blocks.num_frozen_rows(ids[0]) == 2);
  blocks.drop_hold(ids[0]);
  blocks.release(ids);
  CHECK_THROWS_AS(static_cast<void>(blocks.num_frozen_rows(ids[0])), InvalidArgument);
  CHECK(blocks.num_free() == 1);
}

TEST_CASE("65,535 holds of one block are the most, and one more changes nothing") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 8}};
  const auto ids = take(blocks, 1);
  for (int i = 0; i < 65'535; ++i) blocks.hold(ids[0], 1);
  const auto before = blocks.state_hash();
  CHECK_THROWS_AS(blocks.hold(ids[0], 8), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  for (int i = 0; i < 65'535; ++i) blocks.drop_hold(ids[0]);
  blocks.release(ids);
  CHECK(blocks.num_free() == 1);
}

TEST_CASE("2^27 - 1 owners of one block are the most, and one more changes nothing") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  const auto ids = take(blocks, 1);
  const std::vector<BlockId> many((1 << 20) - 1, ids[0]);
  std::int64_t owners = 1;
  while (owners + std::ssize(many) < 1 << 27) {
    blocks.retain(many);
    owners += std::ssize(many);
  }
  CHECK_THROWS_AS(blocks.retain(many), InvalidArgument);
  while (owners < (1 << 27) - 1) {
    blocks.retain(ids);
    ++owners;
  }
  const auto before = blocks.state_hash();
  CHECK(blocks.ref_count(ids[0]) == (1 << 27) - 1);
  CHECK_THROWS_AS(blocks.retain(ids), InvalidArgument);
  CHECK(blocks.state_hash() == before);
  for (; owners > std::ssize(many); owners -= std::ssize(many)) blocks.release(many);
  blocks.release(std::span(many).first(static_cast<std::size_t>(owners)));
  CHECK(blocks.num_free() == 1);
}
