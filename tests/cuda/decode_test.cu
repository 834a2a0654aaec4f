// decode against the reference: every rule and every model's chain, at the head sizes that most models have.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

// Short caches with many queries, and caches of several pieces with few.
const ShapeLimits short_caches{.same_head_dim_v = true};
const ShapeLimits long_caches{
    .same_head_dim_v = true, .max_seqs = 3, .max_kv_len = 900, .max_q_len = 3, .max_group_size = 8};

void decode_matches_the_reference(int head_dim) {
  cuda::Workspace workspace({.max_seqs = 8, .max_blocks_per_seq = 1, .max_tokens = 1, .head_dim_v = head_dim});
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    ShapeLimits limits = seed % 2 == 0 ? short_caches : long_caches;
    limits.head_dims = {head_dim};
    GeneratedProblem<bf16> generated(random_shape(seed, limits));
    for (const bool batch_invariant : {false, true}) {
      const std::string difference =
          mismatch_of_any_rule(generated, decode_tolerance(), [&](const auto& problem, const auto& rule) {
            decode(problem, DeviceRule(rule), workspace, nullptr, {.batch_invariant = batch_invariant});
          });
      REQUIRE_MESSAGE(difference.empty(), difference);
    }
  }
}

}  // namespace

TEST_CASE("decode of head_dim 128 gives the reference's results under every rule") {
  decode_matches_the_reference(128);
}

TEST_CASE("decode of head_dim 64 gives the reference's results under every rule") {
  decode_matches_the_reference(64);
}
