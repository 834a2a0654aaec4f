// attend on mixed batches, bf16, head_dim 128, 32 query and 8 KV heads, blocks of 16: time of a call in a CUDA graph of
// calls on cold K and V, against the same batch's prompts and single tokens by a call each, in both orders. The five
// graphs of a case are replayed in turns, so that ratios hold whatever the clocks do.
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "support/bound.hpp"
#include "support/decode_main.cuh"
#include "support/graph.cuh"
#include "support/kv_memory.cuh"
#include "support/lengths.hpp"
#include "support/reference.cuh"
#include "support/statistics.hpp"

namespace {

using namespace bench;
using pagedkv::bf16;
using pagedkv::Causal;
using pagedkv::Space;
using pagedkv::cuda::Launch;

constexpr int head_dim = 128, q_heads = 32, kv_heads = 8, block_size = 16, num_rounds = 15, warm_up_rounds = 2;

/// `num` sequences of q_len queries each, the newest of kv_len keys.
struct Part {
  int num, q_len, kv_len;

  int num_tokens() const { return num * q_len; }
  std::string name() const { return std::to_string(num) + "x" + std::to_string(q_len) + "in" + std::to_string(kv_len); }
};

struct Mixture {
  Part prompts, tokens;
  Launch launch = Launch::after_previous;
  int stated_q_len = 0;  // max_q_len of the mixed batch, where it is more than the longest

  std::string name() const {
    std::string text = "mixed/" + prompts.name() + "+" + tokens.name();
    if (stated_q_len > 0) text += "/stated" + std::to_string(stated_q_len);
    if (launch == Launch::overlap_previous) text += "/overlap";
    return text;
  }
  std::int64_t num_keys() const {
    return std::int64_t{prompts.num} * prompts.kv_len + std::int64_t{tokens.num} * tokens.kv_len;
  }
  std::int64_t kv_bytes() const { return num_keys() * kv_heads * head_dim * 2 * 2; }
};

/// A mixture's arrays on the device: prompts first, then single tokens. Block tables for as many calls as rotate, the
/// rest once.
class MixedBatch {
 public:
  using Problem = pagedkv::AttentionProblem<Space::device, bf16>;
  using Ids = pagedkv::cuda::DeviceArray<std::int32_t>;

  explicit MixedBatch(const Mixture& mixture)
      : mixture_(mixture),
        num_sets_(num_rotating_sets(mixture.kv_bytes())),
        num_seqs_(mixture.prompts.num + mixture.tokens.num),
        width_(pagedkv::ceil_div(std::max(mixture.prompts.kv_len, mixture.tokens.kv_len), block_size)),
        block_ids_(size(num_sets_) * size(num_seqs_) * size(width_)),
        kv_len_(size(num_seqs_)),
        begin_of_all_(size(num_seqs_) + 1),
        begin_of_tokens_(size(mixture.tokens.num) + 1),
        q_(size(num_tokens()) * q_heads * head_dim),
        out_(q_.size()) {
    kv_ = KvMemory::instance().view<bf16>({.kv_heads = kv_heads, .block_size = block_size, .head_dim = head_dim});
    fill_normal(q_.data(), q_.size(), 3);
    std::vector<std::int32_t> kv_len, begin_of_all{0}, begin_of_tokens{0};
    for (const Part& part : {mixture.prompts, mixture.tokens}) {
      for (int s = 0; s < part.num; ++s) {
        kv_len.push_back(part.kv_len);
        begin_of_all.push_back(begin_of_all.back() + part.q_len);
      }
    }
    for (int s = 0; s < mixture.tokens.num; ++s)
      begin_of_tokens.push_back(begin_of_tokens.back() + mixture.tokens.q_len);
    upload(kv_len_, kv_len);
    upload(begin_of_all_, begin_of_all);
    upload(begin_of_tokens_, begin_of_tokens);
    upload(block_ids_, block_tables(kv_len));
  }

  int num_calls() const { return std::max(6, num_sets_); }

  Problem all(int call) const {
    const int longest = std::max(mixture_.prompts.q_len, mixture_.tokens.q_len);
    return problem(call, 0, num_seqs_, begin_of_all_, 0, num_tokens(), std::max(longest, mixture_.stated_q_len),
                   std::max(mixture_.prompts.kv_len, mixture_.tokens.kv_len));
  }
  Problem prompts(int call) const {
    const Part& part = mixture_.prompts;
    return problem(call, 0, part.num, begin_of_all_, 0, part.num_tokens(), part.q_len, part.kv_len);
  }
  Problem tokens(int call) const {
    const Part& part = mixture_.tokens;
    return problem(call, mixture_.prompts.num, part.num, begin_of_tokens_, mixture_.prompts.num_tokens(),
                   part.num_tokens(), part.q_len, part.kv_len);
  }

 private:
  template <class Number>
  static std::size_t size(Number count) {
    return static_cast<std::size_t>(count);
  }
  int num_tokens() const { return mixture_.prompts.num_tokens() + mixture_.tokens.num_tokens(); }

  static void upload(const Ids& to, const std::vector<std::int32_t>& from) {
    check(cudaMemcpy(to.data(), from.data(), to.size_bytes(), cudaMemcpyHostToDevice), "MixedBatch");
  }
  static pagedkv::View<const std::int32_t, 1, Space::device> view(const Ids& array, std::int64_t first,
                                                                  std::int64_t extent) {
    return pagedkv::dense_view<Space::device>(static_cast<const std::int32_t*>(array.data()) + first, {extent});
  }

  /// Sequences [first, first + num) with the queries [first_token, first_token + num_tokens).
  Problem problem(int call, int first, int num, const Ids& begin, int first_token, std::int64_t num_tokens,
                  int max_q_len, int max_kv_len) const {
    const std::size_t first_element = size(first_token) * q_heads * head_dim;
    const std::int32_t* const ids =
        block_ids_.data() + (size(call % num_sets_) * size(num_seqs_) + size(first)) * size(width_);
    return {.q = pagedkv::dense_view<Space::device>(static_cast<const bf16*>(q_.data()) + first_element,
                                                    {num_tokens, q_heads, head_dim}),
            .kv = kv_,
            .tables = {.block_ids = pagedkv::dense_view<Space::device>(ids, {num, width_}),
                       .kv_len = view(kv_len_, first, num),
                       .query_begin = view(begin, 0, num + 1),
                       .max_q_len = max_q_len,
                       .max_kv_len = max_kv_len},
            .out = pagedkv::dense_view<Space::device>(out_.data() + first_element, {num_tokens, q_heads, head_dim}),
            .lse = {},
            .scale = 1 / std::sqrt(static_cast<float>(head_dim))};
  }

  /// [num_sets, num_seqs, width]: blocks in random order; -1 behind a sequence's last.
  std::vector<std::int32_t> block_tables(const std::vector<std::int32_t>& kv_len) const {
    std::int64_t blocks_of_set = 0;
    for (const int len : kv_len) blocks_of_set += pagedkv::ceil_div(len, block_size);
    const std::vector<std::int32_t> ids = shuffled_sets(num_sets_, blocks_of_set, kv_.num_blocks(), 5);
    std::vector<std::int32_t> tables(block_ids_.size(), -1);
    auto next = ids.begin();
    auto row = tables.begin();
    for (int set = 0; set < num_sets_; ++set) {
      for (const int len : kv_len) {
        const int num_own = pagedkv::ceil_div(len, block_size);
        std::copy(next, next + num_own, row);
        next += num_own;
        row += width_;
      }
    }
    return tables;
  }

  Mixture mixture_;
  int num_sets_, num_seqs_, width_;
  Ids block_ids_, kv_len_, begin_of_all_, begin_of_tokens_;
  pagedkv::cuda::DeviceArray<bf16> q_, out_;
  pagedkv::KvView<const bf16, Space::device> kv_;
};

/// The larger relative L2 error of both parts, over some rows of each; NaN where any row of either was not written.
double error_of(const MixedBatch& batch, const Mixture& mixture) {
  double error = 0;
  const auto look_at = [&](const Part& part, const MixedBatch::Problem& problem) {
    if (part.num == 0) return;
    const double own = relative_error<head_dim>(problem, part.q_len, std::min(32, part.num_tokens()));
    error = own <= error ? error : own;  // NaN stays
  };
  look_at(mixture.prompts, batch.prompts(0));
  look_at(mixture.tokens, batch.tokens(0));
  return error;
}

bool& any_mixture_failed() {
  static bool failed = false;
  return failed;
}

void run_mixture(benchmark::State& state, const Mixture& mixture) try {
  enum { prompts_alone, tokens_alone, prompts_first, tokens_first, side_by_side, num_ways };
  MixedBatch batch(mixture);
  pagedkv::cuda::Workspace workspace({.max_seqs = 1,
                                      .max_blocks_per_seq = 1,
                                      .max_tokens = 1,
                                      .max_copies = 1,
                                      .max_partials = 1 << 17,
                                      .head_dim_v = head_dim});
  const auto prefill = [&](int call, cudaStream_t stream) {
    if (mixture.prompts.num == 0) return;
    pagedkv::cuda::prefill<head_dim>(batch.prompts(call), Causal{}, workspace, stream, {.launch = mixture.launch});
  };
  const auto decode = [&](int call, cudaStream_t stream) {
    if (mixture.tokens.num == 0) return;
    pagedkv::cuda::decode<head_dim>(batch.tokens(call), Causal{}, workspace, stream, {.launch = mixture.launch});
  };
  const bool has_both = mixture.prompts.num > 0 && mixture.tokens.num > 0;  // else each part is the whole
  const auto enqueue = [&](int way, int call, cudaStream_t stream) {
    if (way == side_by_side)
      return pagedkv::cuda::attend<head_dim>(batch.all(call), Causal{}, workspace, stream, {.launch = mixture.launch});
    if (way == tokens_alone || way == tokens_first) decode(call, stream);
    if (way != tokens_alone || !has_both) prefill(call, stream);
    if (way == prompts_first || (way == prompts_alone && !has_both)) decode(call, stream);
  };

  for (const int way : {prompts_first, side_by_side}) {
    poison(batch.all(0));
    enqueue(way, 0, nullptr);
    const double error = error_of(batch, mixture);
    if (!(error < 1e-2)) throw std::runtime_error("wrong result, relative L2 error " + std::to_string(error));
  }

  const auto graph_of = [&](int way) {
    return Graph(batch.num_calls(), [&, way](int call, cudaStream_t stream) { enqueue(way, call, stream); });
  };
  std::array<Graph, num_ways> graphs{graph_of(prompts_alone), graph_of(tokens_alone), graph_of(prompts_first),
                                     graph_of(tokens_first), graph_of(side_by_side)};
  std::array<std::vector<double>, num_ways> seconds;
  for (int round = -warm_up_rounds; round < num_rounds; ++round) {
    for (std::size_t way = 0; way < num_ways; ++way) {
      const double sample = graphs[way].seconds_per_call();
      if (round >= 0) seconds[way].push_back(sample);
    }
  }

  std::array<Spread, num_ways> spread;
  std::transform(seconds.begin(), seconds.end(), spread.begin(), [](auto samples) { return spread_of(samples); });
  const auto better = spread[prompts_first].median <= spread[tokens_first].median ? prompts_first : tokens_first;
  std::vector<double> ratios;
  for (std::size_t round = 0; round < num_rounds; ++round)
    ratios.push_back(seconds[side_by_side][round] / seconds[better][round]);
  const Spread ratio = spread_of(ratios);
  const double longer = std::max(spread[prompts_alone].median, spread[tokens_alone].median);
  const std::string kernels = pagedkv::cuda::explain(batch.all(0), workspace);

  const auto us = [&](int way) { return 1e6 * spread[static_cast<std::size_t>(way)].median; };
  std::printf("%-46s %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f-%9.2f %7.3f %6.3f-%6.3f %7.3f\n", mixture.name().c_str(),
              us(prompts_alone), us(tokens_alone), us(prompts_first), us(tokens_first), us(side_by_side),
              1e6 * spread[side_by_side].p10, 1e6 * spread[side_by_side].p90, ratio.median, ratio.p10, ratio.p90,
              spread[side_by_side].median / longer);
  std::fflush(stdout);
  for (auto _ : state) state.SetIterationTime(spread[side_by_side].median);
  state.SetLabel(kernels);
  for (const auto& [name, value] : {std::pair{"us", us(side_by_side)},
                                    {"p10_us", 1e6 * spread[side_by_side].p10},
                                    {"p90_us", 1e6 * spread[side_by_side].p90},
                                    {"prompts_us", us(prompts_alone)},
                                    {"tokens_us", us(tokens_alone)},
                                    {"prompts_first_us", us(prompts_first)},
                                    {"tokens_first_us", us(tokens_first)},
                                    {"x_better_order", ratio.median},
                                    {"p10_x_better_order", ratio.p10},
                                    {"p90_x_better_order", ratio.p90},
                                    {"x_longer_part", spread[side_by_side].median / longer}})
    state.counters[name] = value;
} catch (const std::exception& error) {
  any_mixture_failed() = true;
  std::printf("%-46s FAILED: %s\n", mixture.name().c_str(), error.what());
  state.SkipWithError(error.what());
}

// Seconds are of an H200: 3 in all.
std::vector<Mixture> mixtures() {
  const std::vector<Mixture> mixed = {{{1, 2048, 8192}, {64, 1, 4096}}, {{4, 512, 4096}, {128, 1, 1024}},
                                      {{1, 256, 4096}, {8, 1, 16384}},  {{1, 8192, 8192}, {256, 1, 1024}},
                                      {{2, 512, 2048}, {32, 1, 1024}},  {{16, 16, 1024}, {64, 1, 1024}}};
  std::vector<Mixture> all;
  for (const Launch launch : {Launch::after_previous, Launch::overlap_previous}) {
    for (Mixture mixture : mixed) {
      mixture.launch = launch;
      all.push_back(mixture);
    }
    // What the kernel costs that finds nothing to do.
    all.push_back({{1, 2048, 8192}, {0, 1, 1}, launch});
    all.push_back({{0, 1, 1}, {64, 1, 4096}, launch, 2048});
    all.push_back({{0, 1, 1}, {8, 1, 1024}, launch, 2048});
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  bool lists_only = false;
  for (int i = 0; i < argc; ++i) lists_only |= std::string_view(argv[i]).starts_with("--benchmark_list_tests");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const Mixture& mixture : mixtures())
    benchmark::RegisterBenchmark(mixture.name().c_str(), [mixture](benchmark::State& s) { run_mixture(s, mixture); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(1);  // one iteration is the median of all replays
  bench::detail::NoReporter none;
  if (lists_only) return benchmark::RunSpecifiedBenchmarks(&none) == 0;

  cudaDeviceProp gpu;
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) {
    std::printf("no GPU: nothing to measure\n");
    return 0;
  }
  benchmark::AddCustomContext("gpu", gpu.name);
  bench::detail::add_gpu_state();
  std::printf(
      "%s, %d SMs; us a call\nx better: attend against the better of the two orders; x longer: against the longer part "
      "alone\n%-46s %9s %9s %9s %9s %9s %19s %7s %13s %7s\n",
      gpu.name, gpu.multiProcessorCount, "case", "prompts", "tokens", "p, t", "t, p", "attend", "p10 - p90", "x better",
      "p10 - p90", "x longer");
  const double begin = seconds_now();
  const std::size_t num_cases = benchmark::RunSpecifiedBenchmarks(&none);
  std::printf("%zu cases in %.1f s\n", num_cases, seconds_now() - begin);
  return num_cases == 0 || any_mixture_failed() ? 1 : 0;
}
