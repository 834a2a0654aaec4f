// The prefill kernel's own source, run on the host by emulated warps, against the reference.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/prefill_sm80.cuh"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/cuda/policy.hpp"
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
void launch(const Problem& problem, const V& variant) {
  const AttentionPlan plan = make_plan(problem.tables, Config::query_tile, Config::key_tile, 1, 1);
  static_assert(sizeof(typename Config::SharedMemory) <= sizeof(cuda::shared_bytes));
  emulated_grid = {3};
  for (emulated_cta = {0}; emulated_cta.x < emulated_grid.x; ++emulated_cta.x)
    emulator.run(Config::threads, [&] { cuda::attention_prefill_kernel<Config>(problem, variant, plan); });
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
    const Rules<Space::host> rules{.slopes = generated.slopes.data(), .sinks = generated.sinks.data()};
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

TEST_CASE("the prefill kernel gives the same results with three stages as with two") {
  using ThreeStages =
      cuda::PrefillSm80Config<bf16, 32, 32, {.query_tile = 32, .key_tile = 32, .warps = 2, .stages = 3}>;
  auto generated = generate<bf16, 32>(7);
  check<Config<bf16, 32>>(generated, Causal{});
  check<ThreeStages>(generated, Causal{});
  check<ThreeStages>(generated, SlidingWindow{.window = 20, .sink_tokens = 3});
}

TEST_CASE("the prefill kernel reads shared memory without bank conflicts") {
  bank_conflicts = 0;
  check_causal<bf16, 64>(1);
  check_causal<bf16, 96>(1);
  CHECK(bank_conflicts == 0);
}
