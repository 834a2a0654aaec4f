// The prefill kernel's own source, run on the host by emulated warps, against the reference.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/prefill_sm80.cuh"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "support/mixed_batch.hpp"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/tolerance.hpp"

// What `extern __shared__` names.
namespace pagedkv {
inline namespace v0 {
namespace cuda {
alignas(128) unsigned char shared_bytes[99 * 1024];
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Runs the grid, one CTA after another, on fewer CTAs than there are tiles.
template <class Config, class Problem, AttentionVariant V>
void launch(const Problem& problem, const V& variant, int min_q_len = 0) {
  const AttentionPlan plan = make_plan(problem.tables, Config::query_tile, Config::key_tile, 1, 1);
  static_assert(sizeof(typename Config::SharedMemory) <= sizeof(cuda::shared_bytes));
  emulated_grid = {3};
  for (emulated_cta = {0}; emulated_cta.x < emulated_grid.x; ++emulated_cta.x)
    emulator.run(Config::threads, [&] { cuda::attention_prefill_kernel<Config>(problem, variant, plan, min_q_len); });
}

template <class T, int HeadDim, int HeadDimV = HeadDim>
using Config = cuda::PrefillSm80Config<T, HeadDim, HeadDimV, cuda::choose_prefill(80, max(HeadDim, HeadDimV), 2)>;

template <class Config, class V>
void check(GeneratedProblem<typename Config::Element>& generated, const V& variant) {
  using T = typename Config::Element;
  generated.clear_outputs();
  launch<Config>(generated.problem(), variant);
  const std::string difference =
      mismatch(generated, expected_of(generated, variant), out_tolerance<T>(rounding_unit<T>()));
  REQUIRE_MESSAGE(difference.empty(), difference);
}

template <class T, int HeadDim, int HeadDimV = HeadDim>
GeneratedProblem<T> generate(std::uint64_t seed,
                             ShapeLimits limits = {
                                 .max_seqs = 3, .max_kv_len = 200, .max_q_len = 100, .max_group_size = 2}) {
  ProblemShape shape = random_shape(seed, limits);
  shape.head_dim = HeadDim;
  shape.head_dim_v = HeadDimV;
  return GeneratedProblem<T>(shape);
}

template <class T, int HeadDim, int HeadDimV = HeadDim>
void check_causal(int num_problems) {
  for (int seed = 0; seed < num_problems; ++seed) {
    auto generated = generate<T, HeadDim, HeadDimV>(static_cast<std::uint64_t>(seed));
    check<Config<T, HeadDim, HeadDimV>>(generated, Causal{});
  }
}

}  // namespace

TEST_CASE("the prefill kernel gives the reference's results under every rule and every model's chain") {
  for (std::uint64_t seed = 100; seed < 104; ++seed) {
    auto generated = generate<bf16, 16>(seed);
    const Rules<Space::host> rules = rules_of(generated);
    const auto check_rule = [&](const char* name, const auto& rule) {
      CAPTURE(name);
      check<Config<bf16, 16>>(generated, rule);
    };
    rules.for_each(check_rule);
    rules.for_each_model_chain(check_rule);
  }
}

TEST_CASE("the prefill kernel gives the reference's results for ragged problems of common head sizes") {
  check_causal<bf16, 64>(4);
  check_causal<bf16, 128>(2);
}

TEST_CASE("the prefill kernel gives the reference's results for the largest, odd and unequal head sizes and for f16") {
  check_causal<f16, 64>(1);
  check_causal<bf16, 256>(1);
  check_causal<bf16, 80>(1);
  check_causal<bf16, 48, 112>(1);
  check_causal<bf16, 192, 128>(1);
}

TEST_CASE("the prefill kernel is right with one stage and with several, with 16 rows a warp and with 32") {
  const auto check_policy = [&]<cuda::PrefillPolicy Policy>() {
    using Tried = cuda::PrefillSm80Config<bf16, 64, 64, Policy>;
    for (const int seed : {7, 8}) {
      auto generated = generate<bf16, 64>(static_cast<std::uint64_t>(seed));
      check<Tried>(generated, Causal{});
      check<Tried>(generated, SlidingWindow{.window = 20, .sink_tokens = 3});
    }
  };
  check_policy.operator()<{.query_tile = 32, .key_tile = 32, .warps = 2, .stages = 1}>();
  check_policy.operator()<{.query_tile = 32, .key_tile = 32, .warps = 2, .stages = 3}>();
  check_policy.operator()<{.query_tile = 64, .key_tile = 32, .warps = 2, .stages = 2}>();
  check_policy.operator()<{.query_tile = 64, .key_tile = 64, .warps = 4, .stages = 1, .ctas_per_sm = 3}>();
  check_policy.operator()<{.query_tile = 128, .key_tile = 64, .warps = 8, .stages = 2}>();
}

TEST_CASE("the prefill kernel asks the rule wherever a warp does not see a whole tile, whatever its neighbours see") {
  for (const int block_size : {16, 24, 64}) {  // a warp's keys in one block, and in two
    for (const int kv_len : {320, 327, 384}) {
      CAPTURE(block_size);
      CAPTURE(kv_len);
      GeneratedProblem<bf16> generated({.seed = 21,
                                        .q_len = {193},
                                        .kv_len = {kv_len},
                                        .group_size = 2,
                                        .head_dim = 64,
                                        .head_dim_v = 64,
                                        .block_size = block_size});
      check<Config<bf16, 64>>(generated, Causal{});
      check<Config<bf16, 64>>(generated, Full{});
      for (const int window : {63, 64, 65, 128, 200})
        check<Config<bf16, 64>>(generated, SlidingWindow{.window = window, .sink_tokens = 65});
      check<Config<bf16, 64>>(generated, chain(Causal{}, SoftCap{.cap = 3.f}));
    }
  }
}

TEST_CASE("the prefill kernel takes a scale of zero and negative ones") {
  for (const float scale : {-0.125f, 0.f, -0.f}) {
    auto generated = generate<bf16, 64>(5);
    generated.scale = scale;
    check<Config<bf16, 64>>(generated, Causal{});
    check<Config<bf16, 64>>(generated, chain(Full{}, SoftCap{.cap = 3.f}));
  }
}

TEST_CASE("the prefill kernel reads no block that a sliding window has dropped, nor its table entry") {
  GeneratedProblem<bf16> generated({.seed = 11, .q_len = {70}, .kv_len = {200}, .kv_heads = 2, .block_size = 8});
  const SlidingWindow window{.window = 20, .sink_tokens = 3};
  const Expected expected = expected_of(generated, window);
  const int oldest_query = 200 - 70, first_needed = oldest_query - window.window + 1;
  for (int block = 1; block < first_needed / 8; ++block) {  // block 0 holds the sink tokens
    for (int head = 0; head < 2; ++head) {
      auto* const v = generated.problem().kv.v.at(generated.block_ids[static_cast<std::size_t>(block)], head, 0, 0);
      std::fill_n(const_cast<bf16*>(v), 8 * 16, from_float<bf16>(infinity));
    }
    generated.block_ids[static_cast<std::size_t>(block)] = block % 2 ? -1 : std::numeric_limits<int>::max();
  }
  launch<Config<bf16, 16>>(generated.problem(), window);
  const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("the prefill kernel gives a prompt the same bits whole, in chunks, and in company") {
  GeneratedProblem<bf16> generated(
      {.seed = 12, .q_len = {5, 150}, .kv_len = {90, 170}, .kv_heads = 2, .group_size = 2, .block_size = 7});
  const SlidingWindow window{.window = 90, .sink_tokens = 2};
  const auto bits_of_second = [&] {
    std::vector<std::uint16_t> bits;
    for (std::size_t i = generated.margin + 5 * 4 * 16; i < generated.out.size(); ++i)
      bits.push_back(generated.out[i].bits);
    return bits;
  };
  launch<Config<bf16, 16>>(generated.problem(), window);
  const auto whole = bits_of_second();

  for (const int chunk : {150, 128, 64, 37}) {
    generated.clear_outputs();
    for (int begin = 0; begin < 150; begin += chunk) {
      const int end = std::min(begin + chunk, 150);
      const std::int32_t kv_len = 170 - 150 + end, query_begin[] = {5 + begin, 5 + end};
      auto problem = generated.problem();
      problem.tables.block_ids.data = problem.tables.block_ids.at(1, 0);
      problem.tables.block_ids.extents[0] = 1;
      problem.tables.kv_len = dense_view(&kv_len, {1});
      problem.tables.query_begin = dense_view(query_begin, {2});
      launch<Config<bf16, 16>>(problem, window);
    }
    CHECK(bits_of_second() == whole);
  }
}

TEST_CASE("the prefill kernel leaves sequences with fewer queries than its least alone, wherever they stand") {
  constexpr int min_q_len = 9;
  for (const std::vector<int>& q_len : {std::vector<int>{1, 150, 8, 0, 9, 1}, {33, 1, 2}, {8, 7}, {9, 300}}) {
    ProblemShape shape{.seed = 17, .q_len = q_len, .kv_len = {}, .kv_heads = 2, .group_size = 2};
    for (const int length : q_len) shape.kv_len.push_back(40 + length);
    GeneratedProblem<bf16> generated(shape);
    Expected expected = expected_of(generated, Causal{});
    for (int s = 0; s < shape.num_seqs(); ++s)
      if (q_len[static_cast<std::size_t>(s)] < min_q_len) expect_untouched(expected, generated, s);
    generated.clear_outputs();
    launch<Config<bf16, 16>>(generated.problem(), Causal{}, min_q_len);
    const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("every thread of prefill waits for the kernel in front once, with work or without") {
  GeneratedProblem<bf16> generated({.seed = 18, .q_len = {20}, .kv_len = {50}});
  for (const int min_q_len : {0, 21}) {
    waits = 0;
    launch<Config<bf16, 16>>(generated.problem(), Causal{}, min_q_len);
    CHECK(waits == long{Config<bf16, 16>::threads} * emulated_grid.x);
  }
}

TEST_CASE("the prefill kernel stays exact where logits are huge and far apart") {
  auto generated = generate<bf16, 64>(2);
  generated.scale = 100.f;
  const double largest_logit = 64 * 6 * 100;
  launch<Config<bf16, 64>>(generated.problem(), Causal{});
  const std::string difference =
      mismatch(generated, expected_of(generated, Causal{}), out_tolerance<bf16>(rounding_unit<bf16>(), largest_logit),
               lse_tolerance(largest_logit));
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("the prefill kernel reaches blocks that lie more than 2^32 elements into the pool") {
  GeneratedProblem<bf16> generated({.seed = 13, .q_len = {30}, .kv_len = {30}});
  auto problem = generated.problem();
  const Expected expected = expected_of(generated, Causal{});
  const std::int64_t num_blocks = problem.kv.num_blocks(), stride = (std::int64_t{1} << 32) + 64;
  const std::size_t size_bytes = static_cast<std::size_t>(num_blocks * stride) * sizeof(bf16);
  void* const memory =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto* const pool = static_cast<bf16*>(memory);
  const std::int64_t half_block = 16 * 16;  // K of a block, its V right behind it
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    std::copy_n(problem.kv.k.at(block, 0, 0, 0), half_block, pool + block * stride);
    std::copy_n(problem.kv.v.at(block, 0, 0, 0), half_block, pool + block * stride + half_block);
  }
  problem.kv.k.data = pool;
  problem.kv.v.data = pool + half_block;
  problem.kv.k.strides[0] = problem.kv.v.strides[0] = stride;
  launch<Config<bf16, 16>>(problem, Causal{});
  const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
  CHECK_MESSAGE(difference.empty(), difference);
  munmap(memory, size_bytes);
}

TEST_CASE("the prefill kernel reads shared memory without bank conflicts") {
  bank_conflicts = 0;
  check_causal<bf16, 64>(1);
  check_causal<bf16, 96>(1);
  CHECK(bank_conflicts == 0);
}
