// Watchdog: ends the program where something does not come to an end, a kernel that waits for ever above all.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

namespace pagedkv_test {

/// While it lives, it watches: after `patience` it says what has hung and aborts (doctest then names the test case).
class Watchdog {
 public:
  explicit Watchdog(
      const char* what, std::chrono::milliseconds patience = std::chrono::seconds(20),
      std::function<void()> bark = [] { std::abort(); })
      : thread_([this, what, patience, bark = std::move(bark)] {
          std::unique_lock lock(mutex_);
          if (ended_.wait_for(lock, patience, [this] { return has_ended_; })) return;
          std::fprintf(stderr, "HUNG: %s has not ended after %lld ms\n", what,
                       static_cast<long long>(patience.count()));
          std::fflush(stderr);
          bark();
        }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      has_ended_ = true;
    }
    ended_.notify_one();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool has_ended_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace pagedkv_test
