// decode at the head sizes that fewer models have, and with another one for V.
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

template <int HeadDim, int HeadDimV = HeadDim>
void matches_the_reference(std::uint64_t first_seed) {
  cuda::Workspace workspace({.head_dim_v = HeadDimV});
  for (std::uint64_t seed = first_seed; seed < first_seed + 8; ++seed) {
    ProblemShape shape = random_shape(seed, {.max_seqs = 4, .max_kv_len = 500, .max_q_len = 5, .max_group_size = 16});
    shape.head_dim = HeadDim;
    shape.head_dim_v = HeadDimV;
    GeneratedProblem<bf16> generated(shape);
    const std::string difference =
        mismatch_of_rule(generated, window, decode_tolerance(), [&](const auto& problem, const auto& rule) {
          cuda::decode<HeadDim, HeadDimV>(problem, rule, workspace, nullptr);
        });
    REQUIRE_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("decode takes every head_dim in use up to 256") {
  matches_the_reference<80>(100);
  matches_the_reference<96>(200);
  matches_the_reference<112>(300);
  matches_the_reference<192>(400);
  matches_the_reference<256>(500);
}

TEST_CASE("decode takes another head_dim for V, a smaller and a larger one") {
  matches_the_reference<192, 128>(600);
  matches_the_reference<128, 64>(700);
  matches_the_reference<64, 128>(800);
}
