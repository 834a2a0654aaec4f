// The host's memory: its size from the system, its speed from a few passes of plain sums.
#include "engine/machine.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace engine {

MachineMemory host_memory() {
  const std::int64_t bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return {.is_gpu = false, .bytes = bytes, .host_bytes = bytes};
}

double host_read_speed(int num_threads) {
  constexpr std::size_t bytes = std::size_t{256} << 20, num_words = bytes / sizeof(std::uint64_t);
  constexpr int num_passes = 5;
  const std::vector<std::uint64_t> words(num_words, 1);  // every page is there, and none the same
  std::atomic<std::uint64_t> sum = 0;                    // so that nobody leaves the reading out
  double least = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < static_cast<std::size_t>(num_threads); ++i)
      threads.emplace_back([&, i, n = static_cast<std::size_t>(num_threads)] {
        sum += std::accumulate(words.begin() + static_cast<std::ptrdiff_t>(num_words * i / n),
                               words.begin() + static_cast<std::ptrdiff_t>(num_words * (i + 1) / n), std::uint64_t{0});
      });
    for (std::thread& thread : threads) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    least = pass == 0 ? seconds : std::min(least, seconds);
  }
  return static_cast<double>(bytes) / least;
}

}  // namespace engine
