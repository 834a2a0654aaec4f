// Attention on the CPU. Decode: bytes of K and V per second, against the rate at which the same threads can only read
// them. Prefill: FLOP/s, against OpenBLAS's sgemm on as many threads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "support/cpu_bounds.hpp"

namespace {

using namespace pagedkv;

constexpr int block_size = 16;

struct Shape {
  int num_seqs, q_len, kv_len, q_heads, kv_heads, head_dim;
};

// A batch of equally long sequences. Block b of sequence s is block b * num_seqs + s of the pool: neighbours in a table
// are not neighbours in memory.
template <class T>
struct Batch {
  explicit Batch(const Shape& wanted)
      : shape(wanted),
        pool({.num_blocks = shape.num_seqs * blocks_per_seq(),
              .kv_heads = shape.kv_heads,
              .block_size = block_size,
              .head_dim = shape.head_dim}),
        q(static_cast<std::size_t>(num_tokens()) * static_cast<std::size_t>(shape.q_heads * shape.head_dim)),
        out(q.size()),
        kv_lens(static_cast<std::size_t>(shape.num_seqs), shape.kv_len) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<T> values(1 << 20);  // repeated: a pool has up to a billion
    for (T& x : values) x = from_float<T>(normal(random));
    const std::size_t num_elements = pool.size_bytes() / sizeof(T);
    for (std::size_t i = 0; i < num_elements; i += values.size())
      std::memcpy(pool.layer(0).k.data + i, values.data(), std::min(values.size(), num_elements - i) * sizeof(T));
    for (float& x : q) x = normal(random);
    for (int s = 0; s < shape.num_seqs; ++s)
      for (int b = 0; b < blocks_per_seq(); ++b) block_ids.push_back(b * shape.num_seqs + s);
    for (int s = 0; s <= shape.num_seqs; ++s) query_begin.push_back(s * shape.q_len);
  }

  int blocks_per_seq() const { return shape.kv_len / block_size; }
  int num_tokens() const { return shape.num_seqs * shape.q_len; }
  double num_flops() const {  // Q K and P V, of what causal queries see
    double keys = 0;
    for (int i = 0; i < shape.q_len; ++i) keys += shape.kv_len - shape.q_len + i + 1;
    return 4 * keys * shape.head_dim * shape.q_heads * shape.num_seqs;
  }
  AttentionProblem<Space::host, float, T> problem() {
    return {.q = dense_view(q.data(), {num_tokens(), shape.q_heads, shape.head_dim}),
            .kv = pool.layer(0),
            .tables = {.block_ids = dense_view(block_ids.data(), {shape.num_seqs, blocks_per_seq()}),
                       .kv_len = dense_view(kv_lens.data(), {shape.num_seqs}),
                       .query_begin = dense_view(query_begin.data(), {shape.num_seqs + 1}),
                       .max_q_len = shape.q_len,
                       .max_kv_len = shape.kv_len},
            .out = dense_view(out.data(), {num_tokens(), shape.q_heads, shape.head_dim}),
            .lse = {},
            .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  }

  Shape shape;
  KvPool<T> pool;
  std::vector<float> q, out;
  std::vector<std::int32_t> kv_lens, block_ids, query_begin;
};

template <class T>
void decode(benchmark::State& state, Shape shape) {
  Batch<T> batch(shape);
  const auto problem = batch.problem();
  cpu::ThreadExecutor threads(static_cast<int>(state.range(0)));
  const auto bytes = static_cast<double>(batch.pool.size_bytes());
  bench::run_in_turns(
      state, "GBps", bytes, [&] { cpu::attend(problem, Causal{}, threads); }, "reading", bytes,
      [&] { bench::read_all(batch.pool.layer(0).k.data, batch.pool.size_bytes(), threads); });
}

template <class T>
void prefill(benchmark::State& state, Shape shape) {
  Batch<T> batch(shape);
  const auto problem = batch.problem();
  const int num_threads = static_cast<int>(state.range(0));
  cpu::ThreadExecutor threads(num_threads);
  bench::Sgemm sgemm(num_threads);
  if (!sgemm.is_there()) return state.SkipWithError("OpenBLAS not found (Debian and Ubuntu: apt install libopenblas0)");
  bench::run_in_turns(
      state, "GFLOPs", batch.num_flops(), [&] { cpu::attend(problem, Causal{}, threads); }, "sgemm",
      bench::Sgemm::num_flops, [&] { sgemm.run(); });
}

void add(const std::string& name, void (*run)(benchmark::State&, Shape), Shape shape) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, shape); })
      ->Arg(1)
      ->Arg(2)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

[[maybe_unused]] const bool is_registered = [] {
  // K and V of a gigabyte in bf16, and one long sequence.
  add("decode<bf16>/32_heads_on_8_of_128", decode<bf16>, {128, 1, 2048, 32, 8, 128});
  add("decode<bf16>/32_heads_on_8_of_64", decode<bf16>, {256, 1, 2048, 32, 8, 64});
  add("decode<bf16>/9_heads_on_3_of_64", decode<bf16>, {640, 1, 2048, 9, 3, 64});
  add("decode<bf16>/one_of_16k_32_heads_on_8_of_128", decode<bf16>, {1, 1, 16384, 32, 8, 128});
  add("decode<f16>/32_heads_on_8_of_128", decode<f16>, {128, 1, 2048, 32, 8, 128});
  add("decode<float>/32_heads_on_8_of_128", decode<float>, {64, 1, 2048, 32, 8, 128});
  add("decode<float>/9_heads_on_3_of_64", decode<float>, {320, 1, 2048, 9, 3, 64});
  add("prefill<float>/1k_9_heads_on_3_of_64", prefill<float>, {4, 1024, 1024, 9, 3, 64});
  add("prefill<bf16>/1k_32_heads_on_8_of_128", prefill<bf16>, {1, 1024, 1024, 32, 8, 128});
  add("prefill<bf16>/4k_9_heads_on_3_of_64", prefill<bf16>, {1, 4096, 4096, 9, 3, 64});
  add("prefill<float>/4k_32_heads_on_8_of_128", prefill<float>, {1, 4096, 4096, 32, 8, 128});
  add("prefill<bf16>/4k_32_heads_on_8_of_128", prefill<bf16>, {1, 4096, 4096, 32, 8, 128});
  return true;
}();

}  // namespace
