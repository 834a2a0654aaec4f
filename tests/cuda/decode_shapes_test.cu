// decode against the reference at its edges: odd head sizes, other types, huge batches, extreme logits.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

const SlidingWindow window{.window = 70, .sink_tokens = 5};

template <int HeadDim, int HeadDimV, class Q, class KV = Q, class O = Q>
void matches_the_reference(std::uint64_t first_seed) {
  cuda::Workspace workspace({.head_dim_v = HeadDimV});
  for (std::uint64_t seed = first_seed; seed < first_seed + 6; ++seed) {
    ProblemShape shape = random_shape(seed, {.max_seqs = 4, .max_kv_len = 500, .max_q_len = 5, .max_group_size = 8});
    shape.head_dim = HeadDim;
    shape.head_dim_v = HeadDimV;
    GeneratedProblem<Q, KV, O> generated(shape);
    const std::string difference =
        mismatch_of_rule(generated, window, out_tolerance<O>(), [&](const auto& problem, const auto& rule) {
          cuda::decode<HeadDim, HeadDimV>(problem, rule, workspace, nullptr);
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("decode takes any head_dim up to 256, odd ones and another for V included") {
  matches_the_reference<80, 80, bf16>(100);
  matches_the_reference<96, 96, bf16>(200);
  matches_the_reference<112, 112, bf16>(300);
  matches_the_reference<192, 128, bf16>(400);
  matches_the_reference<256, 256, bf16>(500);
  matches_the_reference<33, 7, bf16>(600);
}

TEST_CASE("decode takes f16, float, and a type each for queries, cache and output") {
  matches_the_reference<64, 64, f16>(700);
  matches_the_reference<64, 64, float>(800);
  matches_the_reference<64, 64, float, bf16, f16>(900);
}

TEST_CASE("decode takes more sequences than a grid has CTAs") {
  ProblemShape shape{
      .seed = 7, .q_len = {}, .kv_len = {}, .kv_heads = 2, .head_dim = 64, .head_dim_v = 64, .block_size = 2};
  for (int s = 0; s < 70'000; ++s) {
    shape.q_len.push_back(s % 5 == 0 ? 0 : 1);
    shape.kv_len.push_back(s % 7);
  }
  GeneratedProblem<bf16> generated(shape);
  cuda::Workspace workspace({.head_dim_v = 64});
  const std::string difference = mismatch_of_rule(
      generated, Causal{}, out_tolerance<bf16>(),
      [&](const auto& problem, const auto& rule) { cuda::decode<64>(problem, rule, workspace, nullptr); });
  CHECK_MESSAGE(difference.empty(), difference.substr(0, 200));
}

TEST_CASE("decode stays exact where logits are huge and far apart") {
  ProblemShape shape{.seed = 8,
                     .q_len = {1, 3},
                     .kv_len = {700, 300},
                     .kv_heads = 2,
                     .group_size = 4,
                     .head_dim = 64,
                     .head_dim_v = 64};
  GeneratedProblem<bf16> generated(shape);
  generated.scale = 100.f;
  cuda::Workspace workspace({.head_dim_v = 64});
  const double largest_logit = 64 * 6 * 100;
  const Expected expected = expected_of(generated, Causal{});
  DeviceProblem device(generated);
  cuda::decode<64>(device.problem(), Causal{}, workspace, nullptr);
  device.fetch_outputs();
  const std::string difference =
      mismatch(generated, expected, out_tolerance<bf16>(0, largest_logit), lse_tolerance(largest_logit));
  CHECK_MESSAGE(difference.empty(), difference);
}
