// A benchmark says how far it is from a named bound that was measured in the same run; this measures the bound.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bench {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that `calls` calls of f take.
template <class F>
double seconds_of(std::int64_t calls, F&& f) {
  const double begin = seconds_now();
  for (std::int64_t i = 0; i < calls; ++i) f();
  return seconds_now() - begin;
}

/// Seconds that one call of f takes: the median of nine samples of at least a millisecond each.
template <class F>
double seconds_per_call(F&& f) {
  std::int64_t calls = 1;
  while (seconds_of(calls, f) < 1e-3) calls *= 2;
  std::vector<double> samples;
  for (int i = 0; i < 9; ++i) samples.push_back(seconds_of(calls, f) / static_cast<double>(calls));
  std::nth_element(samples.begin(), samples.begin() + 4, samples.end());
  return samples[4];
}

/// Runs f as the body of a benchmark and reports "x_<bound>": how many times as long as the bound one call of f takes.
template <class F>
void run_against(benchmark::State& state, const std::string& bound, double bound_seconds, F&& f) {
  const double begin = seconds_now();
  for (auto _ : state) f();
  const double seconds = (seconds_now() - begin) / static_cast<double>(state.iterations());
  state.counters["x_" + bound] = seconds / bound_seconds;
}

}  // namespace bench
