// Executors: each task once, all done on return, exceptions to the caller, and the team usable afterwards.
#include "pagedkv/cpu/executor.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "pagedkv/core/error.hpp"

using namespace pagedkv;

namespace {

struct RefusingCopies {
  RefusingCopies() = default;
  RefusingCopies(const RefusingCopies&) = delete;
  std::atomic<int> sum{0};
  void operator()(int task) { sum += task; }
};

template <class E>
void check_runs_each_task_once(E&& executor) {
  for (const int num_tasks : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(num_tasks));
    executor(num_tasks, [&](int task) { ++runs[static_cast<std::size_t>(task)]; });
    for (const auto& count : runs) CHECK(count == 1);
  }
  RefusingCopies function;
  executor(100, function);
  CHECK(function.sum == 4950);
}

template <class E>
void check_carries_exceptions(E&& executor) {
  for (int round = 0; round < 50; ++round) {
    const auto fail_at_seven = [](int task) {
      if (task == 7) throw std::runtime_error("seven");
    };
    CHECK_THROWS_WITH(executor(100, fail_at_seven), "seven");
    check_runs_each_task_once(executor);
  }
}

}  // namespace

static_assert(cpu::Executor<cpu::InlineExecutor>);
static_assert(cpu::Executor<cpu::ThreadExecutor>);
static_assert(!cpu::Executor<int>);

TEST_CASE("the inline executor runs tasks in order on the caller's thread") {
  std::vector<int> order;
  cpu::InlineExecutor{}(4, [&](int task) { order.push_back(task); });
  CHECK(order == std::vector{0, 1, 2, 3});
  check_runs_each_task_once(cpu::InlineExecutor{});
  check_carries_exceptions(cpu::InlineExecutor{});
}

TEST_CASE("a team of threads runs each task once and carries what a task throws") {
  for (const int num_threads : {1, 2, 3, 8}) {
    cpu::ThreadExecutor executor(num_threads);
    CHECK(executor.num_threads() == num_threads);
    check_runs_each_task_once(executor);
    check_carries_exceptions(executor);
  }
}

TEST_CASE("what the tasks wrote is visible when the call returns") {
  cpu::ThreadExecutor executor(4);
  std::vector<int> values(64, 0);
  for (int round = 1; round <= 2000; ++round) {
    executor(64, [&](int task) { values[static_cast<std::size_t>(task)] += task; });
    CHECK(values[63] == 63 * round);
  }
}

TEST_CASE("the call returns only when the slowest task has") {
  cpu::ThreadExecutor executor(4);
  const std::thread::id caller = std::this_thread::get_id();
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> num_done{0};
    executor(8, [&](int) {
      std::this_thread::sleep_for(std::chrono::microseconds(std::this_thread::get_id() == caller ? 100 : 1000));
      ++num_done;
    });
    CHECK(num_done == 8);
  }
}

TEST_CASE("several callers of one team take turns") {
  cpu::ThreadExecutor executor(3);
  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) executor(10, [&](int) { ++total; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 4000);
}

TEST_CASE("a team without a single thread is refused") {
  CHECK_THROWS_WITH_AS(cpu::ThreadExecutor(0), doctest::Contains("num_threads at least 1 expected, 0 given"),
                       InvalidArgument);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which need more addresses than the test leaves
TEST_CASE("a team larger than the machine has threads for is an exception, and its threads are gone") {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  REQUIRE(pages > 0);
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_AS, &before) == 0);
  rlimit little = before;
  little.rlim_cur = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{256} << 20);  // some stacks more
  REQUIRE(setrlimit(RLIMIT_AS, &little) == 0);
  CHECK_THROWS_AS(cpu::ThreadExecutor(4000), std::system_error);
  REQUIRE(setrlimit(RLIMIT_AS, &before) == 0);
  check_runs_each_task_once(cpu::ThreadExecutor(4));
}
#endif

#if defined(_OPENMP)
static_assert(cpu::Executor<cpu::OpenMpExecutor>);

TEST_CASE("OpenMP runs each task once and carries what a task throws") {
  check_runs_each_task_once(cpu::OpenMpExecutor{});
  check_carries_exceptions(cpu::OpenMpExecutor{});
}
#endif
