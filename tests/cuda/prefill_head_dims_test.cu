// prefill at the head sizes that fewer models have, and with another one for V.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/prefill_entry.cuh"
#include "support/random_prompts.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

template <int HeadDim, int HeadDimV = HeadDim>
void matches_the_reference(std::uint64_t first_seed) {
  cuda::Workspace workspace({.head_dim_v = HeadDimV});
  for (std::uint64_t seed = first_seed; seed < first_seed + 40; ++seed) {
    const std::int64_t max_products = seed % 4 == 0 ? 150'000 : 1'000'000;
    ProblemShape shape = random_prompts(seed, HeadDim, max_products);
    shape.head_dim_v = HeadDimV;
    GeneratedProblem<bf16> generated(shape);
    const std::string difference = mismatch_of_kernels(
        generated, Causal{}, seed % 4 == 0 ? max_products : -1, [&](const auto& problem, cuda::PrefillKernel kernel) {
          cuda::prefill<HeadDim, HeadDimV>(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("prefill of head_dim 96 agrees with the reference and with the other kernel") {
  matches_the_reference<96>(2000);
}

TEST_CASE("prefill of head_dim 192 with 128 for V agrees with the reference and with the other kernel") {
  matches_the_reference<192, 128>(2200);
}

TEST_CASE("prefill of head_dim 256 agrees with the reference and with the other kernel") {
  matches_the_reference<256>(2300);
}
