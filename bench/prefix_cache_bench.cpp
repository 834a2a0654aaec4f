// PrefixCache: finding, reviving, letting go of and evicting cached blocks of 16 tokens; against the least that could
// do the work and an afternoon's work (std::unordered_map, std::list, std::shared_ptr).
//   BM/num_blocks/order/flushed: the pool is full of cached prompts of 64 blocks, and some of them, drawn at random,
//   are visited. Order 0 scatters the ids of each prompt over the pool, 1 leaves them neighbours. Flushed: after the
//   last-level cache was flushed. Nanoseconds are per block.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "pagedkv/core/ids.hpp"
#include "support/cached_prompts.hpp"
#include "support/rounds.hpp"

namespace {

using namespace pagedkv;

using bench::must;

constexpr int block_size = bench::block_size, prompt_blocks = bench::prompt_blocks;
using Ours = bench::CachedPool;
using Afternoon = bench::AfternoonPool;
using bench::Prompts, bench::Tokens, bench::write_prompt;

// The floor of an eviction order: a doubly linked list of ids in two arrays.
struct Links {
  explicit Links(int num_blocks) : before(static_cast<std::size_t>(num_blocks) + 1), behind(before.size()) {
    before.back() = behind.back() = num_blocks;
    benchmark::DoNotOptimize(this);
  }
  std::int32_t& at(std::vector<std::int32_t>& links, std::int32_t id) { return links[static_cast<std::size_t>(id)]; }
  void push(std::int32_t id) {
    const auto end = static_cast<std::int32_t>(before.size()) - 1;
    const std::int32_t last = before.back();
    at(before, id) = last;
    at(behind, id) = end;
    at(behind, last) = before.back() = id;
  }
  void unlink(std::int32_t id) {
    at(behind, at(before, id)) = at(behind, id);
    at(before, at(behind, id)) = at(before, id);
  }
  std::vector<std::int32_t> before, behind;
};

bench::Order order_of(const benchmark::State& state) { return static_cast<bench::Order>(state.range(1)); }

template <class Pool>
Prompts<Pool>& prompts_of(const benchmark::State& state, bool to_evict) {
  return bench::kept<Prompts<Pool>>(static_cast<int>(state.range(0)), order_of(state), to_evict);
}

bench::Rounds rounds_of(const benchmark::State& state, double ops) {
  return {ops, state.range(2) != 0 ? bench::Caches::flushed : bench::Caches::warm, state.range(2) != 0 ? 9 : 101};
}

// The floor compares the same tokens once.
void find(benchmark::State& state) {
  auto& ours = prompts_of<Ours>(state, false);
  const bench::Rounds rounds = rounds_of(state, ours.num_drawn_blocks());
  bench::measure(
      state, rounds, [&] { ours.draw(); }, [&] { ours.find(); });
  const std::vector<Tokens> same = ours.questions;
  bench::floor(state, rounds, bench::nothing, [&] {
    for (std::size_t i = 0; i < same.size(); ++i)
      benchmark::DoNotOptimize(
          std::memcmp(same[i].data(), ours.questions[i].data(), same[i].size() * sizeof(std::int32_t)));
  });
  auto& afternoon = prompts_of<Afternoon>(state, false);
  bench::rival(
      state, "afternoon", rounds, [&] { afternoon.draw(); }, [&] { afternoon.find(); });
}

// Idle blocks find an owner. The floor unlinks them from a list.
void revive(benchmark::State& state) {
  auto& ours = prompts_of<Ours>(state, false);
  const bench::Rounds rounds = rounds_of(state, ours.num_drawn_blocks());
  const auto prepare_of = [](auto& prompts) {
    prompts.release();
    prompts.draw();
  };
  bench::measure(
      state, rounds, [&] { prepare_of(ours); }, [&] { ours.retain(); });
  ours.release();
  Links links(static_cast<int>(state.range(0)));
  const auto each = [&](auto f) {
    for (std::size_t i = 0; i < ours.num_drawn(); ++i)
      for (const BlockId id : ours.blocks_of[ours.indices[i]]) f(to_index(id));
  };
  for (const auto& blocks : ours.blocks_of)
    for (const BlockId id : blocks) links.push(to_index(id));
  bench::floor(
      state, rounds,
      [&, is_first = true]() mutable {
        if (!std::exchange(is_first, false)) each([&](std::int32_t id) { links.push(id); });
        ours.draw();
      },
      [&] { each([&](std::int32_t id) { links.unlink(id); }); });
  auto& afternoon = prompts_of<Afternoon>(state, false);
  bench::rival(
      state, "afternoon", rounds, [&] { prepare_of(afternoon); }, [&] { afternoon.retain(); });
  afternoon.release();
}

// Cached blocks lose their owner. The floor puts them at the end of a list.
void release_cached(benchmark::State& state) {
  auto& ours = prompts_of<Ours>(state, false);
  const bench::Rounds rounds = rounds_of(state, ours.num_drawn_blocks());
  const auto prepare_of = [](auto& prompts) {
    prompts.draw();
    prompts.retain();
  };
  bench::measure(
      state, rounds, [&] { prepare_of(ours); }, [&] { ours.release(); });
  Links links(static_cast<int>(state.range(0)));
  bench::floor(
      state, rounds, [&] { ours.draw(); },
      [&] {
        for (std::size_t i = 0; i < ours.num_drawn(); ++i) {
          const auto& blocks = ours.blocks_of[ours.indices[i]];
          for (std::size_t j = blocks.size(); j-- > 0;) links.push(to_index(blocks[j]));
        }
      });
  auto& afternoon = prompts_of<Afternoon>(state, false);
  bench::rival(
      state, "afternoon", rounds, [&] { prepare_of(afternoon); }, [&] { afternoon.release(); });
}

// No block is free, and 64 are wanted at a time. The floor unlinks as many from the front of a list.
void evict(benchmark::State& state) {
  auto& ours = prompts_of<Ours>(state, true);
  const bench::Rounds rounds = rounds_of(state, ours.num_drawn_blocks());
  bench::measure(
      state, rounds, [&] { ours.refill(); }, [&] { ours.evict(); });
  ours.refill();
  Links links(static_cast<int>(state.range(0)));
  for (const auto& blocks : ours.blocks_of)
    for (std::size_t j = blocks.size(); j-- > 0;) links.push(to_index(blocks[j]));
  std::vector<std::int32_t> taken;
  bench::floor(
      state, rounds,
      [&] {
        for (const std::int32_t id : taken) links.push(id);
        taken.clear();
      },
      [&] {
        for (int i = 0; i < static_cast<int>(rounds.ops); ++i) {
          const std::int32_t id = links.behind.back();
          links.unlink(id);
          taken.push_back(id);
        }
      });
  auto& afternoon = prompts_of<Afternoon>(state, true);
  bench::rival(
      state, "afternoon", rounds, [&] { afternoon.refill(); }, [&] { afternoon.evict(); });
  afternoon.refill();
}

struct Named {
  const char* name;
  void (*function)(benchmark::State&);
};

// By pool, so that what visits one shares it.
const bool registered = [] {
  for (const std::int64_t num_blocks : {1'000, 10'000, 100'000, 1'000'000, 10'000'000})
    for (const std::int64_t order : {0, 1})
      for (const auto& [name, function] : {Named{"find", find}, Named{"revive", revive},
                                           Named{"release_cached", release_cached}, Named{"evict", evict}})
        for (const std::int64_t flushed : {0, 1})
          benchmark::RegisterBenchmark(name, function)
              ->Args({num_blocks, order, flushed})
              ->Iterations(1)
              ->UseManualTime();
  return true;
}();

// A prompt of so many tokens, all but the last of them cached and idle, is admitted; `us` is the whole of it. The floor
// compares the tokens once.
void admit_known_prompt(benchmark::State& state) {
  const auto num_tokens = static_cast<std::size_t>(state.range(0));
  const int num_blocks = static_cast<int>(num_tokens) / block_size;
  Tokens tokens(num_tokens + 1);
  write_prompt(0, tokens);
  const bench::Rounds rounds{static_cast<double>(num_blocks), bench::Caches::warm, 51};
  const auto run = [&](auto& pool, auto& table, auto report) {
    pool.admit(tokens, table);
    pool.publish(tokens, table);
    report([&] { pool.drop(table); }, [&] { pool.admit(tokens, table); });
    pool.drop(table);
  };
  {
    Ours pool(2 * num_blocks, bench::Order::random);
    Ours::Table table;
    run(pool, table, [&](auto prepare, auto work) { bench::measure(state, rounds, prepare, work); });
  }
  const Tokens same = tokens;
  constexpr int times = 100;
  bench::floor(state, {rounds.ops * times, bench::Caches::warm, rounds.count}, bench::nothing, [&] {
    for (int i = 0; i < times; ++i) {
      benchmark::DoNotOptimize(std::memcmp(tokens.data(), same.data(), num_tokens * sizeof(std::int32_t)));
      benchmark::ClobberMemory();
    }
  });
  Afternoon pool(2 * num_blocks, bench::Order::random);
  Afternoon::Table table;
  run(pool, table, [&](auto prepare, auto work) { bench::rival(state, "afternoon", rounds, prepare, work); });
  state.counters["us"] = state.counters["ns"].value * num_blocks * 1e-3;
}
BENCHMARK(admit_known_prompt)->Arg(512)->Arg(8192)->Arg(131072)->Iterations(1)->UseManualTime();

// A new prompt of 64 blocks comes to a full pool, is computed, published and gone: as many blocks are evicted. The
// floor copies its tokens.
void admit_publish_and_evict(benchmark::State& state) {
  constexpr double num_blocks = prompt_blocks;
  const bench::Rounds rounds{num_blocks, bench::Caches::warm, 501};
  Tokens tokens(prompt_blocks * block_size);
  std::uint64_t seed = 0;
  const auto run = [&](auto& pool, auto& table, auto report) {
    const auto next = [&] { write_prompt(seed++, tokens); };
    const auto work = [&] {
      pool.admit(tokens, table);
      pool.publish(tokens, table);
      pool.drop(table);
    };
    for (std::int64_t i = 0; i < state.range(0) / prompt_blocks + 1; ++i) {
      next();
      work();
    }
    report(next, work);
  };
  Ours ours(static_cast<int>(state.range(0)), bench::Order::random);
  Ours::Table our_table;
  run(ours, our_table, [&](auto prepare, auto work) { bench::measure(state, rounds, prepare, work); });
  Tokens copy;
  constexpr int times = 100;
  bench::floor(state, {rounds.ops * times, bench::Caches::warm, 51}, bench::nothing, [&] {
    for (int i = 0; i < times; ++i) {
      copy = tokens;
      benchmark::DoNotOptimize(copy.data());
      benchmark::ClobberMemory();
    }
  });
  Afternoon afternoon(static_cast<int>(state.range(0)), bench::Order::random);
  Afternoon::Table table;
  run(afternoon, table, [&](auto prepare, auto work) { bench::rival(state, "afternoon", rounds, prepare, work); });
}
BENCHMARK(admit_publish_and_evict)->Arg(1'000)->Arg(100'000)->Arg(1'000'000)->Iterations(1)->UseManualTime();

}  // namespace
