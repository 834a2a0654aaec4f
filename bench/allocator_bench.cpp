// BlockAllocator against the least that could do its work: a std::vector used as a stack of free ids.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "support/bound.hpp"

namespace {

using namespace pagedkv;

// Takes and gives back `count` blocks of a pool that has all of its records.
void allocate_and_release(benchmark::State& state) {
  constexpr int num_blocks = 1 << 16;
  const auto count = static_cast<std::size_t>(state.range(0));

  std::vector<std::int32_t> free_ids(num_blocks), taken(count);
  std::iota(free_ids.begin(), free_ids.end(), 0);
  const double bound = bench::seconds_per_call([&] {
    for (std::int32_t& id : taken) {
      id = free_ids.back();
      free_ids.pop_back();
    }
    benchmark::DoNotOptimize(taken.data());
    free_ids.insert(free_ids.end(), taken.rbegin(), taken.rend());
    benchmark::ClobberMemory();
  });

  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 16}};
  std::vector<BlockId> all(num_blocks), ids(count);
  if (!blocks.allocate(all)) state.SkipWithError("out of blocks");
  blocks.release(all);
  bench::run_against(state, "vector_stack", bound, [&] {
    benchmark::DoNotOptimize(blocks.allocate(ids));
    blocks.release(ids);
    benchmark::ClobberMemory();
  });
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(allocate_and_release)->Arg(1)->Arg(16)->Arg(256)->Arg(4096);

}  // namespace
