// Workloads: the requests of the engine's benchmarks; token ids, lengths and arrivals, the same on every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

#include "bench/engine/python_random.hpp"

namespace bench {

struct Job {
  std::vector<std::int32_t> prompt;
  int max_tokens = 0;
  double arrival = 0;  // seconds behind the start
};

inline std::vector<std::int32_t> random_ids(PythonRandom& random, int count, int highest) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (std::int32_t& id : ids) id = random.randint(0, highest);
  return ids;
}

/// The offline run of nano-vLLM (bench.py), number by number: all prompts first, with ids up to 10,000, then all
/// lengths of output. With 256 requests of 100 to 1,024 and seed 0: 142,827 prompt tokens, 133,966 of output. Ids that
/// the vocabulary does not have are folded into it.
inline std::vector<Job> offline_jobs(int num_requests, int min_len, int max_len, std::uint32_t seed, int vocab) {
  PythonRandom random(seed);
  std::vector<Job> jobs(static_cast<std::size_t>(num_requests));
  for (Job& job : jobs) job.prompt = random_ids(random, random.randint(min_len, max_len), 10000);
  for (Job& job : jobs) job.max_tokens = random.randint(min_len, max_len);
  for (Job& job : jobs)
    for (std::int32_t& id : job.prompt) id %= vocab;
  return jobs;
}

/// Lengths whose logarithm is normal.
struct LogNormal {
  double mean = 0;
  double sigma = 1;  // of the logarithm

  int draw(PythonRandom& random, int most) const {
    const double u = 1 - random.random(), v = random.random();  // Box and Muller 1958; u is never 0
    const double normal = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
    const double len = mean * std::exp(sigma * normal - sigma * sigma / 2);
    return static_cast<int>(std::clamp(std::round(len), 1., static_cast<double>(most)));
  }
};

struct OnlineShape {
  double rate = 1;                    // requests a second, arriving independently of each other (Poisson)
  LogNormal input{161}, output{338};  // the means of ShareGPT's chats (arXiv:2309.06180, sec. 6.1)
  int max_len = 1024;                 // of each
};

inline std::vector<Job> online_jobs(int num_requests, const OnlineShape& shape, std::uint32_t seed, int vocab) {
  PythonRandom random(seed);
  std::vector<Job> jobs(static_cast<std::size_t>(num_requests));
  double now = 0;
  for (Job& job : jobs) {
    job.arrival = now;
    now -= std::log(1 - random.random()) / shape.rate;
    job.prompt = random_ids(random, shape.input.draw(random, shape.max_len), vocab - 1);
    job.max_tokens = shape.output.draw(random, shape.max_len);
  }
  return jobs;
}

/// Requests at once that begin with the same tokens, and end with some of their own.
inline std::vector<Job> shared_jobs(int num_requests, int shared_len, int own_len, int max_tokens, std::uint32_t seed,
                                    int vocab) {
  PythonRandom random(seed);
  const std::vector<std::int32_t> shared = random_ids(random, shared_len, vocab - 1);
  std::vector<Job> jobs(static_cast<std::size_t>(num_requests));
  for (Job& job : jobs) {
    job.prompt = shared;
    const std::vector<std::int32_t> own = random_ids(random, own_len, vocab - 1);
    job.prompt.insert(job.prompt.end(), own.begin(), own.end());
    job.max_tokens = max_tokens;
  }
  return jobs;
}

}  // namespace bench
