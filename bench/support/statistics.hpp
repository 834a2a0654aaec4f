// What is reported of repeated measurements: the median, and where most of them lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace bench {

/// The value below which a share `q` (0 to 1) of the samples lies, interpolated between neighbours. Sorts `samples`, of
/// which there must be one.
inline double quantile(std::vector<double>& samples, double q) {
  std::sort(samples.begin(), samples.end());
  const double position = q * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, samples.size() - 1);
  return std::lerp(samples[below], samples[above], position - static_cast<double>(below));
}

/// Any unit; of one replay or of one call.
struct Spread {
  double median = 0, p10 = 0, p90 = 0;
};

inline Spread spread_of(std::vector<double> samples) {
  return {.median = quantile(samples, .5), .p10 = quantile(samples, .1), .p90 = quantile(samples, .9)};
}

}  // namespace bench
