// Threads that come and go with connections.
#include "engine/server/connection_threads.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <latch>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "engine/server/stack_size.hpp"
#include "support/watchdog.hpp"

using engine::server::ConnectionThreads;
using pagedkv_test::Watchdog;

TEST_CASE("each connection has a thread of its own while it lasts, and none is left behind them") {
  const Watchdog watchdog("a thread each");
  ConnectionThreads threads(100);
  for (int round = 0; round < 2; ++round) {
    std::latch all_are_served(10);
    std::mutex mutex;
    std::set<std::thread::id> ids;
    for (int i = 0; i < 10; ++i)
      threads.serve([&] {
        all_are_served.arrive_and_wait();
        const std::lock_guard lock(mutex);
        ids.insert(std::this_thread::get_id());
      });
    threads.wait();
    CHECK(ids.size() == 10);
    CHECK(threads.num_threads() == 0);
  }
}

TEST_CASE("where as many are served as may be, the next ones wait for their turn, in order") {
  const Watchdog watchdog("turns");
  ConnectionThreads threads(1);
  std::latch may_go(1);
  std::vector<int> served;
  threads.serve([&] { may_go.wait(); });
  for (int i = 0; i < 5; ++i) threads.serve([&, i] { served.push_back(i); });
  CHECK(threads.num_threads() == 1);
  may_go.count_down();
  threads.wait();
  CHECK(served == std::vector<int>{0, 1, 2, 3, 4});
}

TEST_CASE("where the system gives no thread, everybody is served all the same") {
  const Watchdog watchdog("no thread");
  constexpr std::size_t too_large = std::size_t{1} << 50;
  ConnectionThreads threads(10);
  std::latch may_go(1);
  std::atomic<int> num_served = 0;
  {
    const engine_test::StackSize nobody_starts(too_large);
    threads.serve([&] { ++num_served; });
    CHECK(num_served == 1);  // by this thread
  }
  threads.serve([&] { may_go.wait(); });
  {
    const engine_test::StackSize nobody_starts(too_large);
    threads.serve([&] { ++num_served; });
    CHECK(threads.num_threads() == 1);
  }
  may_go.count_down();
  threads.wait();
  CHECK(num_served == 2);  // by the one that was there
}
