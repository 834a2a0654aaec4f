// decode of one sequence, whose rows are cut into as many pieces as there are CTAs.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape one_sequence(int q_len, int kv_len, int kv_heads, int group_size) {
  return {.seed = static_cast<std::uint64_t>(kv_len),
          .q_len = {q_len},
          .kv_len = {kv_len},
          .kv_heads = kv_heads,
          .group_size = group_size,
          .head_dim = 128,
          .head_dim_v = 128,
          .block_size = 16};
}

struct Shape {
  int q_len, kv_heads, group_size;
};
/// Are all words of the partials that CTAs wait for `absent`, as every call must find and leave them?
bool holds_no_piece(const cuda::Workspace& workspace) {
  const auto partials = workspace.awaited_partials();
  const auto is_empty = [](const void* device, std::size_t num_words) {
    std::vector<std::uint32_t> words(num_words);
    cuda::check(cudaMemcpy(words.data(), device, 4 * num_words, cudaMemcpyDeviceToHost), "test: partials");
    return std::ranges::all_of(words, [](std::uint32_t word) { return word == cuda::absent; });
  };
  return is_empty(partials.outputs.data, static_cast<std::size_t>(partials.outputs.extents[0])) &&
         is_empty(partials.softmax.data, 2 * static_cast<std::size_t>(partials.capacity()));
}

constexpr Shape shapes[] = {{1, 8, 4}, {4, 8, 4}, {8, 8, 4}, {1, 32, 1}, {3, 8, 5}, {1, 1, 8}, {2, 1, 8}};

}  // namespace

TEST_CASE("decode gives one sequence the reference's results, whatever its length, queries, heads and rule") {
  cuda::Workspace workspace({.head_dim_v = 128});
  for (const int kv_len : {0, 1, 64, 65, 1000, 1024, 5000, 20000}) {
    for (const auto& [q_len, kv_heads, group_size] : shapes) {
      CAPTURE(kv_len);
      CAPTURE(q_len);
      CAPTURE(kv_heads);
      if (q_len > kv_len && kv_len > 0) continue;
      GeneratedProblem<bf16> generated(one_sequence(min(q_len, kv_len), kv_len, kv_heads, group_size));
      for (const bool hides_keys : {false, true}) {
        const auto run = [&](const auto& problem, const auto& rule) { decode(problem, DeviceRule(rule), workspace); };
        const std::string difference =
            hides_keys
                ? mismatch_of_rule(generated, SlidingWindow{.window = 500, .sink_tokens = 5}, decode_tolerance(), run)
                : mismatch_of_rule(generated, Causal{}, decode_tolerance(), run);
        REQUIRE_MESSAGE(difference.empty(), difference);
      }
    }
    REQUIRE(holds_no_piece(workspace));
  }
}

TEST_CASE("a graph captured for one sequence gives the bits of eager calls for every later length") {
  constexpr int max_kv_len = 5000, max_q_len = 2;
  GeneratedProblem<bf16> generated(one_sequence(max_q_len, max_kv_len, 8, 4));
  DeviceProblem device(generated);
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = 128});
  Stream stream;
  const auto decode_one = [&] {
    auto problem = device.problem();
    problem.tables = workspace.tables(max_q_len, max_kv_len);
    decode(problem, DeviceRule(Causal{}), workspace, stream);
  };
  const Graph graph(stream, [&] { decode_one(); });
  for (int round = 0; round < 30; ++round) {
    const Fill fill(generated, round % 3 == 2 ? 0 : 1, static_cast<std::uint64_t>(round));
    static_cast<void>(workspace.upload(fill.view, stream));
    const Outputs<bf16> eager = bits_of(generated, device, [&](const auto&) { decode_one(); });
    const Outputs<bf16> replayed = bits_of(generated, device, [&](const auto&) { graph.replay(stream); });
    CHECK(replayed == eager);
  }
}
