// Sequence: appending, forking and copy-on-write, against the std::vector work that a flat block table cannot do
// without.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "support/bound.hpp"

namespace {

using namespace pagedkv;

constexpr int block_size = 16;

// One decode step of a batch: a token for each sequence, then the commit.
void append_one_token(benchmark::State& state) {
  const int batch = static_cast<int>(state.range(0));
  std::vector<std::vector<Slot>> plain(static_cast<std::size_t>(batch));
  for (auto& slots : plain) slots.reserve(1 << 20);
  const double bound = bench::seconds_per_call([&] {
    for (auto& slots : plain) slots.size() < (1 << 20) ? slots.push_back(1) : slots.clear();
    benchmark::ClobberMemory();
  });

  constexpr int max_len = 4096;
  BlockAllocator blocks{{.num_blocks = batch * (max_len / block_size), .block_size = block_size}};
  StepPlan step;
  std::vector<Sequence> sequences;
  for (int i = 0; i < batch; ++i) sequences.emplace_back(blocks);
  bench::run_against(state, "push_back", bound, [&] {
    for (Sequence& sequence : sequences) {
      if (sequence.size() == max_len) sequence.truncate(0);
      benchmark::DoNotOptimize(sequence.append(1, step));
    }
    step.commit();
  });
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK(append_one_token)->Arg(1)->Arg(64)->Arg(512);

// Forks a sequence of many tokens and drops the child; the bound copies a table of as many ids.
void fork_and_drop(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  const std::vector<BlockId> table(static_cast<std::size_t>(num_tokens / block_size));
  const double bound = bench::seconds_per_call([&] {
    std::vector<BlockId> copy = table;
    benchmark::DoNotOptimize(copy.data());
  });

  BlockAllocator blocks{{.num_blocks = num_tokens / block_size, .block_size = block_size}};
  StepPlan step;
  Sequence parent{blocks};
  if (!parent.append(num_tokens, step)) state.SkipWithError("out of blocks");
  step.commit();
  bench::run_against(state, "table_copy", bound, [&] {
    const Sequence child = parent.fork();
    benchmark::DoNotOptimize(child.size());
  });
}
BENCHMARK(fork_and_drop)->Arg(512)->Arg(8192)->Arg(131072);

// Copy-on-write: four beams of one parent each write into the shared tail block, then all but the parent go.
void four_beams_write_the_shared_tail(benchmark::State& state) {
  constexpr int num_tokens = 1000;  // the last block is half full
  const std::vector<BlockId> table(num_tokens / block_size + 1);
  const double bound = bench::seconds_per_call([&] {
    for (int beam = 0; beam < 4; ++beam) {
      std::vector<BlockId> copy = table;
      benchmark::DoNotOptimize(copy.data());
    }
  });

  BlockAllocator blocks{{.num_blocks = 1024, .block_size = block_size}};
  StepPlan step;
  Sequence parent{blocks};
  if (!parent.append(num_tokens, step)) state.SkipWithError("out of blocks");
  step.commit();
  std::int64_t copies = 0;
  bench::run_against(state, "four_table_copies", bound, [&] {
    std::vector<Sequence> beams;
    beams.reserve(4);
    for (int beam = 0; beam < 4; ++beam) {
      beams.push_back(parent.fork());
      benchmark::DoNotOptimize(beams.back().append(1, step));
    }
    copies += std::ssize(step.copies());
    step.commit();
  });
  state.counters["copies_per_step"] =
      benchmark::Counter(static_cast<double>(copies), benchmark::Counter::kAvgIterations);
}
BENCHMARK(four_beams_write_the_shared_tail);

}  // namespace
