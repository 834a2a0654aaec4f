// ConcurrentBlockAllocator under thousands of schedules of two and three threads: what they see could have happened in
// some order, one block at a time.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <span>
#include <vector>

#include "cache/scheduler.hpp"
#include "pagedkv/cache/concurrent_block_allocator.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using pagedkv_test::Random;
using pagedkv_test::Scheduler;

namespace {

struct ScheduledThreads {
  using Mutex = Scheduler::Mutex;
  static constexpr std::size_t magazine_size = 1;  // stocks overflow at three ids: every path is short
  static void step() { Scheduler::step(); }
  static void wait() { Scheduler::wait(); }
};
using Blocks = BasicConcurrentBlockAllocator<ScheduledThreads>;

enum class Action { allocate, refuse, retain, release };

// What one thread was told about some blocks between two moments.
struct Event {
  Action action;
  std::vector<BlockId> ids;  // allocate: those it got; refuse: as many as it wanted; otherwise one
  int begin, end;
};

// Whether the events can be put in an order that respects time and that counters without any threads would have told.
// The counters after a set of events do not depend on its order, so no set is tried twice.
class Explanation {
 public:
  Explanation(const std::vector<Event>& events, int num_blocks)
      : events_(events), owners_(static_cast<std::size_t>(num_blocks)) {}

  bool exists() { return exists_after(0); }

 private:
  bool exists_after(std::uint64_t done) {
    if (done == (std::uint64_t{1} << events_.size()) - 1) return true;
    if (!tried_.insert(done).second) return false;
    int first_end = std::numeric_limits<int>::max();
    for (std::size_t i = 0; i < events_.size(); ++i)
      if ((done >> i & 1) == 0) first_end = std::min(first_end, events_[i].end);
    for (std::size_t i = 0; i < events_.size(); ++i) {
      if ((done >> i & 1) != 0 || events_[i].begin > first_end || !is_right(events_[i])) continue;
      apply(events_[i], 1);
      const bool found = exists_after(done | std::uint64_t{1} << i);
      apply(events_[i], -1);
      if (found) return true;
    }
    return false;
  }

  int& owners(BlockId id) { return owners_[static_cast<std::size_t>(to_index(id))]; }

  bool is_right(const Event& event) {
    if (event.action == Action::refuse)
      return static_cast<std::size_t>(std::count(owners_.begin(), owners_.end(), 0)) < event.ids.size();
    return std::all_of(event.ids.begin(), event.ids.end(),
                       [&](BlockId id) { return (owners(id) == 0) == (event.action == Action::allocate); });
  }

  void apply(const Event& event, int sign) {
    if (event.action == Action::refuse) return;
    for (const BlockId id : event.ids) owners(id) += event.action == Action::release ? -sign : sign;
  }

  const std::vector<Event>& events_;
  std::vector<int> owners_;
  std::set<std::uint64_t> tried_;
};

// A few random calls on each thread; blocks change hands through a bag.
class Story {
 public:
  Story(std::uint64_t seed, int num_threads, int num_blocks) : blocks_(num_blocks) {
    std::vector<std::function<void()>> bodies;
    for (int i = 0; i < num_threads; ++i)
      bodies.push_back([this, random = Random{seed * 16 + static_cast<std::uint64_t>(i)}]() mutable { live(random); });
    Scheduler{seed, bodies};
    Blocks::Magazine last{blocks_};
    release(last, bag_);
  }

  const std::vector<Event>& events() const { return events_; }
  const Blocks& blocks() const { return blocks_; }

 private:
  void live(Random& random) {
    Blocks::Magazine mine{blocks_};
    std::vector<BlockId> held;
    for (int call = 0; call < 4; ++call) switch (random.between(0, held.empty() ? 1 : 4)) {
        case 0:
        case 1:
          allocate(mine, random.between(1, 2), held);
          break;
        case 2: {
          const int begin = ++now_;
          mine.retain(std::span(held).first(1));
          events_.push_back({Action::retain, {held[0]}, begin, ++now_});
          bag_.push_back(held[0]);
          break;
        }
        case 3:
          std::swap(held, bag_);
          break;
        default:
          release(mine, held);
          held.clear();
      }
    release(mine, held);
  }

  void allocate(Blocks::Magazine& mine, int count, std::vector<BlockId>& held) {
    std::vector<BlockId> ids(static_cast<std::size_t>(count));
    const int begin = ++now_;
    const bool got = mine.allocate(ids);
    events_.push_back({got ? Action::allocate : Action::refuse, ids, begin, ++now_});
    if (got) held.insert(held.end(), ids.begin(), ids.end());
  }

  void release(Blocks::Magazine& mine, const std::vector<BlockId>& ids) {
    const int begin = ++now_;
    mine.release(ids);
    ++now_;
    for (const BlockId id : ids) events_.push_back({Action::release, {id}, begin, now_});
  }

  Blocks blocks_;
  int now_ = 0;
  std::vector<BlockId> bag_;
  std::vector<Event> events_;
};

}  // namespace

TEST_CASE("what threads see could have happened in some order") {
  int num_refused = 0, num_shared = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    CAPTURE(seed);
    const int num_blocks = 2 + static_cast<int>(seed % 3);
    const Story story{seed, 2 + static_cast<int>(seed / 3 % 2), num_blocks};
    for (const Event& event : story.events()) {
      num_refused += event.action == Action::refuse;
      num_shared += event.action == Action::retain;
    }
    REQUIRE(story.events().size() < 64);
    REQUIRE(Explanation(story.events(), num_blocks).exists());
    REQUIRE(story.blocks().num_available() == num_blocks);
    story.blocks().check_invariants();
  }
  CHECK(num_refused > 1000);
  CHECK(num_shared > 1000);
}

// One block is free at every moment, but not in one place: it is freed here before another is taken there.
template <class Ask>
void while_the_free_block_changes_places(Ask ask) {
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    CAPTURE(seed);
    Blocks blocks{2};
    Blocks::Magazine taker{blocks}, giver{blocks}, asker{blocks};
    std::array<BlockId, 2> ids{};
    REQUIRE(taker.allocate(ids));
    taker.release(std::span(ids).last(1));
    bool given = false, taken = false, answered = false;
    const auto give = [&] {
      giver.release(std::span(ids).first(1));
      given = true;
    };
    const auto take = [&] {
      while (!given) Scheduler::wait();
      taken = taker.allocate(std::span(ids).first(1));
    };
    Scheduler{seed, {give, take, [&] { answered = ask(blocks, asker); }}};
    REQUIRE(taken);
    REQUIRE(answered);
    taker.release(std::span(ids).first(1));
    REQUIRE(blocks.num_available() == 2);
  }
}

TEST_CASE("whoever asks all magazines for the one free block finds it, though it changes places meanwhile") {
  while_the_free_block_changes_places([](Blocks&, Blocks::Magazine& asker) {
    std::array<BlockId, 1> asked{};
    const bool got = asker.allocate(asked);
    if (got) asker.release(asked);
    return got;
  });
}

TEST_CASE("whoever counts the free blocks counts the one that changes places meanwhile") {
  while_the_free_block_changes_places([](Blocks& blocks, Blocks::Magazine&) { return blocks.num_available() >= 1; });
}

TEST_CASE("blocks whose two owners let go at once are freed once") {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    CAPTURE(seed);
    Blocks blocks{4};
    Blocks::Magazine first{blocks}, second{blocks};
    std::array<BlockId, 2> ids{};
    REQUIRE(first.allocate(ids));
    second.retain(ids);
    Scheduler{seed, {[&] { first.release(ids); }, [&] { second.release(ids); }}};
    REQUIRE(blocks.num_available() == 4);
    blocks.check_invariants();
  }
}

TEST_CASE("of two threads that both free a block with one owner, one is told so") {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    CAPTURE(seed);
    Blocks blocks{4};
    Blocks::Magazine first{blocks}, second{blocks};
    std::array<BlockId, 2> ids{};
    REQUIRE(first.allocate(ids));
    int num_errors = 0;
    const auto free_through = [&](Blocks::Magazine& magazine) {
      return [&] {
        try {
          magazine.release(std::span(ids).first(1));
        } catch (const InvalidArgument&) {
          ++num_errors;
        }
      };
    };
    Scheduler{seed, {free_through(first), free_through(second)}};
    REQUIRE(num_errors == 1);
    first.release(std::span(ids).last(1));
    REQUIRE(blocks.num_available() == 4);
    blocks.check_invariants();
  }
}

TEST_CASE("a wrong call costs the other owners of its blocks nothing") {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    CAPTURE(seed);
    Blocks blocks{4};
    Blocks::Magazine first{blocks}, second{blocks};
    std::array<BlockId, 2> ids{};
    REQUIRE(first.allocate(ids));
    second.retain(ids);
    const std::array wrong{ids[0], ids[1], BlockId::none};
    const auto err = [&] { CHECK_THROWS_AS(first.release(wrong), InvalidArgument); };
    const auto share = [&] {
      second.retain(ids);
      second.release(ids);
    };
    Scheduler{seed, {err, share}};
    REQUIRE(blocks.ref_count(ids[0]) == 2);
    REQUIRE(blocks.ref_count(ids[1]) == 2);
    first.release(ids);
    second.release(ids);
    REQUIRE(blocks.num_available() == 4);
    blocks.check_invariants();
  }
}
