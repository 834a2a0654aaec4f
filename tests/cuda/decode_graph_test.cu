// decode in captured graphs and on several streams: lengths are read when it runs, scratch belongs to the workspace.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64, num_seqs = 6, max_q_len = 3, max_kv_len = 3000;

ProblemShape batch(std::uint64_t seed) {
  return {.seed = seed,
          .q_len = {1, 3, 1, 0, 2, 1},
          .kv_len = {900, 257, 0, 31, 513, max_kv_len},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

}  // namespace

TEST_CASE("a graph captured once gives the bits of eager calls for every later fill: large, small, none, large") {
  GeneratedProblem<bf16> generated(batch(61));
  DeviceProblem device(generated);
  for (const bool batch_invariant : {false, true}) {
    cuda::Workspace workspace(
        {.max_seqs = 8, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = head_dim});
    Stream stream;
    const auto decode_batch = [&] {
      auto problem = device.problem();
      problem.tables = workspace.tables(max_q_len, max_kv_len);
      decode(problem, DeviceRule(Causal{}), workspace, stream, {.batch_invariant = batch_invariant});
    };
    const Graph graph(stream, [&] { decode_batch(); });

    const auto replay_equals_eager = [&](const Fill& fill) {
      static_cast<void>(workspace.upload(fill.view, stream));
      const Outputs<bf16> eager = bits_of(generated, device, [&](const auto&) { decode_batch(); });
      const Outputs<bf16> replayed = bits_of(generated, device, [&](const auto&) { graph.replay(stream); });
      CHECK(replayed == eager);
      const auto used = static_cast<std::ptrdiff_t>(generated.margin) +
                        fill.query_begin.back() * std::ptrdiff_t{generated.shape.q_heads()};
      CHECK(std::all_of(replayed.lse.begin() + used, replayed.lse.end(), [](float x) { return x == -12345.f; }));
      return replayed;
    };
    const Fill large(generated, num_seqs), none(generated, 0);
    const Outputs<bf16> first = replay_equals_eager(large);
    for (int round = 0; round < 10; ++round) {
      replay_equals_eager(Fill(generated, 1 + round % num_seqs, static_cast<std::uint64_t>(100 + round)));
      replay_equals_eager(none);
      CHECK(replay_equals_eager(large) == first);
    }
    const Outputs<bf16> whole = bits_of(generated, device, [&](const auto& problem) {
      decode(problem, DeviceRule(Causal{}), workspace, stream, {.batch_invariant = batch_invariant});
    });
    if (batch_invariant) CHECK(first == whole);  // captured with room for more sequences
  }
}

TEST_CASE("two streams with a workspace each do not disturb one another") {
  GeneratedProblem<bf16> left(batch(62)), right(batch(63));
  DeviceProblem left_device(left), right_device(right);
  cuda::Workspace left_workspace({.head_dim_v = head_dim}), right_workspace({.head_dim_v = head_dim});
  const DeviceRule rule(Causal{});
  const Outputs<bf16> left_alone =
      bits_of(left, left_device, [&](const auto& problem) { decode(problem, rule, left_workspace); });
  const Outputs<bf16> right_alone =
      bits_of(right, right_device, [&](const auto& problem) { decode(problem, rule, right_workspace); });

  Stream left_stream, right_stream;
  for (int round = 0; round < 20; ++round) {
    left_device.clear_outputs();
    right_device.clear_outputs();
    for (int i = 0; i < 20; ++i) {
      decode(left_device.problem(), rule, left_workspace, left_stream);
      decode(right_device.problem(), rule, right_workspace, right_stream);
    }
    left_device.fetch_outputs();
    right_device.fetch_outputs();
    REQUIRE(Outputs<bf16>{left.out, left.lse} == left_alone);
    REQUIRE(Outputs<bf16>{right.out, right.lse} == right_alone);
  }
}
