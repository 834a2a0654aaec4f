// What a run of requests is measured in, by the names of `vllm bench serve`: throughput, goodput, ttft, tpot, itl,
// e2el.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "bench/support/statistics.hpp"

namespace bench {

/// Of one request, in seconds behind the start of the run.
struct RequestTimes {
  double arrival = 0;
  std::vector<double> tokens;  // when each token of the first sample came; beams bring all at the end
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;  // of all samples

  double ttft() const { return tokens.front() - arrival; }
  double e2el() const { return tokens.back() - arrival; }
  bool has_tpot() const { return tokens.size() > 1; }
  double tpot() const { return (tokens.back() - tokens.front()) / static_cast<double>(tokens.size() - 1); }
};

/// Milliseconds.
struct Latency {
  double mean = 0, median = 0, std = 0, p99 = 0;
};

inline Latency latency_of(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  const auto count = static_cast<double>(seconds.size());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.) / count;
  double squares = 0;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  return {.mean = 1e3 * mean,
          .median = 1e3 * quantile(seconds, .5),
          .std = 1e3 * std::sqrt(squares / count),
          .p99 = 1e3 * quantile(seconds, .99)};
}

/// What a request must keep to count in goodput, milliseconds.
struct ServiceLevels {
  static constexpr double none = std::numeric_limits<double>::infinity();
  double ttft = none, tpot = none, e2el = none;

  bool holds(const RequestTimes& times) const {
    return 1e3 * times.ttft() <= ttft && 1e3 * times.e2el() <= e2el &&
           (!times.has_tpot() || 1e3 * times.tpot() <= tpot);
  }
};

struct ServeMetrics {
  std::int64_t completed = 0, total_input_tokens = 0, total_output_tokens = 0;
  double duration = 0;  // seconds, from the start to the last token
  double request_throughput = 0, request_goodput = 0, output_throughput = 0, total_token_throughput = 0;  // a second
  Latency ttft, tpot, itl, e2el;
};

/// Every request has brought at least a token.
inline ServeMetrics metrics_of(const std::vector<RequestTimes>& requests, const ServiceLevels& levels) {
  ServeMetrics m;
  std::vector<double> ttft, tpot, itl, e2el;
  std::int64_t num_good = 0;
  for (const RequestTimes& request : requests) {
    ++m.completed;
    m.total_input_tokens += request.prompt_tokens;
    m.total_output_tokens += request.output_tokens;
    m.duration = std::max(m.duration, request.tokens.back());
    ttft.push_back(request.ttft());
    e2el.push_back(request.e2el());
    if (request.has_tpot()) tpot.push_back(request.tpot());
    for (std::size_t i = 1; i < request.tokens.size(); ++i) itl.push_back(request.tokens[i] - request.tokens[i - 1]);
    num_good += levels.holds(request);
  }
  const auto per_second = [&](std::int64_t count) {
    return m.duration > 0 ? static_cast<double>(count) / m.duration : 0;
  };
  m.request_throughput = per_second(m.completed);
  m.request_goodput = per_second(num_good);
  m.output_throughput = per_second(m.total_output_tokens);
  m.total_token_throughput = per_second(m.total_input_tokens + m.total_output_tokens);
  m.ttft = latency_of(std::move(ttft));
  m.tpot = latency_of(std::move(tpot));
  m.itl = latency_of(std::move(itl));
  m.e2el = latency_of(std::move(e2el));
  return m;
}

}  // namespace bench
