// drive(): submits a workload's requests when they arrive, steps the engine, and notes when each token came.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bench/engine/metrics.hpp"
#include "bench/engine/workloads.hpp"
#include "engine/engine.hpp"
#include "engine/request.hpp"
#include "engine/sampling.hpp"

namespace bench {

/// Times by job. `params` hold for all, but max_tokens and the seed, which is the job's number. Every job runs to its
/// end: ids that end a text do not.
inline std::vector<RequestTimes> drive(engine::Engine& engine, std::span<const Job> jobs,
                                       engine::SamplingParams params) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::vector<RequestTimes> times(jobs.size());
  std::unordered_map<int, std::size_t> job_of;  // by id
  std::vector<int> finished;
  params.ignore_eos = true;
  for (std::size_t next = 0; next < jobs.size() || !engine.is_idle();) {
    for (; next < jobs.size() && jobs[next].arrival <= seconds(); ++next) {
      params.max_tokens = jobs[next].max_tokens;
      params.seed = next;
      job_of.emplace(engine.submit(jobs[next].prompt, params), next);
      times[next].arrival = jobs[next].arrival;
    }
    if (engine.is_idle()) {
      std::this_thread::sleep_until(
          start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(jobs[next].arrival)));
      continue;
    }
    const std::span<const engine::Event> events = engine.step();
    const double now = seconds();
    for (const engine::Event& event : events) {
      const auto found = job_of.find(event.request->id);
      if (found == job_of.end()) continue;  // another sample ended in the same step, and the request with it
      RequestTimes& request = times[found->second];
      if (event.sample == 0) request.tokens.push_back(now);
      if (event.request->state != engine::State::finished) continue;
      if (request.tokens.empty() || request.tokens.back() != now) request.tokens.push_back(now);
      request.prompt_tokens = event.request->prompt_len;
      for (const engine::Branch& branch : event.request->branches)
        request.output_tokens += std::ssize(branch.tokens) - event.request->prompt_len;
      finished.push_back(event.request->id);
      job_of.erase(found);
    }
    for (const int id : finished) engine.forget(id);
    finished.clear();
  }
  return times;
}

}  // namespace bench
