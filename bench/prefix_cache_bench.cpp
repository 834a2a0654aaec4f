// PrefixCache: admitting known and unknown prompts, against comparing the same tokens once with memcmp.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "support/bound.hpp"

namespace {

using namespace pagedkv;

constexpr int block_size = 16;

std::vector<std::int32_t> prompt(int num_tokens, int seed) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(num_tokens));
  std::uint32_t x = static_cast<std::uint32_t>(seed) * 2654435761u + 1u;
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>((x = x * 1664525u + 1013904223u) >> 16);
  return tokens;
}

double seconds_to_compare(const std::vector<std::int32_t>& tokens) {
  const std::vector<std::int32_t> same = tokens;
  return bench::seconds_per_call(
      [&] { benchmark::DoNotOptimize(std::memcmp(tokens.data(), same.data(), tokens.size() * sizeof(std::int32_t))); });
}

void admit(benchmark::State& state, PrefixCache& prefixes, Sequence& sequence, StepPlan& step,
           const std::vector<std::int32_t>& tokens) {
  if (!prefixes.admit(tokens, sequence, step)) state.SkipWithError("refused");
}

// The whole prompt but its last tokens is in the cache.
void admit_known_prompt(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  const std::vector<std::int32_t> tokens = prompt(num_tokens, 1);
  BlockAllocator blocks{{.num_blocks = 2 * num_tokens / block_size, .block_size = block_size}};
  PrefixCache prefixes{blocks};
  StepPlan step;
  {
    Sequence first{blocks};
    admit(state, prefixes, first, step, tokens);
    step.commit();
    prefixes.publish(tokens, first);
  }
  bench::run_against(state, "memcmp", seconds_to_compare(tokens), [&] {
    Sequence sequence{blocks};
    admit(state, prefixes, sequence, step, tokens);
    step.commit();
  });
  state.SetItemsProcessed(state.iterations() * num_tokens);
}
BENCHMARK(admit_known_prompt)->Arg(512)->Arg(8192);

// Every prompt is new and the pool is full of idle blocks: each admission evicts as many blocks as it publishes.
void admit_publish_and_evict(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  constexpr int num_prompts = 64;
  std::vector<std::vector<std::int32_t>> prompts;
  for (int seed = 0; seed < num_prompts; ++seed) prompts.push_back(prompt(num_tokens, seed));
  BlockAllocator blocks{{.num_blocks = 8 * num_tokens / block_size, .block_size = block_size}};
  PrefixCache prefixes{blocks};
  StepPlan step;
  std::size_t next = 0;
  bench::run_against(state, "memcmp", seconds_to_compare(prompts[0]), [&] {
    const std::vector<std::int32_t>& tokens = prompts[next++ % num_prompts];
    Sequence sequence{blocks};
    admit(state, prefixes, sequence, step, tokens);
    step.commit();
    prefixes.publish(tokens, sequence);
  });
  state.SetItemsProcessed(state.iterations() * num_tokens);
  state.counters["evicted_blocks"] =
      benchmark::Counter(static_cast<double>(prefixes.stats().evicted_blocks), benchmark::Counter::kAvgIterations);
}
BENCHMARK(admit_publish_and_evict)->Arg(512)->Arg(8192);

}  // namespace
