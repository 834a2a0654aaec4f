// attend on mixed batches: against the reference and against its two kernels alone, replayed from graphs, side by side
// in long chains; and what explain says about it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/mixed_batch.hpp"
#include "support/next_step.cuh"
#include "support/runtime_rule.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64;
using DeviceRule = RuntimeRule<Space::device>;  // compiles the kernels once

ProblemShape batch(std::vector<int> q_len, std::vector<int> kv_len) {
  return {.seed = 31,
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

/// Prompts, drafts, single tokens, an idle row, a prompt that sees nothing, and lengths about the least prompt of all.
ProblemShape mixed_batch(int block_size = 16) {
  ProblemShape shape = batch({100, 1, 0, 17, 8, 9, 1, 16, 5, 130}, {700, 300, 5, 90, 333, 400, 1000, 60, 5, 0});
  shape.block_size = block_size;
  return shape;
}

constexpr int any_prefill = 16, prefill_sm80 = 7;  // block sizes: TMA does not lift blocks of 7

struct Batch {
  GeneratedProblem<bf16> generated;
  DeviceProblem<bf16, bf16, bf16> device{generated};
  cuda::Workspace workspace{
      {.max_seqs = 16, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = head_dim}};
  // Its pieces end at fixed keys: so the bits of decode's rows can be compared, whatever bounds and company.
  static constexpr cuda::DecodeOptions options{.batch_invariant = true};

  explicit Batch(const ProblemShape& shape) : generated(shape) {}

  int least_prompt() const { return cuda::detail::least_prompt(device.problem(), workspace.device()); }

  template <class Problem>
  void attend(const Problem& problem, cudaStream_t stream = nullptr, cuda::Launch mode = cuda::Launch::after_previous) {
    cuda::attend<head_dim>(problem, DeviceRule(Causal{}), workspace, stream, {.launch = mode, .batch_invariant = true});
  }

  /// Prefill over the whole batch and, when it has ended, decode over what attend leaves to it: with attend's tiles, for
  /// tiles of 8 rows and of 16 may round apart.
  template <class Problem>
  void one_after_another(const Problem& problem, cudaStream_t stream = nullptr) {
    cuda::prefill<head_dim>(problem, DeviceRule(Causal{}), workspace, stream, {.batch_invariant = true});
    cuda::check(cudaStreamSynchronize(stream), "one after another");
    cuda::detail::decode_part<head_dim, head_dim>(cuda::detail::decodes_of(problem, least_prompt()),
                                                  DeviceRule(Causal{}), workspace, stream, options,
                                                  cuda::detail::DecodePart::beside_previous);
  }
};

template <class T>
void matches_the_reference(const ProblemShape& shape, const std::string& kernel, const std::string& reason) {
  GeneratedProblem<T> generated(shape);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const auto tolerance = out_tolerance<T>(rounding_unit<T>());
  const std::string difference =
      mismatch_of_rule(generated, Causal{}, tolerance, [&](const auto& problem, const auto& rule) {
        cuda::attend(cuda::HeadDims<head_dim>{}, problem, DeviceRule(rule), workspace, nullptr);
        const std::string text = cuda::explain(problem, workspace);
        CHECK_MESSAGE(text.find(kernel) == 0, text);
        CHECK_MESSAGE(text.find(reason) != std::string::npos, text);
      });
  CHECK_MESSAGE(difference.empty(), difference);
}

template <class T>
using Array = DeviceArrayView<T>;

/// Stands for the rest of a layer: makes the next queries of this output, any bit of which changes them all.
__global__ void next_queries_kernel(Array<const bf16> out, Array<bf16> q, Array<std::uint64_t> digest,
                                    std::uint64_t step) {
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  const std::uint64_t state = state_of(out, step);
  fill_by_state(q, state, 0, 2.f);
  if (threadIdx.x == 0) digest(static_cast<std::int64_t>(step)) = state;
}

/// What every step's output was, from a chain of next_queries and `attend(batch, problem, stream)`.
template <class Attend>
std::vector<std::uint64_t> run_chain(const ProblemShape& shape, cuda::Launch mode, Attend&& attend) {
  constexpr int num_steps = 1000;
  Batch batch(shape);
  Stream stream;
  const auto problem = batch.device.problem();
  const auto digest = to_device(std::vector<std::uint64_t>(num_steps, 0));
  const auto flat = [](auto* data, std::int64_t count) { return dense_view<Space::device>(data, {count}); };
  const std::int64_t count = std::int64_t{problem.num_tokens()} * problem.q_heads() * head_dim;
  batch.device.clear_outputs();
  cuda::check(cudaDeviceSynchronize(), "chain");
  for (int i = 0; i < num_steps; ++i) {
    cuda::launch(next_queries_kernel, {.grid = dim3(1), .threads = 256}, mode, stream, "next queries",
                 flat(static_cast<const bf16*>(problem.out.data), count),
                 flat(const_cast<bf16*>(problem.q.data), count), flat(digest.data(), num_steps),
                 static_cast<std::uint64_t>(i));
    attend(batch, problem, stream);
  }
  std::vector<std::uint64_t> result;
  to_host(result, digest);
  return result;
}

void chains_agree(const ProblemShape& shape) {
  const auto expected =
      run_chain(shape, cuda::Launch::after_previous,
                [](Batch& batch, const auto& problem, auto& stream) { batch.one_after_another(problem, stream); });
  CHECK(expected.back() != expected[expected.size() - 2]);
  for (const auto mode : {cuda::Launch::after_previous, cuda::Launch::overlap_previous}) {
    const auto got = run_chain(
        shape, mode, [&](Batch& batch, const auto& problem, auto& stream) { batch.attend(problem, stream, mode); });
    const auto first = std::mismatch(got.begin(), got.end(), expected.begin()).first - got.begin();
    CHECK_MESSAGE(first == static_cast<std::ptrdiff_t>(expected.size()), "first difference in step ", first);
  }
}

void leaves_the_others_alone(int block_size, bool wants_prompts) {
  Batch batch(mixed_batch(block_size));
  const int least_prompt = batch.least_prompt();
  Expected expected = expected_of(batch.generated, Causal{});
  for (int s = 0; s < batch.generated.shape.num_seqs(); ++s) {
    const bool is_prompt = batch.generated.shape.q_len[static_cast<std::size_t>(s)] >= least_prompt;
    if (is_prompt != wants_prompts) expect_untouched(expected, batch.generated, s);
  }
  const DeviceRule rule(Causal{});
  const auto problem = batch.device.problem();
  batch.device.clear_outputs();
  if (wants_prompts)
    cuda::detail::prefill_part<head_dim, head_dim>(problem, rule, batch.workspace, nullptr, {}, least_prompt, 0);
  else
    cuda::decode<head_dim>(cuda::detail::decodes_of(problem, least_prompt), rule, batch.workspace, nullptr);
  batch.device.fetch_outputs();
  const std::string difference = mismatch(batch.generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
  CHECK_MESSAGE(difference.empty(), difference);
}

}  // namespace

TEST_CASE("a batch of single queries is decode's") {
  matches_the_reference<bf16>(batch({1, 1, 1}, {300, 1, 70}), "decode_sm80", "too few queries");
}

TEST_CASE("a mixed batch gives the reference's results under every rule and every model's chain") {
  GeneratedProblem<bf16> generated(mixed_batch());
  cuda::Workspace workspace({.head_dim_v = head_dim});
  for (const bool batch_invariant : {false, true}) {
    const std::string difference = mismatch_of_any_rule(
        generated, out_tolerance<bf16>(rounding_unit<bf16>()), [&](const auto& problem, const auto& rule) {
          cuda::attend<head_dim>(problem, DeviceRule(rule), workspace, nullptr, {.batch_invariant = batch_invariant});
        });
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("a mixed batch is shared by two kernels, and explain names both") {
  matches_the_reference<bf16>(mixed_batch(), "prefill_sm", "beside it, for sequences of less than");
  matches_the_reference<bf16>(mixed_batch(), "prefill_sm", "decode_sm80 on sm_");
}

TEST_CASE("random mixed batches of all group and block sizes and pool orders give the reference's results") {
  cuda::Workspace workspace({.head_dim_v = head_dim});
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const ProblemShape shape = random_shape(
        seed, {.head_dims = {head_dim}, .same_head_dim_v = true, .max_seqs = 8, .max_kv_len = 300, .max_q_len = 60});
    GeneratedProblem<bf16> generated(shape);
    const std::string difference = mismatch_of_rule(
        generated, Causal{}, out_tolerance<bf16>(rounding_unit<bf16>()), [&](const auto& problem, const auto& rule) {
          cuda::attend<head_dim>(problem, DeviceRule(rule), workspace, nullptr);
        });
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("rows of a mixed batch have the bits that prefill alone and decode alone give them") {
  for (const int block_size : {any_prefill, prefill_sm80}) {
    Batch batch(mixed_batch(block_size));
    const Outputs<bf16> expected =
        bits_of(batch.generated, batch.device, [&](const auto& problem) { batch.one_after_another(problem); });
    for (int round = 0; round < 50; ++round)
      REQUIRE(bits_of(batch.generated, batch.device, [&](const auto& problem) { batch.attend(problem); }) == expected);
  }
}

TEST_CASE("a sequence has the same bits alone as in a mixed batch that is attended to batch-invariantly") {
  Batch batch(mixed_batch());
  const Outputs<bf16> together =
      bits_of(batch.generated, batch.device, [&](const auto& problem) { batch.attend(problem); });
  const Outputs<bf16> one_by_one = bits_of(batch.generated, batch.device, [&](const auto& problem) {
    for (int s = 0; s < batch.generated.shape.num_seqs(); ++s)
      batch.attend(only_sequence(problem, batch.generated.shape, s));
  });
  CHECK(one_by_one == together);
}

TEST_CASE("each kernel of a mixed batch leaves the other's rows alone") {
  for (const int block_size : {any_prefill, prefill_sm80}) {
    leaves_the_others_alone(block_size, true);
    leaves_the_others_alone(block_size, false);
  }
}

TEST_CASE("decode_simt, too, leaves prompts alone") {
  GeneratedProblem<float> generated(mixed_batch());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  Expected expected = expected_of(generated, Causal{});
  for (int s = 0; s < generated.shape.num_seqs(); ++s)
    if (generated.shape.q_len[static_cast<std::size_t>(s)] > 8) expect_untouched(expected, generated, s);
  device.clear_outputs();
  auto problem = device.problem();
  problem.tables.max_q_len = 8;
  cuda::decode<head_dim>(problem, DeviceRule(Causal{}), workspace, nullptr);
  device.fetch_outputs();
  const std::string difference = mismatch(generated, expected, out_tolerance<float>());
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("a graph captured once serves every mixture: both, prompts alone, tokens alone, nothing") {
  Batch batch(mixed_batch());
  Stream stream;
  const auto over_tables = [&](auto&& attend) {
    auto problem = batch.device.problem();
    problem.tables = batch.workspace.tables(130, 1000);
    attend(problem);
  };
  const Graph graph(stream, [&] { over_tables([&](const auto& problem) { batch.attend(problem, stream); }); });
  const std::vector<std::vector<int>> mixtures = {{100, 1, 0, 17, 8, 9, 1, 16, 5, 130},
                                                  {1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                                  {60, 30, 5, 40, 20, 9, 30, 16, 50, 20},
                                                  {},
                                                  {8, 9, 8, 9, 8, 9, 8, 9},
                                                  {0, 0, 0},
                                                  {130},
                                                  {4, 3, 2, 1}};
  for (int round = 0; round < 3; ++round) {
    for (const std::vector<int>& q_len : mixtures) {
      GeneratedProblem<bf16> mixture = batch.generated;
      if (!q_len.empty()) mixture.shape.q_len = q_len;
      const Fill fill(mixture, static_cast<int>(q_len.size()));
      static_cast<void>(batch.workspace.upload(fill.view, stream));
      const Outputs<bf16> expected = bits_of(batch.generated, batch.device, [&](const auto&) {
        over_tables([&](const auto& problem) { batch.one_after_another(problem, stream); });
      });
      const Outputs<bf16> replayed = bits_of(batch.generated, batch.device, [&](const auto&) { graph.replay(stream); });
      CHECK(replayed == expected);
    }
  }
}

TEST_CASE("1,000 steps with a long prompt beside few tokens give the bits of the kernels one after another") {
  chains_agree(batch({200, 1, 3}, {3000, 40, 200}));
}

TEST_CASE("1,000 steps in which prefill_sm80 goes first give the bits of the kernels one after another") {
  ProblemShape shape = batch({70, 1, 3, 1}, {1500, 40, 200, 3000});
  shape.block_size = prefill_sm80;
  chains_agree(shape);
}

TEST_CASE("1,000 steps with a short prompt beside long contexts give the bits of the kernels one after another") {
  chains_agree(batch({1, 20, 1, 1}, {4000, 20, 3000, 100}));
}

TEST_CASE("1,000 steps of tokens alone, stated as a mixed batch, give the bits of decode alone") {
  ProblemShape shape = batch({1, 1, 0, 1}, {400, 20, 3000, 100});
  const auto stated = [](auto problem) {
    problem.tables.max_q_len = 64;
    return problem;
  };
  const auto expected =
      run_chain(shape, cuda::Launch::after_previous, [](Batch& batch, const auto& problem, auto& stream) {
        cuda::decode<head_dim>(problem, DeviceRule(Causal{}), batch.workspace, stream, Batch::options);
      });
  const auto got =
      run_chain(shape, cuda::Launch::overlap_previous, [&](Batch& batch, const auto& problem, auto& stream) {
        batch.attend(stated(problem), stream, cuda::Launch::overlap_previous);
      });
  CHECK(got == expected);
}

TEST_CASE("code that was built for compute capability 9.0 may start before the kernel in front has ended") {
  CHECK(cuda::detail::can_overlap(next_queries_kernel) == (cuda::this_device().arch >= 90));
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

TEST_CASE("an inconsistent problem is refused by name, by explain as by attend") {
  GeneratedProblem<bf16> generated(batch({1, 20}, {30, 20}));
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  auto problem = device.problem();
  problem.kv.k.extents[1] = problem.kv.v.extents[1] = 0;
  CHECK_THROWS_WITH_AS(static_cast<void>(cuda::explain(problem, workspace)), doctest::Contains("kv: kv_heads"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(cuda::attend<head_dim>(problem, DeviceRule(Causal{}), workspace, nullptr),
                       doctest::Contains("kv: kv_heads"), InvalidArgument);
}
