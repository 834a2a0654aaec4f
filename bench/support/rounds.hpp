// Rounds: median nanoseconds of an operation, of this library and of others in the same run, with caches warm or
// flushed.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "support/bound.hpp"
#include "support/statistics.hpp"

namespace bench {

/// What a round finds when it begins.
enum class Caches { warm, flushed };

/// Drives everything else out of the last-level cache, up to 64 MiB of it.
inline void flush_caches() {
  static std::vector<char> other(std::size_t{96} << 20);
  for (std::size_t i = 0; i < other.size(); i += 64) ++other[i];
  benchmark::ClobberMemory();
}

/// One round does `ops` operations.
struct Rounds {
  double ops;
  Caches caches = Caches::warm;
  int count = 0;  // 0: enough to tell the median, but at most some millions of operations in all
};

inline int number_of(const Rounds& rounds) {
  if (rounds.count > 0) return rounds.count;
  return rounds.caches == Caches::flushed ? 9 : std::clamp(static_cast<int>(2e6 / rounds.ops), 5, 201);
}

/// What a round takes that does nothing.
inline double seconds_of_clock() {
  static const double seconds = [] {
    std::vector<double> samples;
    for (int i = 0; i < 1001; ++i) samples.push_back(seconds_of(1, [] { benchmark::ClobberMemory(); }));
    return quantile(samples, .5);
  }();
  return seconds;
}

/// Nanoseconds of one operation in the median round. `prepare` goes before each round and is not timed. The rounds are
/// so short that few of them are interrupted on a machine that does other work too.
template <class Prepare, class Work>
double nanoseconds(const Rounds& rounds, Prepare prepare, Work work) {
  std::vector<double> samples;
  for (int i = 0; i < number_of(rounds); ++i) {
    prepare();
    if (rounds.caches == Caches::flushed) flush_caches();
    benchmark::ClobberMemory();
    samples.push_back(seconds_of(1, work));
    benchmark::ClobberMemory();
  }
  return (quantile(samples, .5) - seconds_of_clock()) * 1e9 / rounds.ops;
}

/// "ns": the library. To be called once, in a benchmark with ->Iterations(1)->UseManualTime().
template <class Prepare, class Work>
void measure(benchmark::State& state, const Rounds& rounds, Prepare prepare, Work work) {
  for (auto _ : state) {
    const double ns = nanoseconds(rounds, prepare, work);
    state.counters["ns"] = ns;
    state.SetIterationTime(ns * 1e-9);
  }
}

/// "floor_ns" and "x_floor": how many times as long as the least that could do the work. After measure().
template <class Prepare, class Work>
void floor(benchmark::State& state, const Rounds& rounds, Prepare prepare, Work work) {
  const double ns = nanoseconds(rounds, prepare, work);
  state.counters["floor_ns"] = ns;
  state.counters["x_floor"] = state.counters["ns"].value / ns;
}

/// "<name>_ns" and "gain_over_<name>": how many times as long another one takes. After measure().
template <class Prepare, class Work>
void rival(benchmark::State& state, const std::string& name, const Rounds& rounds, Prepare prepare, Work work) {
  const double ns = nanoseconds(rounds, prepare, work);
  state.counters[name + "_ns"] = ns;
  state.counters["gain_over_" + name] = ns / state.counters["ns"].value;
}

inline constexpr auto nothing = [] {};

/// How the ids that a pool hands out lie: all over it, or in runs of 64 neighbours that lie all over it.
enum class Order { random, clustered };

inline std::vector<std::int32_t> ids_in(Order order, std::int32_t count) {
  const std::int32_t run = order == Order::random ? 1 : 64;
  std::vector<std::int32_t> runs(static_cast<std::size_t>((count + run - 1) / run));
  std::iota(runs.begin(), runs.end(), 0);
  std::mt19937 random(1);
  std::shuffle(runs.begin(), runs.end(), random);
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(count));
  for (const std::int32_t first : runs)
    for (std::int32_t id = first * run; id < std::min(count, (first + 1) * run); ++id) ids.push_back(id);
  return ids;
}

/// The fixture of the last call if it had the same arguments, else a new one: repetitions of a benchmark share it.
template <class T, class... Args>
T& kept(const Args&... args) {
  static std::tuple<Args...> made_of;
  static std::unique_ptr<T> fixture;
  if (fixture == nullptr || made_of != std::tuple(args...)) {
    fixture.reset();
    fixture = std::make_unique<T>(args...);
    made_of = std::tuple(args...);
  }
  return *fixture;
}

}  // namespace bench
