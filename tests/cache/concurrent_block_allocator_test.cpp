// ConcurrentBlockAllocator: blocks change hands between threads, none twice, none lost; no refusal comes too early.
#include "pagedkv/cache/concurrent_block_allocator.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/death.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using pagedkv_test::Random;
using Magazine = ConcurrentBlockAllocator::Magazine;

namespace {

std::vector<BlockId> take(Magazine& magazine, std::size_t count) {
  std::vector<BlockId> ids(count);
  REQUIRE(magazine.allocate(ids));
  return ids;
}

std::vector<BlockId> ids_below(int end) {
  std::vector<BlockId> ids;
  for (int i = 0; i < end; ++i) ids.push_back(BlockId{i});
  return ids;
}

std::vector<std::int32_t> ref_counts(const ConcurrentBlockAllocator& blocks) {
  std::vector<std::int32_t> counts;
  for (int i = 0; i < blocks.num_blocks(); ++i) counts.push_back(blocks.ref_count(BlockId{i}));
  return counts;
}

template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

template <class Body>
void on_threads(int num_threads, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("all blocks can be had, each once, and then no more") {
  for (const int num_blocks : {1, 63, 64, 65, 128, 129, 1000}) {
    ConcurrentBlockAllocator blocks{num_blocks};
    Magazine mine{blocks};
    std::vector<BlockId> ids;
    for (int i = 0; i < num_blocks; ++i) ids.push_back(take(mine, 1)[0]);
    CHECK(std::set(ids.begin(), ids.end()).size() == ids.size());
    CHECK(*std::max_element(ids.begin(), ids.end()) == BlockId{num_blocks - 1});
    std::array<BlockId, 1> one{BlockId{7}};
    CHECK_FALSE(mine.allocate(one));
    CHECK(one[0] == BlockId{7});
    CHECK(blocks.num_available() == 0);
    mine.release(ids);
    CHECK(blocks.num_available() == num_blocks);
    blocks.check_invariants();
  }
}

TEST_CASE("an allocation that is too large takes nothing, one that just fits takes all") {
  ConcurrentBlockAllocator blocks{200};
  Magazine mine{blocks};
  const auto some = take(mine, 30);
  const auto before = ref_counts(blocks);
  std::vector<BlockId> ids(171);
  CHECK_FALSE(mine.allocate(ids));
  std::vector<BlockId> never_fits(201);
  CHECK_FALSE(mine.allocate(never_fits));
  CHECK(blocks.num_available() == 170);
  CHECK(ref_counts(blocks) == before);
  blocks.check_invariants();
  ids.resize(170);
  CHECK(mine.allocate(ids));
  CHECK(blocks.num_available() == 0);
  mine.release(ids);
  mine.release(some);
}

TEST_CASE("the block freed last is handed out first, and new ids come in their order") {
  ConcurrentBlockAllocator blocks{1000};
  Magazine mine{blocks};
  const auto ids = take(mine, 300);
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(to_index(ids[i]) == static_cast<int>(i));
  mine.release(ids);
  CHECK(take(mine, 300) == ids);
  mine.release(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(take(mine, 1)[0] == ids[i]);
  mine.release(ids);
}

TEST_CASE("a block comes home with its last owner, whichever magazine that one uses") {
  ConcurrentBlockAllocator blocks{4};
  Magazine mine{blocks}, yours{blocks};
  const auto ids = take(mine, 1);
  yours.retain(ids);
  CHECK(blocks.ref_count(ids[0]) == 2);
  mine.release(ids);
  CHECK(blocks.ref_count(ids[0]) == 1);
  CHECK(blocks.num_available() == 3);
  yours.release(ids);
  CHECK(blocks.ref_count(ids[0]) == 0);
  CHECK(blocks.num_available() == 4);
}

TEST_CASE("blocks that lie in the stocks of others are found before a request is refused") {
  ConcurrentBlockAllocator blocks{640};
  std::vector<Magazine> magazines;
  for (int i = 0; i < 10; ++i) magazines.emplace_back(blocks);
  std::vector<std::vector<BlockId>> taken;
  for (Magazine& magazine : magazines) taken.push_back(take(magazine, 64));
  for (std::size_t i = 0; i < 10; ++i)
    magazines[i].release(taken[i]);  // now 64 lie in each stock, and none in the depot
  CHECK(blocks.num_available() == 640);
  std::vector<BlockId> all(640);
  REQUIRE(magazines[3].allocate(all));
  CHECK(std::set(all.begin(), all.end()).size() == 640);
  std::array<BlockId, 1> one{};
  CHECK_FALSE(magazines[4].allocate(one));
  magazines[3].release(std::span(all).last(1));
  CHECK(magazines[4].allocate(one));
  CHECK(one[0] == all.back());
  magazines[3].release(std::span(all).first(639));
  magazines[3].release(one);
  blocks.check_invariants();
}

TEST_CASE("a refused request leaves the stocks of others where they are") {
  ConcurrentBlockAllocator blocks{192};
  Magazine mine{blocks}, yours{blocks}, theirs{blocks};
  const auto ids = take(mine, 64), your_ids = take(yours, 64), their_ids = take(theirs, 64);
  yours.release(your_ids);
  theirs.release(their_ids);
  std::vector<BlockId> one_too_many(129);
  CHECK_FALSE(mine.allocate(one_too_many));
  CHECK(take(theirs, 64) == their_ids);
  CHECK(take(yours, 64) == your_ids);
  yours.release(your_ids);
  theirs.release(their_ids);
  mine.release(ids);
}

TEST_CASE("a double free is refused before any change") {
  ConcurrentBlockAllocator blocks{1000};
  Magazine mine{blocks}, yours{blocks};
  const auto ids = take(mine, 300);
  yours.retain(std::span(ids).first(2));
  const auto before = ref_counts(blocks);
  auto wrong = ids;
  wrong.push_back(ids[0]);
  wrong.push_back(ids[0]);  // named three times, owned twice
  CHECK_THROWS_AS(mine.release(wrong), InvalidArgument);
  CHECK(ref_counts(blocks) == before);
  blocks.check_invariants();
  mine.release(std::array{ids[0], ids[1]});
  mine.release(ids);
  const auto freed = ref_counts(blocks);
  CHECK_THROWS_AS(mine.release(ids), InvalidArgument);
  CHECK_THROWS_AS(yours.release(ids), InvalidArgument);
  CHECK_THROWS_AS(yours.retain(ids), InvalidArgument);
  CHECK(ref_counts(blocks) == freed);
  CHECK(blocks.num_available() == 1000);
  blocks.check_invariants();
}

TEST_CASE("a block named twice in one release gives back two references") {
  ConcurrentBlockAllocator blocks{4};
  Magazine mine{blocks};
  const auto ids = take(mine, 1);
  mine.retain(ids);
  mine.release(std::array{ids[0], ids[0]});
  CHECK(blocks.num_available() == 4);
  blocks.check_invariants();
}

TEST_CASE("a foreign id is refused before any change") {
  ConcurrentBlockAllocator blocks{200};
  Magazine mine{blocks};
  const auto ids = take(mine, 1);
  for (const int foreign : {-1, 1, 199, 200, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    CHECK_THROWS_AS(mine.release(std::array{ids[0], BlockId{foreign}}), InvalidArgument);
    CHECK_THROWS_AS(mine.retain(std::array{ids[0], BlockId{foreign}}), InvalidArgument);
    CHECK(blocks.ref_count(BlockId{foreign}) == 0);
    CHECK(blocks.ref_count(ids[0]) == 1);
  }
  mine.release(ids);
  CHECK_THROWS_AS(ConcurrentBlockAllocator{0}, InvalidArgument);
  CHECK_THROWS_AS(ConcurrentBlockAllocator{-5}, InvalidArgument);
}

TEST_CASE("an error names the block, what was expected and what was given") {
  ConcurrentBlockAllocator blocks{4};
  Magazine mine{blocks};
  const auto ids = take(mine, 1);
  mine.release(ids);
  CHECK(error_of([&] { mine.release(ids); }).find("release: block 0: an owner expected, 0 given") != std::string::npos);
  CHECK(error_of([&] {
          mine.retain(std::array{BlockId{9}});
        }).find("block 9: 1 .. 2147483646 owners expected, a foreign") != std::string::npos);
}

TEST_CASE("a magazine can be moved, and its ids outlive it") {
  ConcurrentBlockAllocator blocks{100};
  {
    Magazine first{blocks};
    const auto ids = take(first, 10);
    Magazine second{std::move(first)};
    CHECK(error_of([&] { first.release(ids); }).find("a moved-from one given") != std::string::npos);
    Magazine third{blocks};
    third.release(ids);
    third = std::move(second);
    CHECK_THROWS_AS(second.retain(ids), InvalidArgument);
    CHECK(blocks.num_available() == 100);
    third = Magazine{blocks};
    Magazine& same = third;
    third = std::move(same);  // must not lose the stock
    CHECK(take(third, 100).size() == 100);
  }
  Magazine fourth{blocks};
  fourth.release(ids_below(100));
  CHECK(take(fourth, 100).size() == 100);
  fourth.release(ids_below(100));
}

TEST_CASE("neither a block nor a magazine may outlive its allocator") {
  CHECK(pagedkv_test::dies([] {
    std::optional<ConcurrentBlockAllocator> blocks{4};
    Magazine mine{*blocks};
    blocks.reset();
  }));
  CHECK(pagedkv_test::dies([] {
    ConcurrentBlockAllocator blocks{4};
    Magazine mine{blocks};
    static_cast<void>(take(mine, 1));
  }));
}

TEST_CASE("a pool of ten million blocks hands out all of them") {
  ConcurrentBlockAllocator blocks{10'000'000};
  Magazine mine{blocks};
  const auto first = take(mine, 1);
  const auto rest = take(mine, 9'999'999);
  CHECK(rest.back() == BlockId{9'999'999});
  CHECK(blocks.num_available() == 0);
  mine.release(rest);
  mine.release(first);
  blocks.check_invariants();
}

// Threads take blocks, share them, hand them to each other and free what others took. The test keeps its own count of
// owners, and a note per block that each new owner writes without any lock: ThreadSanitizer sees if the work of one
// owner does not happen before the next one's; hence the test's own atomics order nothing.
TEST_CASE("no block is handed out twice and none is lost, whoever frees it") {
  for (const int num_threads : {1, 2, 4, 8, 16}) {
    for (const int num_blocks : {40, 5000}) {
      CAPTURE(num_threads);
      CAPTURE(num_blocks);
      ConcurrentBlockAllocator blocks{num_blocks};
      std::vector<std::atomic<int>> owners(static_cast<std::size_t>(num_blocks));
      std::vector<int> notes(static_cast<std::size_t>(num_blocks));
      struct Mailbox {
        std::mutex mutex;
        std::vector<BlockId> ids;
      };
      std::vector<Mailbox> mailboxes(static_cast<std::size_t>(num_threads));
      std::atomic<int> num_wrong{0}, num_refused{0};
      on_threads(num_threads, [&](int me) {
        Magazine mine{blocks};
        Random random{static_cast<std::uint64_t>(me)};
        std::vector<BlockId> held;
        const auto at = [](BlockId id) { return static_cast<std::size_t>(to_index(id)); };
        const auto let_go = [&](std::size_t count) {
          const std::span last = std::span(held).last(count);
          for (const BlockId id : last)
            num_wrong += notes[at(id)] != to_index(id) || owners[at(id)].fetch_sub(1, std::memory_order_relaxed) < 1;
          mine.release(last);
          held.resize(held.size() - count);
        };
        for (int round = 0; round < 4000 / num_threads; ++round) {
          std::vector<BlockId> fresh(static_cast<std::size_t>(random.between(1, random.one_in(10) ? 300 : 20)));
          if (mine.allocate(fresh)) {
            for (const BlockId id : fresh) {
              num_wrong += owners[at(id)].fetch_add(1, std::memory_order_relaxed) != 0;
              notes[at(id)] = to_index(id);
            }
            held.insert(held.end(), fresh.begin(), fresh.end());
          } else {
            ++num_refused;
          }
          if (!held.empty() && random.one_in(2)) {
            Mailbox& other = mailboxes[static_cast<std::size_t>(random.between(0, num_threads - 1))];
            const std::lock_guard guard(other.mutex);
            for (int i = random.between(1, 30); i > 0 && !held.empty(); --i) {
              if (random.one_in(3)) {  // share it
                mine.retain(std::span(held).last(1));
                owners[at(held.back())].fetch_add(1, std::memory_order_relaxed);
                other.ids.push_back(held.back());
                continue;
              }
              other.ids.push_back(held.back());
              held.pop_back();
            }
          }
          {
            Mailbox& own = mailboxes[static_cast<std::size_t>(me)];
            const std::lock_guard guard(own.mutex);
            held.insert(held.end(), own.ids.begin(), own.ids.end());
            own.ids.clear();
          }
          if (!held.empty()) let_go(static_cast<std::size_t>(random.between(1, static_cast<int>(held.size()))));
        }
        let_go(held.size());
      });
      Magazine mine{blocks};
      for (const Mailbox& mailbox : mailboxes) mine.release(mailbox.ids);
      CHECK(num_wrong == 0);
      CHECK((num_blocks > 40 || num_refused > 0));
      CHECK(blocks.num_available() == num_blocks);
      blocks.check_invariants();
      CHECK(take(mine, static_cast<std::size_t>(num_blocks)).size() == static_cast<std::size_t>(num_blocks));
      mine.release(ids_below(num_blocks));
    }
  }
}

TEST_CASE("what the owners of a block did happens before what the next owner does") {
  for (int round = 0; round < 100; ++round) {
    ConcurrentBlockAllocator blocks{1};
    Magazine first{blocks}, second{blocks};
    auto ids = take(first, 1);
    second.retain(ids);
    int note = 0, seen = -1;  // without a lock: the block guards it
    on_threads(2, [&](int me) {
      if (me == 0) {
        seen = note;
        first.release(ids);
        return;
      }
      second.release(ids);
      std::array<BlockId, 1> again{};
      while (!second.allocate(again)) std::this_thread::yield();
      note = 1;
      second.release(again);
    });
    CHECK(seen == 0);
    CHECK(note == 1);
  }
}

// Every thread stays within its share of the pool, so that enough blocks are free at every moment, though never where
// the thread looks first.
TEST_CASE("no request is refused while enough blocks are free") {
  for (const int num_threads : {2, 4, 16}) {
    for (const int share : {1, 3, 70}) {
      CAPTURE(num_threads);
      CAPTURE(share);
      ConcurrentBlockAllocator blocks{num_threads * share};
      std::atomic<int> num_refused{0};
      on_threads(num_threads, [&](int me) {
        Magazine mine{blocks};
        Random random{static_cast<std::uint64_t>(me)};
        for (int round = 0; round < 6000 / num_threads; ++round) {
          std::vector<BlockId> ids(static_cast<std::size_t>(random.between(1, share)));
          if (!mine.allocate(ids)) {
            ++num_refused;
            continue;
          }
          if (random.one_in(4)) std::this_thread::yield();
          mine.release(ids);
        }
      });
      CHECK(num_refused == 0);
      CHECK(blocks.num_available() == num_threads * share);
    }
  }
}

TEST_CASE("the number of available blocks is exact while threads trade them") {
  ConcurrentBlockAllocator blocks{300};
  std::atomic<bool> done{false};
  std::atomic<int> num_wrong{0};
  std::thread watcher([&] {
    while (!done) {
      const int available = blocks.num_available();
      num_wrong += available < 300 - 2 * 100 || available > 300;
    }
  });
  on_threads(2, [&](int me) {
    Magazine mine{blocks};
    Random random{static_cast<std::uint64_t>(me)};
    for (int round = 0; round < 3000; ++round)
      mine.release(take(mine, static_cast<std::size_t>(random.between(1, 100))));
  });
  done = true;
  watcher.join();
  CHECK(num_wrong == 0);
  CHECK(blocks.num_available() == 300);
}
