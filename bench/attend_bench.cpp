// Decode attention on the CPU: bytes of K and V per second, against the rate at which the same threads can only read
// them.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "support/bound.hpp"

namespace {

using namespace pagedkv;

constexpr int num_seqs = 8, kv_len = 2048, block_size = 16, kv_heads = 8, group_size = 4, head_dim = 128;
constexpr int q_heads = kv_heads * group_size, blocks_per_seq = kv_len / block_size;

// Reads all of a pool, in pieces, and does as little else as keeps the reads alive.
template <class T>
void read_pool(KvPool<T>& pool, cpu::ThreadExecutor& threads) {
  const auto* begin = reinterpret_cast<const unsigned char*>(pool.layer(0).k.data);
  constexpr std::size_t piece = 1 << 18;
  threads(static_cast<int>(pool.size_bytes() / piece), [&](int index) {
    std::uint64_t sum[8] = {}, words[8];
    for (std::size_t i = 0; i < piece; i += sizeof words) {
      std::memcpy(words, begin + static_cast<std::size_t>(index) * piece + i, sizeof words);
      for (int lane = 0; lane < 8; ++lane) sum[lane] += words[lane];
    }
    benchmark::DoNotOptimize(sum);
  });
}

template <class T>
void decode(benchmark::State& state) {
  KvPool<T> pool(
      {.num_blocks = num_seqs * blocks_per_seq, .kv_heads = kv_heads, .block_size = block_size, .head_dim = head_dim});
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  T* const elements = pool.layer(0).k.data;
  for (std::size_t i = 0; i < pool.size_bytes() / sizeof(T); ++i) elements[i] = from_float<T>(normal(random));
  std::vector<float> q(num_seqs * q_heads * head_dim), out(q.size());
  for (float& x : q) x = normal(random);

  // Block b of sequence s is block b * num_seqs + s of the pool: neighbours in a table are not neighbours in memory.
  std::vector<std::int32_t> block_ids, kv_lens(num_seqs, kv_len), query_begin;
  for (int s = 0; s < num_seqs; ++s)
    for (int b = 0; b < blocks_per_seq; ++b) block_ids.push_back(b * num_seqs + s);
  for (int s = 0; s <= num_seqs; ++s) query_begin.push_back(s);
  const AttentionProblem<Space::host, float, T> problem{
      .q = dense_view(q.data(), {num_seqs, q_heads, head_dim}),
      .kv = pool.layer(0),
      .tables = {.block_ids = dense_view(block_ids.data(), {num_seqs, blocks_per_seq}),
                 .kv_len = dense_view(kv_lens.data(), {num_seqs}),
                 .query_begin = dense_view(query_begin.data(), {num_seqs + 1}),
                 .max_q_len = 1,
                 .max_kv_len = kv_len},
      .out = dense_view(out.data(), {num_seqs, q_heads, head_dim}),
      .lse = {},
      .scale = 1 / std::sqrt(static_cast<float>(head_dim))};

  cpu::ThreadExecutor threads(static_cast<int>(state.range(0)));
  bench::run_against(state, "reading", bench::seconds_per_call([&] { read_pool(pool, threads); }),
                     [&] { cpu::attend(problem, Causal{}, threads); });
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(pool.size_bytes()));
}
BENCHMARK(decode<bf16>)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK(decode<f16>)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK(decode<float>)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
