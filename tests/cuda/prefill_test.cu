// prefill against the reference: every rule and every model's chain, at the head sizes that most models have.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/cuda/prefill.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

// Prompts of several query tiles, whole or continued, among single queries; and short ones of many heads.
const ShapeLimits prompts{
    .same_head_dim_v = true, .max_seqs = 4, .max_kv_len = 300, .max_q_len = 150, .max_group_size = 3};
const ShapeLimits many_heads{.same_head_dim_v = true};

template <int HeadDim>
void prefill_matches_the_reference() {
  cuda::Workspace workspace({.max_seqs = 8, .max_blocks_per_seq = 1, .max_tokens = 1, .head_dim_v = HeadDim});
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    ShapeLimits limits = seed % 2 == 0 ? prompts : many_heads;
    limits.head_dims = {HeadDim};
    GeneratedProblem<bf16> generated(random_shape(seed, limits));
    const std::string difference = mismatch_of_any_rule(
        generated, out_tolerance<bf16>(rounding_unit<bf16>()),
        [&](const auto& problem, const auto& rule) { cuda::prefill<HeadDim>(problem, rule, workspace, nullptr); });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("prefill of head_dim 128 gives the reference's results under every rule") {
  prefill_matches_the_reference<128>();
}

TEST_CASE("prefill of head_dim 64 gives the reference's results under every rule") {
  prefill_matches_the_reference<64>();
}
