// decode with every rule as its own type, as users compile it.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("decode compiled for each rule gives the reference's results") {
  cuda::Workspace workspace({.head_dim_v = 64});
  const ShapeLimits limits{
      .head_dims = {64}, .same_head_dim_v = true, .max_seqs = 4, .max_kv_len = 500, .max_q_len = 6};
  for (std::uint64_t seed = 40; seed < 48; ++seed) {
    GeneratedProblem<bf16> generated(random_shape(seed, limits));
    const std::string difference = mismatch_of_rules(
        generated, decode_tolerance(), [](const auto& rules, auto&& f) { rules.for_each(f); },
        [&](const auto& problem, const auto& rule) { cuda::decode<64>(problem, rule, workspace, nullptr); });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}
