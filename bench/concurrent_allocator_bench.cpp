// ConcurrentBlockAllocator with one to several threads, against BlockAllocator under one std::mutex and against malloc.
// ns_per_block is wall time over the blocks that all threads together took and gave back; more threads than cores (the
// output's first lines say how many there are) cannot lower it. ns_harness is the part of the benchmark itself.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/concurrent_block_allocator.hpp"
#include "support/bound.hpp"

namespace {

using namespace pagedkv;

constexpr int num_blocks = 1 << 16;

// What is compared: a pool, and a client for each thread.
struct Ours {
  using Item = BlockId;
  ConcurrentBlockAllocator blocks{num_blocks};
  struct Client {
    explicit Client(Ours& pool) : magazine(pool.blocks) {}
    void take(std::span<BlockId> out) {
      if (!magazine.allocate(out)) std::abort();
    }
    void give(std::span<const BlockId> ids) { magazine.release(ids); }
    ConcurrentBlockAllocator::Magazine magazine;
  };
};

struct Locked {
  using Item = BlockId;
  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 16}};
  std::mutex mutex;
  struct Client {
    explicit Client(Locked& all) : pool(all) {}
    void take(std::span<BlockId> out) {
      const std::lock_guard guard(pool.mutex);
      if (!pool.blocks.allocate(out)) std::abort();
    }
    void give(std::span<const BlockId> ids) {
      const std::lock_guard guard(pool.mutex);
      pool.blocks.release(ids);
    }
    Locked& pool;
  };
};

struct Malloc {
  using Item = void*;
  struct Client {
    explicit Client(Malloc&) {}
    void take(std::span<void*> out) {
      for (void*& item : out) item = std::malloc(64);
      benchmark::DoNotOptimize(out.data());
    }
    void give(std::span<void* const> items) {
      for (void* item : items) std::free(item);
    }
  };
};

// What the benchmark itself costs.
struct Nothing {
  using Item = BlockId;
  struct Client {
    explicit Client(Nothing&) {}
    void take(std::span<BlockId> out) {
      for (BlockId& id : out) id = BlockId{1};
    }
    void give(std::span<const BlockId> ids) { benchmark::DoNotOptimize(ids.data()); }
  };
};

// Calls body(i) on num_threads threads, which all begin at once; returns the seconds until the last one is done.
template <class Body>
double seconds_of_team(int num_threads, Body body) {
  std::atomic<int> num_ready{0};
  std::vector<double> begin(static_cast<std::size_t>(num_threads)), end(begin);
  std::vector<std::thread> team;
  for (int i = 0; i < num_threads; ++i)
    team.emplace_back([&, i] {
      ++num_ready;
      while (num_ready < num_threads) std::this_thread::yield();
      begin[static_cast<std::size_t>(i)] = bench::seconds_now();
      body(i);
      end[static_cast<std::size_t>(i)] = bench::seconds_now();
    });
  for (std::thread& thread : team) thread.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

constexpr std::int64_t blocks_per_thread = 1 << 19;

// Every thread takes `batch` blocks and gives them back, again and again. Seconds per block.
template <class Pool>
double own_frees(int num_threads, std::size_t batch) {
  Pool pool;
  const auto rounds = blocks_per_thread / static_cast<std::int64_t>(batch);
  const double seconds = seconds_of_team(num_threads, [&](int) {
    typename Pool::Client client{pool};
    std::vector<typename Pool::Item> items(batch);
    for (std::int64_t i = 0; i < rounds; ++i) {
      client.take(items);
      client.give(items);
    }
  });
  return seconds / static_cast<double>(rounds * num_threads * static_cast<std::int64_t>(batch));
}

// Threads in pairs: one takes blocks and sends them on, the other frees them. Seconds per block.
template <class Pool>
double remote_frees(int num_threads, std::size_t batch) {
  Pool pool;
  constexpr std::size_t num_slots = 64;
  struct alignas(64) Ring {
    std::vector<std::vector<typename Pool::Item>> slots;
    alignas(64) std::atomic<std::int64_t> num_sent{0};
    alignas(64) std::atomic<std::int64_t> num_freed{0};
  };
  std::vector<Ring> rings(static_cast<std::size_t>(num_threads / 2));
  for (Ring& ring : rings) ring.slots.assign(num_slots, std::vector<typename Pool::Item>(batch));
  const auto rounds = blocks_per_thread / static_cast<std::int64_t>(batch);
  const double seconds = seconds_of_team(num_threads, [&](int me) {
    typename Pool::Client client{pool};
    Ring& ring = rings[static_cast<std::size_t>(me / 2)];
    for (std::int64_t i = 0; i < rounds; ++i) {
      auto& items = ring.slots[static_cast<std::size_t>(i) % num_slots];
      if (me % 2 == 0) {
        while (i - ring.num_freed.load(std::memory_order_acquire) >= static_cast<std::int64_t>(num_slots))
          std::this_thread::yield();
        client.take(items);
        ring.num_sent.store(i + 1, std::memory_order_release);
      } else {
        while (ring.num_sent.load(std::memory_order_acquire) <= i) std::this_thread::yield();
        client.give(items);
        ring.num_freed.store(i + 1, std::memory_order_release);
      }
    }
  });
  return seconds / static_cast<double>(rounds * (num_threads / 2) * static_cast<std::int64_t>(batch));
}

template <class Measure>
double median(Measure measure) {
  std::vector<double> samples;
  for (int i = 0; i < 5; ++i) samples.push_back(measure());
  std::nth_element(samples.begin(), samples.begin() + 2, samples.end());
  return samples[2];
}

template <class Measure>
void report(benchmark::State& state, Measure ours, double locked, double malloc, double nothing) {
  std::vector<double> samples;
  for (auto _ : state) {
    samples.push_back(ours());
    state.SetIterationTime(samples.back());
  }
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2), samples.end());
  const double seconds = samples[samples.size() / 2];
  state.counters["ns_per_block"] = seconds * 1e9;
  state.counters["ns_harness"] = nothing * 1e9;
  state.counters["x_mutex"] = seconds / locked;
  state.counters["x_malloc"] = seconds / malloc;
}

void allocate_and_release(benchmark::State& state) {
  const auto num_threads = static_cast<int>(state.range(0));
  const auto batch = static_cast<std::size_t>(state.range(1));
  report(
      state, [&] { return own_frees<Ours>(num_threads, batch); },
      median([&] { return own_frees<Locked>(num_threads, batch); }),
      median([&] { return own_frees<Malloc>(num_threads, batch); }),
      median([&] { return own_frees<Nothing>(num_threads, batch); }));
}
BENCHMARK(allocate_and_release)
    ->ArgNames({"threads", "batch"})
    ->ArgsProduct({{1, 2, 4, 16}, {1, 16, 64, 1024}})
    ->UseManualTime()
    ->Iterations(9);

void allocate_here_release_there(benchmark::State& state) {
  const auto num_threads = static_cast<int>(state.range(0));
  const auto batch = static_cast<std::size_t>(state.range(1));
  report(
      state, [&] { return remote_frees<Ours>(num_threads, batch); },
      median([&] { return remote_frees<Locked>(num_threads, batch); }),
      median([&] { return remote_frees<Malloc>(num_threads, batch); }),
      median([&] { return remote_frees<Nothing>(num_threads, batch); }));
}
BENCHMARK(allocate_here_release_there)
    ->ArgNames({"threads", "batch"})
    ->ArgsProduct({{2, 4}, {1, 16, 64}})
    ->UseManualTime()
    ->Iterations(9);

// A request for more than is free, which has to ask all magazines before it is refused.
void refuse(benchmark::State& state) {
  ConcurrentBlockAllocator blocks{num_blocks};
  std::vector<ConcurrentBlockAllocator::Magazine> magazines;
  for (std::int64_t i = 0; i < state.range(0); ++i) magazines.emplace_back(blocks);
  std::vector<BlockId> ids(num_blocks), out(200);
  if (!magazines[0].allocate(std::span(ids).first(num_blocks - 100))) state.SkipWithError("out of blocks");
  for (auto _ : state) benchmark::DoNotOptimize(magazines[0].allocate(out));
  magazines[0].release(std::span(ids).first(num_blocks - 100));
}
BENCHMARK(refuse)->ArgName("magazines")->Arg(1)->Arg(16);

void construct(benchmark::State& state) {
  for (auto _ : state) {
    ConcurrentBlockAllocator blocks{static_cast<std::int32_t>(state.range(0))};
    ConcurrentBlockAllocator::Magazine mine{blocks};
    std::vector<BlockId> one(1);
    benchmark::DoNotOptimize(mine.allocate(one));
    mine.release(one);
  }
}
BENCHMARK(construct)->ArgName("blocks")->Arg(1'000)->Arg(10'000'000);

}  // namespace
