// The bits of prefill, of either kernel: the same run after run, alone and in any company, under any bounds, eager and
// replayed from a graph.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int num_seqs = 6, max_q_len = 500, max_kv_len = 900;

/// More tiles than an H200 has SMs, so that CTAs come back for more.
ProblemShape mixed_batch(int head_dim, std::uint64_t seed = 41) {
  return {.seed = seed,
          .q_len = {max_q_len, 3, 1, 0, 64, 300},
          .kv_len = {max_kv_len, 257, 0, 31, 64, 700},
          .kv_heads = 4,
          .group_size = 8,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

bool untouched(float x) { return x == -12345.f; }

struct Prompt {
  GeneratedProblem<bf16> generated;
  DeviceProblem<bf16, bf16, bf16> device{generated};
  cuda::Workspace workspace{
      {.max_seqs = 8, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = generated.shape.head_dim}};
  cuda::PrefillKernel kernel;
  bool batch_invariant = true;

  Prompt(const ProblemShape& shape, cuda::PrefillKernel which) : generated(shape), kernel(which) {}

  void prefill(const PrefillProblem& problem, cudaStream_t stream = nullptr) {
    pagedkv_test::prefill(problem, Causal{}, workspace, stream, {.kernel = kernel, .batch_invariant = batch_invariant});
  }
  Outputs<bf16> run() {
    return bits_of(generated, device, [&](const auto& problem) { prefill(problem); });
  }
};

/// Calls f(prompt) for both head sizes and every kernel that this GPU has.
template <class F>
void for_each_prompt(F&& f) {
  for (const int head_dim : {64, 128}) {
    for (const cuda::PrefillKernel kernel : prefill_kernels()) {
      Prompt prompt(mixed_batch(head_dim), kernel);
      f(prompt);
    }
  }
}

}  // namespace

TEST_CASE("the same call gives the same bits, run after run") {
  for_each_prompt([](Prompt& prompt) {
    for (const bool batch_invariant : {true, false}) {
      prompt.batch_invariant = batch_invariant;
      const Outputs<bf16> first = prompt.run();
      for (int i = 0; i < 50; ++i) REQUIRE(prompt.run() == first);
    }
  });
}

TEST_CASE("prefill_sm90 is what prefill chooses where it can, prefill_sm80 where it cannot") {
  for (const int block_size : {16, 7}) {
    ProblemShape shape = mixed_batch(128);
    shape.block_size = block_size;
    const bool is_sm90 = has_prefill_sm90() && block_size == 16;
    Prompt best(shape, cuda::PrefillKernel::best);
    Prompt chosen(shape, is_sm90 ? cuda::PrefillKernel::sm90 : cuda::PrefillKernel::sm80);
    CHECK(best.run() == chosen.run());
  }
}

TEST_CASE("the two kernels agree on long prompts and long contexts of many tiles") {
  for (const int head_dim : {64, 128}) {
    for (const int group_size : {1, 4, 5}) {
      ProblemShape shape = mixed_batch(head_dim);
      shape.q_len = {2000, 700, 16, 130};
      shape.kv_len = {2000, 5000, 9000, 129};
      shape.kv_heads = 2;
      shape.group_size = group_size;
      GeneratedProblem<bf16> generated(shape);
      cuda::Workspace workspace({.head_dim_v = head_dim});
      const std::string causal = mismatch_of_kernels(generated, Causal{}, Causal{}, workspace);
      CHECK_MESSAGE(causal.empty(), causal);
      const SlidingWindow window{.window = 1000, .sink_tokens = 200};
      const std::string sliding = mismatch_of_kernels(generated, window, window, workspace);
      CHECK_MESSAGE(sliding.empty(), sliding);
    }
  }
}

TEST_CASE("a sequence gets the same bits alone as in a batch, batch-invariantly") {
  for_each_prompt([](Prompt& prompt) {
    const Outputs<bf16> batch = prompt.run();
    const Outputs<bf16> one_by_one = bits_of(prompt.generated, prompt.device, [&](const auto& problem) {
      for (int s = 0; s < num_seqs; ++s) prompt.prefill(only_sequence(problem, prompt.generated.shape, s));
    });
    CHECK(one_by_one == batch);
  });
}

TEST_CASE("a prompt gets the same bits whole as in chunks of whole tiles, batch-invariantly") {
  for_each_prompt([](Prompt& prompt) {
    const Outputs<bf16> whole = prompt.run();
    const Outputs<bf16> chunked = bits_of(prompt.generated, prompt.device, [&](const auto& problem) {
      for (int s = 1; s < num_seqs; ++s) prompt.prefill(only_sequence(problem, prompt.generated.shape, s));
      constexpr int chunk = 384;  // queries: whole tiles of 8, 16, 24, 128 and 192
      const int first_position = max_kv_len - max_q_len;
      const auto kv_len = to_device(std::vector<std::int32_t>{first_position + chunk, max_kv_len});
      const auto query_begin = to_device(std::vector<std::int32_t>{0, chunk, max_q_len});
      for (int i = 0; i < 2; ++i) {
        auto part = only_sequence(problem, prompt.generated.shape, 0);
        part.tables.kv_len.data = kv_len.data() + i;
        part.tables.query_begin.data = query_begin.data() + i;
        prompt.prefill(part);
      }
      cuda::check(cudaDeviceSynchronize(), "chunks");  // before their lengths go
    });
    CHECK(chunked == whole);
  });
}

TEST_CASE("stated bounds beyond the true lengths change no bit, batch-invariantly") {
  for_each_prompt([](Prompt& prompt) {
    const Outputs<bf16> exact = prompt.run();
    const Outputs<bf16> generous = bits_of(prompt.generated, prompt.device, [&](auto problem) {
      problem.tables.block_ids.extents[1] = 1 << 16;  // entries that nobody reads
      problem.tables.max_q_len = 100'000;
      problem.tables.max_kv_len = 1'000'000;  // so long that few heads at a time would stay in L2
      prompt.prefill(problem);
    });
    CHECK(generous == exact);
  });
}

TEST_CASE("a graph captured once gives the bits of eager calls for every later fill: large, small, none, large") {
  for_each_prompt([](Prompt& prompt) {
    Stream stream;
    const auto prefill_over = [&](const TablesView<Space::device>& tables) {
      auto problem = prompt.device.problem();
      problem.tables = tables;
      prompt.prefill(problem, stream);
    };
    for (const bool batch_invariant : {true, false}) {
      prompt.batch_invariant = batch_invariant;
      const auto captured = prompt.workspace.tables(max_q_len, max_kv_len);
      const Graph graph(stream, [&] { prefill_over(captured); });
      const auto replay_equals_eager = [&](const Fill& fill) {
        const Outputs<bf16> eager = bits_of(prompt.generated, prompt.device, [&](const auto&) {
          const auto exact = prompt.workspace.upload(fill.view, stream);
          prefill_over(batch_invariant ? exact : captured);  // else the bounds take part
        });
        const Outputs<bf16> replayed =
            bits_of(prompt.generated, prompt.device, [&](const auto&) { graph.replay(stream); });
        CHECK(replayed == eager);
        const auto used = static_cast<std::ptrdiff_t>(prompt.generated.margin) +
                          fill.query_begin.back() * std::ptrdiff_t{prompt.generated.shape.q_heads()};
        CHECK(std::all_of(replayed.lse.begin() + used, replayed.lse.end(), untouched));
        return replayed;
      };
      const Fill large(prompt.generated, num_seqs), none(prompt.generated, 0);
      const Outputs<bf16> first = replay_equals_eager(large);
      for (int round = 0; round < 6; ++round) {
        replay_equals_eager(Fill(prompt.generated, 1 + round % num_seqs, static_cast<std::uint64_t>(100 + round)));
        replay_equals_eager(none);
        CHECK(replay_equals_eager(large) == first);
      }
      if (batch_invariant) CHECK(prompt.run() == first);  // captured with room for more sequences
    }
  });
}

TEST_CASE("no lse is written where none is wanted") {
  for_each_prompt([](Prompt& prompt) {
    const Outputs<bf16> with_lse = prompt.run();
    const Outputs<bf16> without = bits_of(prompt.generated, prompt.device, [&](auto problem) {
      problem.lse = {};
      prompt.prefill(problem);
    });
    CHECK(same_bits(without.out, with_lse.out));
    CHECK(std::all_of(without.lse.begin(), without.lse.end(), untouched));
  });
}

TEST_CASE("two streams with a workspace each do not disturb one another") {
  for (const cuda::PrefillKernel kernel : prefill_kernels()) {
    Prompt left(mixed_batch(64, 42), kernel), right(mixed_batch(64, 43), kernel);
    left.batch_invariant = right.batch_invariant = false;
    const Outputs<bf16> left_alone = left.run(), right_alone = right.run();
    Stream left_stream, right_stream;
    for (int round = 0; round < 20; ++round) {
      left.device.clear_outputs();
      right.device.clear_outputs();
      for (int i = 0; i < 20; ++i) {
        left.prefill(left.device.problem(), left_stream);
        right.prefill(right.device.problem(), right_stream);
      }
      left.device.fetch_outputs();
      right.device.fetch_outputs();
      REQUIRE(Outputs<bf16>{left.generated.out, left.generated.lse} == left_alone);
      REQUIRE(Outputs<bf16>{right.generated.out, right.generated.lse} == right_alone);
    }
  }
}
