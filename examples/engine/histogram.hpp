// Histogram: how often a duration fell between fixed bounds, as Prometheus counts it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace engine {

struct Histogram {
  /// Upper bounds in seconds, each included; behind the last there is no bound.
  static constexpr std::array bounds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                     0.5,   1.0,    2.5,   5.0,  10.0,  30.0, 60.0};

  std::array<std::int64_t, bounds.size() + 1> counts{};  // of each part alone
  double sum = 0;                                        // of all durations, in seconds

  void add(double seconds) {
    ++counts[static_cast<std::size_t>(std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin())];
    sum += seconds;
  }
};

}  // namespace engine
