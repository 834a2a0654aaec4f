// prefill and attend where tiles are so few that their keys are shared out among SMs: against the reference under every
// rule, the same bits each time, and without shares where the workspace has no room for them.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"
#include "support/runtime_rule.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64;

ProblemShape long_prefix(std::vector<int> q_len, std::vector<int> kv_len, int group_size = 2) {
  return {.seed = 17,
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = 2,
          .group_size = group_size,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

bool says_shares(const std::string& text) {
  return text.find("keys of each in") != std::string::npos &&
         text.find("keys of each in 1 shares") == std::string::npos;
}

}  // namespace

TEST_CASE("a short chunk of a long prompt gives the reference's results under every rule, its keys shared out") {
  GeneratedProblem<bf16> generated(long_prefix({20}, {3000}));
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const std::string difference =
      mismatch_of_any_rule(generated, prefill_tolerance, [&](const auto& problem, const auto& rule) {
        if (has_prefill_sm90()) CHECK(says_shares(cuda::explain(problem, workspace)));
        prefill(problem, DeviceRule(rule), workspace);
      });
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("so do chunks of different lengths, rows without keys, and tokens beside them") {
  cuda::Workspace workspace({.head_dim_v = head_dim});
  for (const int group_size : {1, 3, 4}) {
    GeneratedProblem<bf16> generated(long_prefix({40, 1, 0, 9, 1, 30}, {2500, 900, 7, 0, 1200, 100}, group_size));
    CAPTURE(group_size);
    const std::string difference =
        mismatch_of_rule(generated, Causal{}, prefill_tolerance, [&](const auto& problem, const auto& rule) {
          cuda::attend<head_dim>(problem, DeviceRule(rule), workspace, nullptr);
        });
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("shares are merged to the same bits each time, whatever waits beside them in the workspace") {
  GeneratedProblem<bf16> generated(long_prefix({33, 1, 1}, {4000, 3000, 50}));
  DeviceProblem<bf16, bf16, bf16> device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const auto run = [&](const auto& problem) {
    cuda::attend<head_dim>(problem, DeviceRule(Causal{}), workspace, nullptr);
  };
  const auto first = bits_of(generated, device, run);
  for (int i = 0; i < 50; ++i) REQUIRE(bits_of(generated, device, run) == first);
}

TEST_CASE("without room for pieces keys are not shared out") {
  GeneratedProblem<bf16> generated(long_prefix({20}, {3000}));
  cuda::Workspace workspace({.max_partials = 16, .head_dim_v = head_dim});
  const std::string difference =
      mismatch_of_rule(generated, Causal{}, prefill_tolerance, [&](const auto& problem, const auto& rule) {
        CHECK_FALSE(says_shares(cuda::explain(problem, workspace)));
        prefill(problem, DeviceRule(rule), workspace);
      });
  CHECK_MESSAGE(difference.empty(), difference);
}
