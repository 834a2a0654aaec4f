// prefill's wide tiles, which batches of many tiles take: wrong sizes would be wrong at any length.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/prefill_entry.cuh"
#include "support/random_prompts.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("wide tiles agree with the reference and the other kernel on 300 random batches") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const bool has_reference = seed % 4 == 0;
    GeneratedProblem<bf16> generated(
        random_prompts(5000 + seed, seed / 4 % 2 == 0 ? 64 : 128, has_reference ? 150'000 : 2'000'000));
    const std::string difference = mismatch_of_kernels(
        generated, Causal{}, has_reference ? 150'000 : -1, [&](auto problem, cuda::PrefillKernel kernel) {
          // The stated bound alone decides.
          if (kernel == cuda::PrefillKernel::sm90) problem.tables.max_q_len = 1 << 20;
          prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("a batch-invariant call gives the same bits whatever bound is stated") {
  if (!has_prefill_sm90()) return;
  GeneratedProblem<bf16> generated(ProblemShape{.seed = 7,
                                                .q_len = {300, 40},
                                                .kv_len = {700, 400},
                                                .kv_heads = 2,
                                                .group_size = 4,
                                                .head_dim = 128,
                                                .head_dim_v = 128,
                                                .block_size = 16});
  cuda::Workspace workspace({.head_dim_v = 128});
  DeviceProblem device(generated);
  const auto bits = [&](int max_q_len, bool batch_invariant) {
    device.clear_outputs();
    auto problem = device.problem();
    problem.tables.max_q_len = std::max(max_q_len, problem.tables.max_q_len);
    prefill(problem, Causal{}, workspace, nullptr,
            {.kernel = cuda::PrefillKernel::sm90, .batch_invariant = batch_invariant});
    device.fetch_outputs();
    return results_of(generated);
  };
  const Expected few = bits(0, false);
  CHECK(bits(1 << 20, true).out == few.out);
  CHECK(bits(1 << 20, false).out != few.out);
}
