// A scheduler for tests of concurrent code: of all threads one runs, and a seed decides at every step which one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "support/random.hpp"

namespace pagedkv_test {

/// Runs the bodies on threads of their own, but only one at a time; whenever one calls step() or wait(), the seed may
/// give the turn to another. The same seed, the same schedule. Every thread sees all that was written before its turn:
/// orders that only weak memory allows are not explored, which is ThreadSanitizer's part.
class Scheduler {
 public:
  Scheduler(std::uint64_t seed, const std::vector<std::function<void()>>& bodies)
      : random_(seed), switch_once_in_(1 + static_cast<int>(seed % 4)) {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < bodies.size(); ++i) live_.push_back(static_cast<int>(i));
    turn_ = static_cast<int>(seed % bodies.size());
    for (std::size_t i = 0; i < bodies.size(); ++i)
      threads.emplace_back([this, &body = bodies[i], me = static_cast<int>(i)] {
        current() = {this, me};
        await(me);
        body();
        std::erase(live_, me);
        if (!live_.empty()) give_turn(any_but(-1));
      });
    for (std::thread& thread : threads) thread.join();
  }

  /// Called by the code under test: another thread may run now. Outside of a schedule it does nothing.
  static void step() {
    const auto [scheduler, me] = current();
    if (scheduler != nullptr && scheduler->random_.one_in(scheduler->switch_once_in_))
      scheduler->switch_to(me, scheduler->any_but(-1));
  }

  /// Called by the code under test: this thread cannot go on until another one has done something.
  static void wait() {
    const auto [scheduler, me] = current();
    scheduler->switch_to(me, scheduler->any_but(me));
  }

  /// A mutex whose waiting the scheduler knows of.
  class Mutex {
   public:
    void lock() {
      step();
      while (locked_) wait();
      locked_ = true;
    }
    void unlock() {
      step();
      locked_ = false;
    }

   private:
    bool locked_ = false;
  };

 private:
  struct Current {
    Scheduler* scheduler = nullptr;
    int thread = -1;
  };
  static Current& current() {
    static thread_local Current current;
    return current;
  }

  int any_but(int thread) {
    for (;;) {
      const int next = live_[static_cast<std::size_t>(random_.between(0, static_cast<int>(live_.size()) - 1))];
      if (next != thread) return next;
      if (live_.size() == 1) give_up();
    }
  }

  void switch_to(int me, int next) {
    if (++num_steps_ > 1'000'000) give_up();
    if (next == me) return;
    give_turn(next);
    await(me);
  }

  void give_turn(int next) {
    turn_ = next;
    turn_.notify_all();
  }

  void await(int me) {
    for (int turn; (turn = turn_) != me;) turn_.wait(turn);
  }

  [[noreturn]] static void give_up() {
    std::fputs("Scheduler: every thread waits for another\n", stderr);
    std::abort();
  }

  Random random_;
  int switch_once_in_;
  int num_steps_ = 0;
  std::vector<int> live_;
  std::atomic<int> turn_;
};

}  // namespace pagedkv_test
