// The requests of the engine's benchmarks: the same as a Python script would draw, Poisson arrivals, shared prompts.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bench/engine/python_random.hpp"
#include "bench/engine/workloads.hpp"

namespace {

using namespace bench;

std::int64_t prompt_tokens(const std::vector<Job>& jobs) {
  std::int64_t sum = 0;
  for (const Job& job : jobs) sum += std::ssize(job.prompt);
  return sum;
}

std::int64_t output_tokens(const std::vector<Job>& jobs) {
  std::int64_t sum = 0;
  for (const Job& job : jobs) sum += job.max_tokens;
  return sum;
}

TEST_CASE("The random numbers are those of CPython's random module") {
  // random.seed(0); [random.randint(0, 10000) for _ in range(4)]; random.randint(1, 8); random.random()
  PythonRandom zero(0);
  for (const int expected : {6311, 6890, 663, 4242}) CHECK(zero.randint(0, 10000) == expected);
  CHECK(zero.randint(1, 8) == 8);
  CHECK(zero.random() == 0.4049341374504143);
  // random.seed(2**32 - 1); random.randint(5, 5); random.randint(-3, 3); random.random()
  PythonRandom last(4294967295u);
  CHECK(last.randint(5, 5) == 5);
  CHECK(last.randint(-3, 3) == -2);
  CHECK(last.random() == 0.6073666030347188);
}

TEST_CASE("The offline run has nano-vLLM's requests, number by number") {
  const std::vector<Job> jobs = offline_jobs(256, 100, 1024, 0, 151936);
  CHECK(output_tokens(jobs) == 133966);
  CHECK(prompt_tokens(jobs) == 142827);
  CHECK(jobs[0].prompt.size() == 964);
  CHECK(std::vector(jobs[0].prompt.begin(), jobs[0].prompt.begin() + 3) == std::vector<std::int32_t>{6311, 6890, 663});
  CHECK(jobs[255].prompt.size() == 251);
  CHECK(jobs[255].prompt.back() == 1958);
  CHECK(jobs[0].max_tokens == 845);
  CHECK(jobs[1].max_tokens == 312);
  CHECK(jobs[255].max_tokens == 312);
}

TEST_CASE("A small vocabulary folds the ids and leaves the lengths") {
  const std::vector<Job> jobs = offline_jobs(8, 10, 20, 3, 100), wide = offline_jobs(8, 10, 20, 3, 20000);
  CHECK(output_tokens(jobs) == output_tokens(wide));
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    REQUIRE(jobs[i].prompt.size() == wide[i].prompt.size());
    for (std::size_t t = 0; t < jobs[i].prompt.size(); ++t) CHECK(jobs[i].prompt[t] == wide[i].prompt[t] % 100);
  }
}

TEST_CASE("Online requests arrive at the rate, in order; lengths have the asked means and stay within limits") {
  const OnlineShape shape{.rate = 4, .input = {100, .5}, .output = {200, .5}, .max_len = 1000};
  const int count = 4000;
  const std::vector<Job> jobs = online_jobs(count, shape, 7, 500);
  CHECK(jobs[0].arrival == 0);
  double squares = 0;
  for (std::size_t i = 1; i < jobs.size(); ++i) {
    REQUIRE(jobs[i].arrival >= jobs[i - 1].arrival);
    squares += std::pow(jobs[i].arrival - jobs[i - 1].arrival - .25, 2);
  }
  CHECK(jobs.back().arrival / count == doctest::Approx(.25).epsilon(.05));
  CHECK(std::sqrt(squares / count) == doctest::Approx(.25).epsilon(.1));  // as much as the mean: exponential
  CHECK(static_cast<double>(prompt_tokens(jobs)) / count == doctest::Approx(100).epsilon(.05));
  CHECK(static_cast<double>(output_tokens(jobs)) / count == doctest::Approx(200).epsilon(.05));
  for (const Job& job : jobs) {
    CHECK((job.max_tokens >= 1 && job.max_tokens <= 1000));
    CHECK((job.prompt.size() >= 1 && job.prompt.size() <= 1000));
    CHECK(*std::max_element(job.prompt.begin(), job.prompt.end()) < 500);
  }
}

TEST_CASE("Shared prompts begin alike and end apart") {
  const std::vector<Job> jobs = shared_jobs(5, 50, 8, 16, 1, 1000);
  for (const Job& job : jobs) {
    REQUIRE(job.prompt.size() == 58);
    CHECK(std::equal(job.prompt.begin(), job.prompt.begin() + 50, jobs[0].prompt.begin()));
    CHECK(job.max_tokens == 16);
  }
  CHECK(!std::equal(jobs[1].prompt.begin() + 50, jobs[1].prompt.end(), jobs[0].prompt.begin() + 50));
}

}  // namespace
