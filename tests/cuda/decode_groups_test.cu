// decode packs the query heads of a KV head, and the queries of a sequence, into one tile: any group, 1 to 8 queries,
// and more rows than a tile holds.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape shape_of(int group_size, int q_len) {
  return {.seed = static_cast<std::uint64_t>(100 * group_size + q_len),
          .q_len = {q_len, 1, 0, q_len},
          .kv_len = {70 + group_size, 33, 12, q_len},
          .kv_heads = group_size > 16 ? 1 : 2,
          .group_size = group_size,
          .head_dim = 64,
          .head_dim_v = 64,
          .block_size = 16};
}

template <class Host, class Device>
std::string mismatch_under(GeneratedProblem<bf16>& generated, DecodeProblem problem,
                           DeviceProblem<bf16, bf16, bf16>& device, const Host& host_rule, const Device& device_rule,
                           cuda::Workspace& workspace) {
  device.clear_outputs();
  decode(problem, DeviceRule(device_rule), workspace);
  device.fetch_outputs();
  return mismatch(generated, expected_of(generated, host_rule), decode_tolerance());
}

}  // namespace

TEST_CASE(
    "any group of query heads and 1 to 8 queries give the reference's results, in sequence and as trees of drafts") {
  cuda::Workspace workspace({.head_dim_v = 64});
  const auto check = [&](int group_size, int q_len) {
    GeneratedProblem<bf16> generated(shape_of(group_size, q_len));
    DeviceProblem device(generated);
    const std::string causal = mismatch_under(generated, device.problem(), device, Causal{}, Causal{}, workspace);
    REQUIRE_MESSAGE(causal.empty(), causal);
    const std::string tree =
        mismatch_under(generated, device.problem(), device, rules_of(generated).tree, device.rules().tree, workspace);
    REQUIRE_MESSAGE(tree.empty(), tree);
  };
  for (int group_size = 1; group_size <= 16; ++group_size)
    for (int q_len = 1; q_len <= 8; ++q_len) check(group_size, q_len);
  for (const int group_size : {17, 24, 32, 33, 63, 64, 71, 128})
    for (const int q_len : {1, 2, 5, 8}) check(group_size, q_len);
}

TEST_CASE("each query of a window has its own keys, at any distance from the ends of tiles") {
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const int window : {1, 15, 16, 17, 31, 64, 65, 200, 1000}) {
    for (const int sink_tokens : {0, 1, 16, 70}) {
      ProblemShape shape = shape_of(3, 5);
      shape.kv_len = {300, 200, 0, 97};
      GeneratedProblem<bf16> generated(shape);
      DeviceProblem device(generated);
      const SlidingWindow rule{.window = window, .sink_tokens = sink_tokens};
      const std::string difference = mismatch_under(generated, device.problem(), device, rule, rule, workspace);
      CHECK_MESSAGE(difference.empty(), window, " + ", sink_tokens, ": ", difference);
    }
  }
}

TEST_CASE("stated bounds beyond the true lengths change no result") {
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const int group_size : {1, 5, 8}) {
    GeneratedProblem<bf16> generated(shape_of(group_size, 3));
    DeviceProblem device(generated);
    auto problem = device.problem();
    problem.tables.max_q_len = 40;
    problem.tables.max_kv_len = static_cast<int>(problem.tables.block_ids.extents[1]) * 16;
    const std::string difference = mismatch_under(generated, problem, device, Causal{}, Causal{}, workspace);
    CHECK_MESSAGE(difference.empty(), difference);
  }
}
