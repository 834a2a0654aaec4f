// The bits of prefill: the same run after run, alone and in any company, eager and replayed from a graph.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/prefill.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64, max_q_len = 130, max_kv_len = 300;

ProblemShape mixed_batch() {
  return {.seed = 41,
          .q_len = {max_q_len, 3, 1, 0, 64},
          .kv_len = {max_kv_len, 257, 0, 31, 64},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

bool untouched(float x) { return x == -12345.f; }

struct Prompt {
  GeneratedProblem<bf16> generated{mixed_batch()};
  DeviceProblem<bf16, bf16, bf16> device{generated};
  cuda::Workspace workspace{
      {.max_seqs = 8, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = head_dim}};

  template <class Problem>
  void prefill(const Problem& problem, cudaStream_t stream = nullptr) {
    cuda::prefill<head_dim>(problem, Causal{}, workspace, stream);
  }
  Outputs<bf16> run() {
    return bits_of(generated, device, [&](const auto& problem) { prefill(problem); });
  }
};

}  // namespace

TEST_CASE("the same call gives the same bits, run after run") {
  Prompt prompt;
  const Outputs<bf16> first = prompt.run();
  for (int i = 0; i < 50; ++i) REQUIRE(prompt.run() == first);
}

TEST_CASE("a sequence gets the same bits alone as in a batch") {
  Prompt prompt;
  const Outputs<bf16> batch = prompt.run();
  const Outputs<bf16> one_by_one = bits_of(prompt.generated, prompt.device, [&](const auto& problem) {
    for (int s = 0; s < prompt.generated.shape.num_seqs(); ++s)
      prompt.prefill(only_sequence(problem, prompt.generated.shape, s));
  });
  CHECK(one_by_one == batch);
}

TEST_CASE("a graph captured once gives the bits of eager calls for every later fill, none included") {
  Prompt prompt;
  Stream stream;
  const auto prefill_over = [&](const TablesView<Space::device>& tables) {
    auto problem = prompt.device.problem();
    problem.tables = tables;
    prompt.prefill(problem, stream);
  };
  const Graph graph(stream, [&] { prefill_over(prompt.workspace.tables(max_q_len, max_kv_len)); });

  for (const int num_seqs : {5, 1, 0, 3, 5, 2}) {
    const Fill fill(prompt.generated, num_seqs, static_cast<std::uint64_t>(100 + num_seqs));
    const Outputs<bf16> eager = bits_of(prompt.generated, prompt.device,
                                        [&](const auto&) { prefill_over(prompt.workspace.upload(fill.view, stream)); });
    const Outputs<bf16> replayed = bits_of(prompt.generated, prompt.device, [&](const auto&) {
      static_cast<void>(prompt.workspace.upload(fill.view, stream));
      graph.replay(stream);
    });
    CHECK(replayed == eager);
    const auto used = static_cast<std::ptrdiff_t>(prompt.generated.margin) +
                      fill.query_begin.back() * prompt.generated.shape.q_heads();
    CHECK(std::all_of(replayed.lse.begin() + used, replayed.lse.end(), untouched));
  }
}

TEST_CASE("no lse is written where none is wanted") {
  Prompt prompt;
  const Outputs<bf16> with_lse = prompt.run();
  const Outputs<bf16> without = bits_of(prompt.generated, prompt.device, [&](auto problem) {
    problem.lse = {};
    prompt.prefill(problem);
  });
  CHECK(same_bits(without.out, with_lse.out));
  CHECK(std::all_of(without.lse.begin(), without.lse.end(), untouched));
}
