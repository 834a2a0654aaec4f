// BlockAllocator: taking blocks and giving them back, refusing, and starting a pool; against a std::vector used as a
// stack of ids (the floor: it detects no wrong use and counts no owners), malloc of 64 bytes, and an afternoon's work.
//   BM/num_blocks/order: order 0 hands out ids all over the pool, 1 in runs of 64 neighbours. Nanoseconds are per block
//   taken and given back.
#include <benchmark/benchmark.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "support/afternoon.hpp"
#include "support/pools.hpp"
#include "support/rounds.hpp"

namespace {

using namespace pagedkv;

using bench::must;

struct Ours {
  using Item = BlockId;
  Ours(std::int32_t num_blocks, bench::Order order) : blocks(num_blocks, 16, order) {}
  void take(std::span<BlockId> out) { must(blocks.allocate(out)); }
  void give(std::span<BlockId> ids) { blocks.release(ids); }
  bench::Pool blocks;
};

struct Stack {
  using Item = std::int32_t;
  Stack(std::int32_t num_blocks, bench::Order order) : free_ids(bench::ids_in(order, num_blocks)) {
    benchmark::DoNotOptimize(this);
  }
  void take(std::span<std::int32_t> out) {
    for (std::int32_t& id : out) {
      id = free_ids.back();
      free_ids.pop_back();
    }
    benchmark::ClobberMemory();
  }
  void give(std::span<std::int32_t> ids) {
    free_ids.insert(free_ids.end(), ids.rbegin(), ids.rend());
    benchmark::ClobberMemory();
  }
  std::vector<std::int32_t> free_ids;
};

struct Malloc {
  using Item = void*;
  Malloc(std::int32_t, bench::Order) {}
  void take(std::span<void*> out) {
    for (void*& item : out) benchmark::DoNotOptimize(item = std::malloc(64));
  }
  void give(std::span<void*> items) {
    for (std::size_t i = items.size(); i-- > 0;) std::free(items[i]);
  }
};

struct Afternoon {
  using Item = bench::Afternoon::BlockPtr;
  Afternoon(std::int32_t num_blocks, bench::Order order) : blocks(bench::ids_in(order, num_blocks), 16) {}
  void take(std::span<Item> out) {
    must(blocks.allocate(static_cast<int>(out.size()), table));
    std::move(table.begin(), table.end(), out.begin());
    table.clear();
  }
  void give(std::span<Item> items) {
    for (std::size_t i = items.size(); i-- > 0;) blocks.release(std::move(items[i]));
  }
  bench::Afternoon blocks;
  std::vector<Item> table;
};

// Takes `num_items` in batches, then gives them back in batches, the last first; and that several times.
template <class Pool>
struct Churn {
  Churn(std::int32_t num_blocks, bench::Order order) : pool(num_blocks, order) {}
  void operator()(std::size_t num_items, std::size_t batch, int times) {
    items.resize(num_items);
    for (int i = 0; i < times; ++i) {
      for (std::size_t at = 0; at < num_items; at += batch) pool.take(part(at, batch));
      for (std::size_t at = num_items; at > 0; at -= batch) pool.give(part(at - batch, batch));
    }
  }
  std::span<typename Pool::Item> part(std::size_t at, std::size_t batch) { return std::span(items).subspan(at, batch); }
  Pool pool;
  std::vector<typename Pool::Item> items;
};

void churn(benchmark::State& state, std::size_t num_items, std::size_t batch, int times, bench::Caches caches) {
  const auto num_blocks = static_cast<std::int32_t>(state.range(0));
  const auto order = static_cast<bench::Order>(state.range(1));
  const bench::Rounds rounds{static_cast<double>(num_items) * times, caches};
  const auto work_of = [&]<class Pool>(Churn<Pool>& churn) { return [&, times] { churn(num_items, batch, times); }; };
  bench::measure(state, rounds, bench::nothing, work_of(bench::kept<Churn<Ours>>(num_blocks, order)));
  bench::floor(state, rounds, bench::nothing, work_of(bench::kept<Churn<Stack>>(num_blocks, order)));
  bench::rival(state, "malloc", rounds, bench::nothing, work_of(bench::kept<Churn<Malloc>>(num_blocks, order)));
  bench::rival(state, "afternoon", rounds, bench::nothing, work_of(bench::kept<Churn<Afternoon>>(num_blocks, order)));
}

// 64 blocks, one at a time: always the ones that were freed last.
void single(benchmark::State& state) { churn(state, 64, 1, 64, bench::Caches::warm); }
// 64 blocks at once.
void batch_of_64(benchmark::State& state) { churn(state, 64, 64, 64, bench::Caches::warm); }
// Every block of the pool, 64 at a time.
void whole_pool(benchmark::State& state) {
  churn(state, static_cast<std::size_t>(state.range(0)) / 64 * 64, 64, 1, bench::Caches::warm);
}
// 960 blocks, 64 at a time, after the last-level cache was flushed.
void cold(benchmark::State& state) { churn(state, 960, 64, 1, bench::Caches::flushed); }

const std::vector<std::int64_t> sizes = {1'000, 10'000, 100'000, 1'000'000, 10'000'000};
BENCHMARK(single)->ArgsProduct({sizes, {0}})->Iterations(1)->UseManualTime();
BENCHMARK(batch_of_64)->ArgsProduct({sizes, {0, 1}})->Iterations(1)->UseManualTime();
BENCHMARK(whole_pool)->ArgsProduct({sizes, {0, 1}})->Iterations(1)->UseManualTime();
BENCHMARK(cold)->ArgsProduct({sizes, {0, 1}})->Iterations(1)->UseManualTime();

// Asks a full pool for 64 blocks.
void refused(benchmark::State& state) {
  const auto num_blocks = static_cast<std::int32_t>(state.range(0));
  constexpr int times = 1000;
  BlockAllocator blocks({.num_blocks = num_blocks, .block_size = 16});
  std::vector<BlockId> all(static_cast<std::size_t>(num_blocks)), ids(64);
  must(blocks.allocate(all));
  bench::measure(state, {times}, bench::nothing, [&] {
    for (int i = 0; i < times; ++i) must(!blocks.allocate(ids));
  });
  blocks.release(all);
  bench::Afternoon afternoon(bench::ids_in(bench::Order::random, 1000), 16);
  std::vector<bench::Afternoon::BlockPtr> table;
  must(afternoon.allocate(1000, table));
  benchmark::DoNotOptimize(&afternoon);
  bench::rival(state, "afternoon", {times}, bench::nothing, [&] {
    for (int i = 0; i < times; ++i) {
      benchmark::ClobberMemory();
      must(!afternoon.allocate(64, table));
    }
  });
}
BENCHMARK(refused)->Arg(1'000)->Arg(1'000'000)->Iterations(1)->UseManualTime();

// What other benchmarks have freed would make a pool that comes out of it too cheap.
void forget_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// From nothing to the first block handed out; ns is for the whole pool. The floor is a vector of the ids.
void start_pool(benchmark::State& state) {
  const auto num_blocks = static_cast<std::int32_t>(state.range(0));
  std::unique_ptr<BlockAllocator> blocks;
  const bench::Rounds rounds{1, bench::Caches::warm, 9};
  BlockId id;
  bench::measure(
      state, rounds,
      [&] {
        if (blocks != nullptr) blocks->release({&id, 1});
        blocks.reset();
        forget_freed_memory();
      },
      [&] {
        blocks = std::make_unique<BlockAllocator>(BlockAllocatorOptions{.num_blocks = num_blocks, .block_size = 16});
        must(blocks->allocate({&id, 1}));
      });
  blocks->release({&id, 1});
  bench::floor(state, rounds, bench::nothing, [&] {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_blocks));
    std::iota(ids.begin(), ids.end(), 0);
    benchmark::DoNotOptimize(ids.data());
  });
  const auto ids = bench::ids_in(bench::Order::clustered, num_blocks);
  std::unique_ptr<bench::Afternoon> afternoon;
  bench::rival(
      state, "afternoon", {1, bench::Caches::warm, 3}, [&] { afternoon.reset(); },
      [&] { afternoon = std::make_unique<bench::Afternoon>(ids, 16); });
}
BENCHMARK(start_pool)->Arg(10'000)->Arg(10'000'000)->Iterations(1)->UseManualTime();

}  // namespace
