// attend on mixed batches against the reference, the kernel it takes, and what explain says about it.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape batch(std::vector<int> q_len, std::vector<int> kv_len) {
  return {.seed = 31,
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = 64,
          .head_dim_v = 64,
          .block_size = 16};
}

template <class T>
void matches_the_reference(const ProblemShape& shape, const std::string& kernel, const std::string& reason) {
  GeneratedProblem<T> generated(shape);
  cuda::Workspace workspace({.head_dim_v = 64});
  const auto tolerance = out_tolerance<T>(rounding_unit<T>());
  const std::string difference =
      mismatch_of_rule(generated, Causal{}, tolerance, [&](const auto& problem, const auto& rule) {
        cuda::attend(cuda::HeadDims<64>{}, problem, rule, workspace, nullptr);
        const std::string text = cuda::explain(problem, workspace);
        CHECK_MESSAGE(text.find(kernel) == 0, text);
        CHECK_MESSAGE(text.find(reason) != std::string::npos, text);
      });
  CHECK_MESSAGE(difference.empty(), difference);
}

}  // namespace

TEST_CASE("a batch of single queries is decode's") {
  matches_the_reference<bf16>(batch({1, 1, 1}, {300, 1, 70}), "decode_sm80", "too few queries");
}

TEST_CASE("a batch with a long prompt is prefill's, single queries and idle rows included") {
  matches_the_reference<bf16>(batch({100, 1, 0, 17}, {100, 300, 5, 90}), "prefill_sm80", "1 split");
}

TEST_CASE("a prompt in float is decode's: tensor cores take 16-bit types") {
  matches_the_reference<float>(batch({40, 1}, {40, 90}), "decode_simt", "all be bf16 or all be f16");
}

TEST_CASE("a prompt whose head_dim no tile fits is decode's") {
  ProblemShape shape = batch({20, 1}, {50, 90});
  shape.head_dim = shape.head_dim_v = 40;
  GeneratedProblem<bf16> generated(shape);
  cuda::Workspace workspace({.head_dim_v = 64});
  const std::string difference =
      mismatch_of_rule(generated, Causal{}, out_tolerance<bf16>(), [&](const auto& problem, const auto& rule) {
        cuda::attend<40>(problem, rule, workspace, nullptr);
        CHECK(cuda::explain(problem, workspace).find("decode_simt") == 0);
      });
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("explain refuses an inconsistent problem by name, as attend does") {
  GeneratedProblem<bf16> generated(batch({1}, {30}));
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = 64});
  auto problem = device.problem();
  problem.kv.k.extents[1] = problem.kv.v.extents[1] = 0;
  CHECK_THROWS_WITH_AS(static_cast<void>(cuda::explain(problem, workspace)), doctest::Contains("kv: kv_heads"),
                       InvalidArgument);
}
