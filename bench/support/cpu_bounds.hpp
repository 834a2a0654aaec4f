// What a CPU can do at most: read memory, multiply matrices. Measured in turns with what it is a bound of, because
// machines are shared and their clocks move.
#pragma once

#include <benchmark/benchmark.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/cpu/lanes.hpp"
#include "support/bound.hpp"

namespace bench {

/// Reads `size_bytes` in pieces of 256 KiB and does as little else as keeps the reads alive.
inline void read_all(const void* data, std::size_t size_bytes, pagedkv::cpu::ThreadExecutor& threads) {
  constexpr std::size_t piece = 1 << 18;
  threads(static_cast<int>(size_bytes / piece), [&](int index) {
    pagedkv::cpu::LaneBits sums[8] = {}, words[8];
    const char* begin = static_cast<const char*>(data) + static_cast<std::size_t>(index) * piece;
    for (std::size_t i = 0; i < piece; i += sizeof words) {
      std::memcpy(words, begin + i, sizeof words);
      for (int lane = 0; lane < 8; ++lane) sums[lane] += words[lane];
    }
    benchmark::DoNotOptimize(sums);
  });
}

/// OpenBLAS's sgemm on square matrices, if the machine has the library. Nothing else uses it.
class Sgemm {
 public:
  static constexpr int size = 2048;
  static constexpr double num_flops = 2. * size * size * size;

  explicit Sgemm(int num_threads) : a_(size * size, 1.f), b_(size * size, 1.f), c_(size * size) {
    // Releases older than the CPU take it for a lesser one; helpers that spin would disturb what is measured next.
#if defined(__AVX512F__)
    setenv("OPENBLAS_CORETYPE", "SkylakeX", 0);
#endif
    setenv("OPENBLAS_THREAD_TIMEOUT", "4", 0);
    void* const library = dlopen("libopenblas.so.0", RTLD_NOW);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* name) {
      void* const symbol = dlsym(library, name);
      std::memcpy(&function, &symbol, sizeof symbol);
    };
    find(sgemm_, "cblas_sgemm");
    void (*set_num_threads)(int) = nullptr;
    find(set_num_threads, "openblas_set_num_threads");
    set_num_threads(num_threads);
  }

  bool is_there() const { return sgemm_ != nullptr; }

  /// c = a transpose(b)
  void run() {
    constexpr int row_major = 101, not_transposed = 111, transposed = 112;
    sgemm_(row_major, not_transposed, transposed, size, size, size, 1.f, a_.data(), size, b_.data(), size, 0.f,
           c_.data(), size);
  }

 private:
  void (*sgemm_)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*,
                 int) = nullptr;
  std::vector<float> a_, b_, c_;
};

/// Runs f as the body of a benchmark with UseManualTime, and before each call the bound. Reports the rate of f,
/// `unit` (per 10^9), the rate of the bound, and their ratio "share_of_<bound>": the median of the turns, and the
/// quartiles beside it.
template <class Bound, class F>
void run_in_turns(benchmark::State& state, const std::string& unit, double work, F&& f, const std::string& name,
                  double bound_work, Bound&& bound) {
  std::vector<double> rates, bounds, shares;
  for (auto _ : state) {
    const double bound_seconds = seconds_of(1, bound), seconds = seconds_of(1, f);
    state.SetIterationTime(seconds);
    rates.push_back(work / seconds * 1e-9);
    bounds.push_back(bound_work / bound_seconds * 1e-9);
    shares.push_back(rates.back() / bounds.back());
  }
  const auto quantile = [](std::vector<double>& values, double part) {
    std::sort(values.begin(), values.end());
    return values[static_cast<std::size_t>(part * static_cast<double>(values.size() - 1))];
  };
  state.counters[unit] = quantile(rates, 0.5);
  state.counters[name + "_" + unit] = quantile(bounds, 0.5);
  state.counters["share_of_" + name] = quantile(shares, 0.5);
  state.counters["share_low"] = quantile(shares, 0.25);
  state.counters["share_high"] = quantile(shares, 0.75);
}

}  // namespace bench
