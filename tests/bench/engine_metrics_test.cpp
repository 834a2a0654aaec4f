// The metrics of the engine's benchmarks, on requests whose times are known.
#include <doctest/doctest.h>

#include <vector>

#include "bench/engine/metrics.hpp"

namespace {

using namespace bench;

// Seconds. The second request waits, brings two tokens at once, and is slower.
std::vector<RequestTimes> two_requests() {
  return {{.arrival = 0, .tokens = {.1, .2, .3}, .prompt_tokens = 10, .output_tokens = 3},
          {.arrival = 1, .tokens = {1.5, 1.5, 2, 2}, .prompt_tokens = 20, .output_tokens = 8}};
}

TEST_CASE("Throughput counts all samples' tokens, from the start to the last token") {
  const ServeMetrics m = metrics_of(two_requests(), {});
  CHECK(m.completed == 2);
  CHECK(m.duration == 2);
  CHECK(m.total_input_tokens == 30);
  CHECK(m.total_output_tokens == 11);
  CHECK(m.request_throughput == 1);
  CHECK(m.output_throughput == 5.5);
  CHECK(m.total_token_throughput == 20.5);
}

TEST_CASE("ttft and e2el count from the arrival, tpot from the first token, itl every gap") {
  const ServeMetrics m = metrics_of(two_requests(), {});
  CHECK(m.ttft.mean == doctest::Approx(300));  // 100 and 500
  CHECK(m.ttft.median == doctest::Approx(300));
  CHECK(m.ttft.std == doctest::Approx(200));   // of the population, as numpy has it
  CHECK(m.ttft.p99 == doctest::Approx(496));   // interpolated
  CHECK(m.e2el.mean == doctest::Approx(650));  // 300 and 1000
  CHECK(m.tpot.mean == doctest::Approx((100 + 500. / 3) / 2));
  CHECK(m.itl.mean == doctest::Approx(140));  // 100, 100, 0, 500, 0
  CHECK(m.itl.median == doctest::Approx(100));
}

TEST_CASE("A request of one token has no tpot and no gaps") {
  const ServeMetrics m =
      metrics_of({{.arrival = 1, .tokens = {3}, .prompt_tokens = 1, .output_tokens = 6}}, {.tpot = 0});
  CHECK(m.ttft.mean == doctest::Approx(2000));
  CHECK(m.e2el.mean == doctest::Approx(2000));
  CHECK(m.tpot.mean == 0);
  CHECK(m.itl.p99 == 0);
  CHECK(m.request_goodput == m.request_throughput);
}

TEST_CASE("Goodput counts the requests that keep every level that was set") {
  const auto goodput = [](const ServiceLevels& levels) { return metrics_of(two_requests(), levels).request_goodput; };
  CHECK(goodput({}) == 1);
  CHECK(goodput({.ttft = 200}) == .5);
  CHECK(goodput({.tpot = 120}) == .5);
  CHECK(goodput({.e2el = 500}) == .5);
  CHECK(goodput({.ttft = 600, .tpot = 200, .e2el = 1100}) == 1);
  CHECK(goodput({.ttft = 50}) == 0);
}

}  // namespace
