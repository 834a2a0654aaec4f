// decode in f16 on tensor cores, and what only the slow kernel takes: float, mixed types, odd sizes, unaligned rows.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

const SlidingWindow window{.window = 70, .sink_tokens = 5};

template <int HeadDim, int HeadDimV, class Q, class KV = Q, class O = Q>
void matches_the_reference(std::uint64_t first_seed, Tolerance tolerance) {
  cuda::Workspace workspace({.head_dim_v = HeadDimV});
  for (std::uint64_t seed = first_seed; seed < first_seed + 8; ++seed) {
    ProblemShape shape = random_shape(seed, {.max_seqs = 4, .max_kv_len = 500, .max_q_len = 5, .max_group_size = 16});
    shape.head_dim = HeadDim;
    shape.head_dim_v = HeadDimV;
    GeneratedProblem<Q, KV, O> generated(shape);
    const std::string difference =
        mismatch_of_rule(generated, window, tolerance, [&](const auto& problem, const auto& rule) {
          cuda::decode<HeadDim, HeadDimV>(problem, rule, workspace, nullptr);
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("decode takes f16") {
  matches_the_reference<64, 64, f16>(100, decode_tolerance<f16>());
  matches_the_reference<128, 128, f16>(200, decode_tolerance<f16>());
}

TEST_CASE("decode takes float, and a type each for queries, cache and output") {
  matches_the_reference<64, 64, float>(300, out_tolerance<float>());
  matches_the_reference<64, 64, float, bf16, f16>(400, out_tolerance<f16>());
}

TEST_CASE("decode takes head sizes that are no multiples of 16") {
  matches_the_reference<33, 7, bf16>(500, out_tolerance<bf16>());
}

TEST_CASE("decode takes rows that start anywhere") {
  GeneratedProblem<bf16> generated({.seed = 600,
                                    .q_len = {1, 2},
                                    .kv_len = {300, 70},
                                    .kv_heads = 2,
                                    .group_size = 3,
                                    .head_dim = 64,
                                    .head_dim_v = 64});
  const Expected expected = expected_of(generated, window);
  cuda::Workspace workspace({.head_dim_v = 64});
  DeviceProblem device(generated);
  generated.pool.insert(generated.pool.begin(), from_float<bf16>(0.f));
  const auto shifted = to_device(generated.pool);  // by one element
  auto problem = device.problem();
  const auto v_offset = problem.kv.v.data - problem.kv.k.data;
  problem.kv.k.data = shifted.data() + 1;
  problem.kv.v.data = shifted.data() + 1 + v_offset;
  device.clear_outputs();
  decode(problem, DeviceRule(window), workspace);
  device.fetch_outputs();
  const std::string difference = mismatch(generated, expected, decode_tolerance());
  CHECK_MESSAGE(difference.empty(), difference);
}
