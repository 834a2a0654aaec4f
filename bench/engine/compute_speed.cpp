// The host's ceiling: independent chains of multiply-adds, as many as the units take.
#include "bench/engine/compute_speed.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

namespace bench {

namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
constexpr int chains = 8, repeats = 1 << 22;
using Lanes [[gnu::vector_size(lanes * sizeof(float))]] = float;

float multiply_and_add(float seed) {
  Lanes sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = Lanes{} + seed * static_cast<float>(c);
  const Lanes factor = Lanes{} + .999f, more = Lanes{} + .001f;
  for (int i = 0; i < repeats; ++i)
    for (Lanes& sum : sums) sum = sum * factor + more;
  float total = 0;
  for (const Lanes& sum : sums) total += sum[0] + sum[lanes - 1];
  return total;
}

}  // namespace

double host_compute_speed(int num_threads) {
  constexpr int num_passes = 3;
  std::atomic<float> sink = 0;  // so that nobody leaves the work out
  double least = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i)
      threads.emplace_back([&sink, i] { sink = multiply_and_add(static_cast<float>(i)); });
    for (std::thread& thread : threads) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    least = pass == 0 ? seconds : std::min(least, seconds);
  }
  return 2. * lanes * chains * repeats * num_threads / least;
}

}  // namespace bench
