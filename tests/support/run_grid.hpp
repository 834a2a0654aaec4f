// run_grid(): a kernel's grid on emulated warps, one CTA after another, or all of them in turns. Include
// support/warp_emulator.hpp first.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "support/random.hpp"
#include "support/warp_emulator.hpp"

namespace pagedkv_test {

inline void run_grid(Index grid, int threads, const std::function<void()>& body) {
  if (grid.y == 0) grid.y = 1;
  if (grid.z == 0) grid.z = 1;
  emulated_grid = grid;
  for (emulated_cta.z = 0; emulated_cta.z < grid.z; ++emulated_cta.z)
    for (emulated_cta.y = 0; emulated_cta.y < grid.y; ++emulated_cta.y)
      for (emulated_cta.x = 0; emulated_cta.x < grid.x; ++emulated_cta.x) emulator.run(threads, body);
  emulated_grid = {1};
  emulated_cta = {0};
}

/// One at a time of several host threads; the one that stops says who is next, by the seed alone.
class Turns {
 public:
  Turns(unsigned num_threads, std::uint64_t seed) : random_(seed) {
    for (unsigned i = 0; i < num_threads; ++i) left_.push_back(i);
    choose();
  }

  void wait(unsigned me) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return now_ == me; });
  }
  void pass(unsigned me) {
    if (left_.size() == 1 || !random_.one_in(4)) return;
    {
      const std::lock_guard lock(mutex_);
      choose();
    }
    changed_.notify_all();
    wait(me);
  }
  void leave(unsigned me) {
    {
      const std::lock_guard lock(mutex_);
      std::erase(left_, me);
      if (!left_.empty()) choose();
    }
    changed_.notify_all();
  }

 private:
  void choose() { now_ = left_[static_cast<std::size_t>(random_.between(0, static_cast<int>(left_.size()) - 1))]; }

  std::mutex mutex_;
  std::condition_variable changed_;
  Random random_;
  std::vector<unsigned> left_;
  unsigned now_ = 0;
};

/// Calls run_cta() for each CTA, all of them under way at once; `seed` decides how they and their warps take turns. A
/// CTA has a host thread to itself, so its shared memory is thread_local.
inline void run_grid_together(unsigned num_ctas, std::uint64_t seed, const std::function<void()>& run_cta) {
  Turns turns(num_ctas, seed);
  std::vector<std::exception_ptr> errors(num_ctas);
  std::vector<std::thread> ctas;
  for (unsigned i = 0; i < num_ctas; ++i) {
    ctas.emplace_back([&, i] {
      turns.wait(i);
      emulated_grid = {num_ctas};
      emulated_cta = {i};
      emulator.shuffle(seed + i);
      emulator.pause_with([&turns, i] { turns.pass(i); });
      try {
        run_cta();
      } catch (...) {
        errors[i] = std::current_exception();
      }
      turns.leave(i);
    });
  }
  for (auto& cta : ctas) cta.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace pagedkv_test
