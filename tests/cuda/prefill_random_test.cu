// A thousand random batches through both kernels of prefill.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/prefill_entry.cuh"
#include "support/random_prompts.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("on 1,000 random batches the kernels agree with each other, and on every tenth with the reference") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    const bool has_reference = seed % 10 == 0, wants_lse = has_reference || seed % 4 != 1;
    GeneratedProblem<bf16> generated(
        random_prompts(1000 + seed, seed / 2 % 2 == 0 ? 64 : 128, has_reference ? 150'000 : 2'000'000));
    const std::int64_t max_products = has_reference ? 150'000 : -1;
    const std::string difference =
        seed % 3 == 0 ? mismatch_of_kernels(generated, Causal{}, Causal{}, workspace, max_products, wants_lse)
                      : mismatch_of_kernels_under(
                            seed, generated, max_products,
                            [&](const auto& problem, const DeviceRule& rule, cuda::PrefillKernel kernel) {
                              prefill(problem, rule, workspace, nullptr, {.kernel = kernel});
                            },
                            wants_lse);
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}
