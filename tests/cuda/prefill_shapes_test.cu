// prefill at its edges: every head size and type under one rule, many sequences, none, and which problems it refuses.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/prefill.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"
#include "support/random_prompts.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

const SlidingWindow window{.window = 70, .sink_tokens = 5};

template <int HeadDim, int HeadDimV, class T>
void matches_the_reference(std::uint64_t first_seed) {
  cuda::Workspace workspace({.head_dim_v = HeadDimV});
  for (std::uint64_t seed = first_seed; seed < first_seed + 20; ++seed) {
    ProblemShape shape = random_prompts(seed, HeadDim, 300'000);
    shape.head_dim_v = HeadDimV;
    GeneratedProblem<T> generated(shape);
    const std::string difference =
        mismatch_of_kernels(generated, window, 300'000, [&](const auto& problem, cuda::PrefillKernel kernel) {
          const bool is_wide = kernel == cuda::PrefillKernel::sm90 && seed % 2 == 1;
          cuda::prefill<HeadDim, HeadDimV>(is_wide ? stated_large(problem) : problem, window, workspace, nullptr,
                                           {.kernel = kernel});
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

ProblemShape small_prompt() {
  return {.seed = 5, .q_len = {20}, .kv_len = {40}, .kv_heads = 2, .head_dim = 64, .head_dim_v = 64};
}

/// prefill must throw, naming `reason`, and prefill_support must say the same.
void is_refused(const PrefillProblem& problem, const char* reason) {
  cuda::Workspace workspace({.head_dim_v = 64});
  const cuda::Support support = cuda::prefill_support(problem, workspace.device());
  REQUIRE(!support);
  CHECK(std::string(support.reason) == reason);
  for (const auto kernel : {cuda::PrefillKernel::best, cuda::PrefillKernel::sm80})
    CHECK_THROWS_WITH_AS(prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel}), doctest::Contains(reason),
                         InvalidArgument);
  CHECK_THROWS_AS(prefill(problem, Causal{}, workspace, nullptr, {.kernel = cuda::PrefillKernel::sm90}),
                  InvalidArgument);
}

}  // namespace

TEST_CASE("prefill takes any head_dim up to 256 in steps of 16, and another for V") {
  matches_the_reference<16, 16, bf16>(100);
  matches_the_reference<64, 64, bf16>(150);
  matches_the_reference<80, 80, bf16>(200);
  matches_the_reference<96, 96, bf16>(300);
  matches_the_reference<192, 192, bf16>(350);
  matches_the_reference<192, 128, bf16>(400);
  matches_the_reference<256, 256, bf16>(500);
}

TEST_CASE("prefill takes f16") { matches_the_reference<128, 128, f16>(600); }

TEST_CASE("prefill takes more sequences than a grid has CTAs in its smaller dimensions") {
  for (const int block_size : {2, 8}) {
    ProblemShape shape{.seed = 7,
                       .q_len = {},
                       .kv_len = {},
                       .kv_heads = 1,
                       .head_dim = 64,
                       .head_dim_v = 64,
                       .block_size = block_size};
    for (int s = 0; s < 70'000; ++s) {
      shape.q_len.push_back(s % 3);
      shape.kv_len.push_back(s % 7);
    }
    GeneratedProblem<bf16> generated(shape);
    cuda::Workspace workspace({.head_dim_v = 64});
    const std::string difference = mismatch_of_kernels(generated, window, window, workspace, 1'000'000);
    CHECK_MESSAGE(difference.empty(), difference.substr(0, 200));
  }
}

TEST_CASE("prefill of a batch without sequences, or without queries, does nothing") {
  GeneratedProblem<bf16> generated(small_prompt());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const cuda::PrefillKernel kernel : prefill_kernels()) {
    auto problem = device.problem();
    problem.tables.kv_len.extents[0] = problem.tables.block_ids.extents[0] = 0;
    problem.tables.query_begin.extents[0] = 1;
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    problem = device.problem();
    problem.tables.query_begin = workspace.tables(0, 0).query_begin;  // zeros
    problem.tables.query_begin.extents[0] = 2;
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    problem.tables.max_q_len = 0;
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    problem.tables.max_kv_len = 0;
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    problem = device.problem();
    problem.q.extents[0] = problem.out.extents[0] = problem.lse.extents[0] = 0;
    problem.tables.query_begin = workspace.tables(0, 0).query_begin;
    problem.tables.query_begin.extents[0] = 2;
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
  }
  const auto canaries = generated.lse;
  device.fetch_outputs();
  CHECK(generated.lse == canaries);
}

TEST_CASE("prefill refuses rows that are not aligned, with the reason, before it launches anything") {
  GeneratedProblem<bf16> generated(small_prompt());
  DeviceProblem device(generated);
  auto problem = device.problem();
  problem.q.data += 4;
  is_refused(problem, "rows of q must start at multiples of 16 bytes");
  problem = device.problem();
  problem.kv.k.strides[2] += 4;
  is_refused(problem, "rows of K must start at multiples of 16 bytes");
  problem = device.problem();
  problem.kv.v.data += 1;
  is_refused(problem, "rows of V must start at multiples of 16 bytes");
  problem = device.problem();
  problem.out.strides[1] += 1;
  is_refused(problem, "rows of out must start at multiples of 4 bytes");
  const auto canaries = generated.lse;
  device.fetch_outputs();
  CHECK(generated.lse == canaries);
}

TEST_CASE("prefill refuses a problem of another head_dim than the one it was built for") {
  GeneratedProblem<bf16> generated(small_prompt());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = 64});
  CHECK_THROWS_AS(cuda::prefill<16>(device.problem(), window, workspace, nullptr), InvalidArgument);
  CHECK_THROWS_AS(cuda::prefill(cuda::HeadDims<16, 80>{}, device.problem(), window, workspace, nullptr),
                  InvalidArgument);
}

TEST_CASE("prefill_support says why not for types and head sizes without tensor-core tiles") {
  GeneratedProblem<float> generated(small_prompt());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = 64});
  CHECK(std::string(cuda::prefill_support(device.problem(), workspace.device()).reason) ==
        "q, K, V and out must all be bf16 or all be f16");
  ProblemShape odd = small_prompt();
  odd.head_dim = odd.head_dim_v = 40;
  GeneratedProblem<bf16> odd_generated(odd);
  DeviceProblem odd_device(odd_generated);
  CHECK(std::string(cuda::prefill_support(odd_device.problem(), workspace.device()).reason) ==
        "head_dim must be a multiple of 16 up to 256");
}
