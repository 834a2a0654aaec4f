// prefill_sm90 packs the query heads of a KV head into one tile: any group, any number of queries, rows without keys,
// rows of nobody; and windows that begin and end anywhere.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/mixed_batch.hpp"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape shape_of(int head_dim, int group_size, std::vector<int> q_len, std::vector<int> kv_len) {
  return {.seed = static_cast<std::uint64_t>(1000 * group_size + q_len[0]),
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = group_size > 4 ? 1 : 2,
          .group_size = group_size,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16,
          .spare_tokens = 2};
}

}  // namespace

TEST_CASE(
    "any group of query heads and 1 to 300 queries give the reference's results, in sequence and as trees of drafts") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (const int head_dim : {64, 128}) {
    for (const int group_size : {1, 2, 3, 4, 6, 8, 16, 24, 32, 33}) {
      for (const int q_len : {1, 2, 4, 7, 8, 9, 12, 13, 24, 63, 64, 65, 128, 129, 193, 300}) {
        GeneratedProblem<bf16> generated(
            shape_of(head_dim, group_size, {q_len, 1, 0, q_len}, {q_len + 70, 33, 12, q_len}));
        const std::string causal = mismatch_of_kernels(generated, Causal{}, Causal{}, workspace, 50'000);
        REQUIRE_MESSAGE(causal.empty(), causal);
        if (q_len > 64) continue;
        DeviceProblem device(generated);
        const std::string tree =
            mismatch_of_kernels(generated, rules_of(generated).tree, device.rules().tree, workspace, 50'000);
        REQUIRE_MESSAGE(tree.empty(), tree);
      }
    }
  }
}

TEST_CASE("sequences without queries, without keys, or with more queries than keys may stand anywhere") {
  cuda::Workspace workspace({.head_dim_v = 128});
  const std::vector<std::vector<int>> batches[] = {
      {{0, 40, 0, 17, 0}, {30, 200, 0, 17, 5}},  // first, in the middle, last
      {{40, 0, 0, 0, 130}, {0, 0, 90, 1, 130}},  // a prompt without keys in front
      {{0, 0, 0}, {0, 70, 16}},                  // no queries at all
      {{5, 130, 1}, {0, 0, 0}},                  // no keys at all
      {{50, 300, 17, 129}, {20, 129, 0, 128}},   // tiles that see nothing among tiles that see something
      {std::vector<int>(70, 0), std::vector<int>(70, 9)},
  };
  for (const int head_dim : {64, 128}) {
    for (const int group_size : {1, 4, 5}) {
      for (const auto& batch : batches) {
        GeneratedProblem<bf16> generated(shape_of(head_dim, group_size, batch[0], batch[1]));
        DeviceProblem device(generated);
        const std::string causal = mismatch_of_kernels(generated, Causal{}, Causal{}, workspace);
        CHECK_MESSAGE(causal.empty(), causal);
        const std::string sink =
            mismatch_of_kernels(generated, chain(Causal{}, SinkLogit<Space::host>{generated.sinks.data()}),
                                chain(Causal{}, SinkLogit<Space::device>{device.rules().sinks}), workspace);
        CHECK_MESSAGE(sink.empty(), sink);
      }
    }
  }
}

TEST_CASE("each query of a window has its own keys, at any distance from the ends of tiles and blocks") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (const int head_dim : {64, 128}) {
    for (const int block_size : {16, 64}) {
      ProblemShape shape = shape_of(head_dim, 3, {40, 150, 0, 97, 9}, {300, 150, 0, 97, 420});
      shape.block_size = block_size;
      shape.kv_heads = 1;
      GeneratedProblem<bf16> generated(shape);
      for (const int window :
           {1, block_size - 1, block_size, block_size + 1, 127, 128, 129, 1000, std::numeric_limits<int>::max()}) {
        for (const int sink_tokens : {0, 1, 16, 200}) {
          const SlidingWindow rule{.window = window, .sink_tokens = sink_tokens};
          const std::string difference = mismatch_of_kernels(generated, rule, rule, workspace);
          CHECK_MESSAGE(difference.empty(), window, " + ", sink_tokens, ": ", difference);
        }
      }
    }
  }
}

TEST_CASE("a call writes the rows of its own sequences, and no bit beside them") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (const int head_dim : {64, 128}) {
    for (const int group_size : {1, 3, 8}) {
      GeneratedProblem<bf16> generated(
          shape_of(head_dim, group_size, {9, 1, 64, 0, 13, 130}, {90, 40, 64, 7, 200, 20}));
      const Expected expected = expected_of(generated, Causal{});
      DeviceProblem device(generated);
      const auto check = [&](cuda::PrefillKernel kernel, bool is_wide) {
        for (int s = 0; s < generated.shape.num_seqs(); ++s) {
          Expected alone = expected;
          for (int other = 0; other < generated.shape.num_seqs(); ++other)
            if (other != s) expect_untouched(alone, generated, other);
          device.clear_outputs();
          const auto problem = only_sequence(device.problem(), generated.shape, s);
          prefill(is_wide ? stated_large(problem) : problem, Causal{}, workspace, nullptr, {.kernel = kernel});
          device.fetch_outputs();
          const std::string difference = mismatch(generated, alone, prefill_tolerance);
          CHECK_MESSAGE(difference.empty(), "sequence ", s, " alone: ", difference);
        }
      };
      for (const cuda::PrefillKernel kernel : prefill_kernels()) check(kernel, false);
      check(cuda::PrefillKernel::best, true);
    }
  }
}
