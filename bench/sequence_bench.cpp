// Sequence: append, fork, truncate, a refusal; against the least that could do the work and an afternoon's work
// (std::shared_ptr blocks in a std::vector a sequence). Pools hand out ids in random order.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "support/afternoon.hpp"
#include "support/pools.hpp"
#include "support/rounds.hpp"

namespace {

using namespace pagedkv;

using bench::must;

// A batch of sequences in a pool; one step of all of them at a time.
struct Ours {
  Ours(int num_blocks, int block_size, int batch) : blocks(num_blocks, block_size, bench::Order::random) {
    for (int i = 0; i < batch; ++i) sequences.emplace_back(blocks);
  }
  void append(int num_tokens) {
    for (Sequence& sequence : sequences) must(sequence.append(num_tokens, step));
  }
  void commit() { step.commit(); }
  void truncate(int size) {
    for (Sequence& sequence : sequences) sequence.truncate(size);
  }
  void drain() { blocks.drain(); }
  void fork() { benchmark::DoNotOptimize(sequences[0].fork().size()); }
  void fork_and_write() {
    Sequence child = sequences[0].fork();
    must(child.append(1, step));
  }
  bool append_one_more(int num_tokens) { return sequences[0].append(num_tokens, step); }
  int size() const { return sequences[0].size(); }
  bench::Pool blocks;
  StepPlan step;
  std::vector<Sequence> sequences;
};

struct Afternoon {
  Afternoon(int num_blocks, int block_size, int batch)
      : blocks(bench::ids_in(bench::Order::random, num_blocks), block_size),
        sequences(static_cast<std::size_t>(batch)) {}
  ~Afternoon() { truncate(0); }
  void append(int num_tokens) {
    for (auto& sequence : sequences) must(blocks.append(sequence, num_tokens, slots));
  }
  void commit() {
    slots.clear();
    blocks.copies.clear();
  }
  void truncate(int size) {
    for (auto& sequence : sequences) blocks.truncate(sequence, size);
  }
  void drain() {}
  void fork() {
    auto child = blocks.fork(sequences[0]);
    blocks.truncate(child, 0);
  }
  void fork_and_write() {
    auto child = blocks.fork(sequences[0]);
    must(blocks.append(child, 1, slots));
    blocks.truncate(child, 0);
  }
  bool append_one_more(int num_tokens) { return blocks.append(sequences[0], num_tokens, slots); }
  int size() const { return sequences[0].size; }
  bench::Afternoon blocks;
  std::vector<bench::Afternoon::Sequence> sequences;
  std::vector<std::int64_t> slots;
};

constexpr int max_len = 2048;

// The floor of an append: the next slot of a sequence goes to the end of a vector.
struct Counters {
  static constexpr int times = 64;
  explicit Counters(int batch) : next_slot(static_cast<std::size_t>(batch)) { slots.reserve(next_slot.size()); }
  void operator()() {
    for (int i = 0; i < times; ++i) {
      slots.clear();
      for (std::int64_t& slot : next_slot) slots.push_back(slot++);
      benchmark::DoNotOptimize(slots.data());
      benchmark::ClobberMemory();
    }
  }
  std::vector<std::int64_t> next_slot, slots;
};

enum class Place { in_block, at_boundary, anywhere };

// Appends one token to each sequence of a batch: where the tail block has room, where it is full, or until a block is
// filled, then with the commits.
template <class Pool>
struct Decode {
  Decode(int num_blocks, int block_size, int batch, Place where)
      : pool(num_blocks, block_size, batch), block_size_(block_size), where_(where) {}
  ~Decode() { pool.commit(); }
  void prepare() {
    pool.commit();
    if (pool.size() + 2 * block_size_ > max_len) {
      pool.truncate(0);
      pool.drain();
    }
    if (where_ == Place::anywhere) return;
    // To the next full block, and one into the one behind it where room is wanted.
    const int used = pool.size() % block_size_;
    const bool has_room = pool.size() > 0 && used > 0;
    if (where_ == Place::in_block ? !has_room : used > 0) {
      pool.append(where_ == Place::in_block ? 1 : block_size_ - used);
      pool.commit();
    }
  }
  void work() {
    if (where_ != Place::anywhere) return pool.append(1);
    for (int i = 0; i < block_size_; ++i) {
      pool.append(1);
      pool.commit();
    }
  }
  Pool pool;
  int block_size_;
  Place where_;
};

void append_one(benchmark::State& state, Place where) {
  const int block_size = static_cast<int>(state.range(0)), batch = static_cast<int>(state.range(1));
  const int num_blocks = batch * (max_len / block_size + 2);
  const bench::Rounds rounds{static_cast<double>(batch) * (where == Place::anywhere ? block_size : 1)};
  const auto run = [&](auto& decode, auto report) { report([&] { decode.prepare(); }, [&] { decode.work(); }); };
  run(bench::kept<Decode<Ours>>(num_blocks, block_size, batch, where),
      [&](auto prepare, auto work) { bench::measure(state, rounds, prepare, work); });
  Counters counters(batch);
  bench::floor(state, {static_cast<double>(batch * Counters::times)}, bench::nothing, counters);
  run(bench::kept<Decode<Afternoon>>(num_blocks, block_size, batch, where),
      [&](auto prepare, auto work) { bench::rival(state, "afternoon", rounds, prepare, work); });
}
void append_in_block(benchmark::State& state) { append_one(state, Place::in_block); }
void append_at_boundary(benchmark::State& state) { append_one(state, Place::at_boundary); }
void append_and_commit(benchmark::State& state) { append_one(state, Place::anywhere); }
BENCHMARK(append_in_block)->ArgsProduct({{16}, {64, 512, 4096}})->Iterations(1)->UseManualTime();
BENCHMARK(append_at_boundary)->ArgsProduct({{16}, {64, 512, 4096}})->Iterations(1)->UseManualTime();
BENCHMARK(append_and_commit)
    ->ArgsProduct({{16}, {1}})
    ->ArgsProduct({{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}, {512}})
    ->Iterations(1)
    ->UseManualTime();

// Fork of a sequence of that many tokens, and the child's death. The floor is a counted pointer, copied and dropped.
template <bool writes>
void fork(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(0));
  constexpr int block_size = 16, times = 100;
  const auto prepare_of = [&](auto& pool) {
    if (pool.size() == 0) pool.append(num_tokens);
    pool.commit();
    pool.drain();
  };
  const auto work_of = [](auto& pool) {
    for (int i = 0; i < times; ++i) writes ? pool.fork_and_write() : pool.fork();
  };
  const int num_blocks = num_tokens / block_size + 2 + times;
  {
    auto& pool = bench::kept<Ours>(num_blocks, block_size, 1);
    bench::measure(
        state, {times, bench::Caches::warm, 51}, [&] { prepare_of(pool); }, [&] { work_of(pool); });
    pool.commit();
  }
  const auto table = std::make_shared<int>(num_tokens);
  bench::floor(state, {times}, bench::nothing, [&] {
    for (int i = 0; i < times; ++i) {
      auto copy = table;
      benchmark::DoNotOptimize(copy.get());
    }
  });
  auto& pool = bench::kept<Afternoon>(num_blocks, block_size, 1);
  const int few = num_tokens > 100'000 ? 1 : times;
  bench::rival(
      state, "afternoon", {static_cast<double>(few), bench::Caches::warm, 5}, [&] { prepare_of(pool); },
      [&] {
        for (int i = 0; i < few; ++i) writes ? pool.fork_and_write() : pool.fork();
      });
  pool.commit();
}
BENCHMARK(fork<false>)->Name("fork")->RangeMultiplier(10)->Range(10, 10'000'000)->Iterations(1)->UseManualTime();
BENCHMARK(fork<true>)
    ->Name("fork_and_write")
    ->RangeMultiplier(10)
    ->Range(10, 10'000'000)
    ->Iterations(1)
    ->UseManualTime();

// Each of many sequences of 100 blocks drops so many more that it had got; per dropped block. The floor puts the ids on
// a stack.
void truncate(benchmark::State& state) {
  const int dropped = static_cast<int>(state.range(0)), block_size = static_cast<int>(state.range(1));
  constexpr int kept_blocks = 100;
  const int batch = dropped < 64 ? 512 : 64;
  const int num_blocks = batch * (kept_blocks + dropped);
  const bench::Rounds rounds{static_cast<double>(batch) * dropped, bench::Caches::warm, 51};
  const auto prepare_of = [=](auto& pool) {
    if (pool.size() == 0) pool.append(kept_blocks * block_size);
    pool.append(dropped * block_size);
    pool.commit();
    pool.drain();
  };
  const auto work_of = [=](auto& pool) {
    pool.truncate(kept_blocks * block_size);
    pool.drain();
  };
  auto& ours = bench::kept<Ours>(num_blocks, block_size, batch);
  bench::measure(
      state, rounds, [&] { prepare_of(ours); }, [&] { work_of(ours); });
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(dropped));
  std::vector<std::int32_t> stack;
  stack.reserve(static_cast<std::size_t>(batch * dropped));
  bench::floor(
      state, rounds, [&] { stack.clear(); },
      [&] {
        for (int i = 0; i < batch; ++i) {
          stack.insert(stack.end(), ids.rbegin(), ids.rend());
          benchmark::DoNotOptimize(stack.data());
        }
      });
  auto& afternoon = bench::kept<Afternoon>(num_blocks, block_size, batch);
  bench::rival(
      state, "afternoon", rounds, [&] { prepare_of(afternoon); }, [&] { work_of(afternoon); });
}
BENCHMARK(truncate)->ArgsProduct({{1, 4, 16, 64, 1024}, {16}})->Iterations(1)->UseManualTime();

// One sequence of 4,096 tokens at different block sizes: append() and commit() of all at once, then truncate(0). Per
// token.
void prompt_comes_and_goes(benchmark::State& state) {
  const int block_size = static_cast<int>(state.range(0));
  constexpr int num_tokens = 4096;
  const int num_blocks = 64 * num_tokens / block_size;
  const bench::Rounds rounds{num_tokens};
  const auto work_of = [](auto& pool) {
    pool.append(num_tokens);
    pool.commit();
    pool.truncate(0);
    pool.drain();
  };
  auto& ours = bench::kept<Ours>(num_blocks, block_size, 1);
  bench::measure(state, rounds, bench::nothing, [&] { work_of(ours); });
  std::vector<Slot> slots;
  bench::floor(
      state, rounds, [&] { slots.clear(); },
      [&] {
        slots.resize(num_tokens);
        for (int i = 0; i < num_tokens; ++i) slots[static_cast<std::size_t>(i)] = i;
        benchmark::DoNotOptimize(slots.data());
      });
  auto& afternoon = bench::kept<Afternoon>(num_blocks, block_size, 1);
  bench::rival(state, "afternoon", rounds, bench::nothing, [&] { work_of(afternoon); });
}
BENCHMARK(prompt_comes_and_goes)->RangeMultiplier(2)->Range(1, 512)->Iterations(1)->UseManualTime();

// The pool is full; a sequence asks for 64 blocks.
void refused(benchmark::State& state) {
  constexpr int block_size = 16, times = 1000, num_tokens = 64 * block_size;
  const auto work_of = [](auto& pool) {
    for (int i = 0; i < times; ++i) {
      benchmark::ClobberMemory();
      must(!pool.append_one_more(num_tokens));
    }
  };
  const auto prepare_of = [](auto& pool) {
    if (pool.size() == 0) pool.append(num_tokens);
    pool.commit();
  };
  auto& ours = bench::kept<Ours>(64, block_size, 1);
  bench::measure(
      state, {times}, [&] { prepare_of(ours); }, [&] { work_of(ours); });
  auto& afternoon = bench::kept<Afternoon>(64, block_size, 1);
  bench::rival(
      state, "afternoon", {times}, [&] { prepare_of(afternoon); }, [&] { work_of(afternoon); });
}
BENCHMARK(refused)->Iterations(1)->UseManualTime();

}  // namespace
