// prefill against the reference: every rule and every model's chain, at the head sizes that most models have.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"
#include "support/random_prompts.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// attend(problem, rule, kernel)
template <class Attend>
void matches_the_reference(int head_dim, cuda::PrefillKernel kernel, std::uint64_t first_seed, std::uint64_t num_seeds,
                           Attend&& attend) {
  for (std::uint64_t seed = first_seed; seed < first_seed + num_seeds; ++seed) {
    GeneratedProblem<bf16> generated(random_prompts(seed, head_dim, 400'000));
    const bool is_wide = kernel != cuda::PrefillKernel::sm80 && seed % 2 == 1;
    const std::string difference =
        mismatch_of_any_rule(generated, prefill_tolerance, [&](const auto& problem, const auto& rule) {
          attend(is_wide ? stated_large(problem) : problem, rule, kernel);
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("prefill of head_dim 128, compiled for each rule, gives the reference's results") {
  cuda::Workspace workspace({.max_seqs = 8, .max_blocks_per_seq = 1, .max_tokens = 1, .head_dim_v = 128});
  const auto attend = [&](const auto& problem, const auto& rule, cuda::PrefillKernel kernel) {
    cuda::prefill<128>(problem, rule, workspace, nullptr, {.kernel = kernel});
  };
  matches_the_reference(128, cuda::PrefillKernel::best, 0, 32, attend);
  matches_the_reference(128, cuda::PrefillKernel::sm80, 100, 12, attend);
}

TEST_CASE("prefill of head_dim 64 gives the reference's results under every rule") {
  cuda::Workspace workspace({.head_dim_v = 64});
  const auto attend = [&](const auto& problem, const auto& rule, cuda::PrefillKernel kernel) {
    prefill(problem, DeviceRule(rule), workspace, nullptr, {.kernel = kernel});
  };
  matches_the_reference(64, cuda::PrefillKernel::best, 200, 32, attend);
  matches_the_reference(64, cuda::PrefillKernel::sm80, 300, 12, attend);
}
