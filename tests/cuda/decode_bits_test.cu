// The bits of decode: the same run after run, alone and in any company, eager and replayed from a graph.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64;

ProblemShape several_splits() {
  return {.seed = 21,
          .q_len = {1, 3, 1, 0, 2},
          .kv_len = {900, 257, 0, 31, 513},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

template <class Generated, class Device>
Outputs<bf16> run(Generated& generated, Device& device, cuda::Workspace& workspace) {
  return bits_of(generated, device,
                 [&](const auto& problem) { cuda::decode<head_dim>(problem, Causal{}, workspace, nullptr); });
}

}  // namespace

TEST_CASE("the same call gives the same bits, run after run") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Outputs<bf16> first = run(generated, device, workspace);
  for (int i = 0; i < 50; ++i) REQUIRE(run(generated, device, workspace) == first);
}

TEST_CASE("how many CTAs share a row's keys changes no bit of it") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace shared({.head_dim_v = head_dim}), alone({.max_partials = 1, .head_dim_v = head_dim});
  REQUIRE(cuda::detail::schedule_for(cuda::choose_decode_simt(90, head_dim, 2), device.problem(), shared).num_shares > 1);
  REQUIRE(cuda::detail::schedule_for(cuda::choose_decode_simt(90, head_dim, 2), device.problem(), alone).num_shares == 1);
  CHECK(run(generated, device, shared) == run(generated, device, alone));
}

TEST_CASE("a sequence gets the same bits alone as in a batch") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Outputs<bf16> batch = run(generated, device, workspace);
  const Outputs<bf16> one_by_one = bits_of(generated, device, [&](const auto& problem) {
    for (int s = 0; s < generated.shape.num_seqs(); ++s)
      cuda::decode<head_dim>(only_sequence(problem, generated.shape, s), Causal{}, workspace, nullptr);
  });
  CHECK(one_by_one == batch);
}

TEST_CASE("a graph captured once gives the bits of eager calls for every later fill, none included") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace(
      {.max_seqs = 8, .max_blocks_per_seq = generated.max_blocks_per_seq, .head_dim_v = head_dim});
  Stream stream;
  const auto decode_over = [&](const TablesView<Space::device>& tables) {
    auto problem = device.problem();
    problem.tables = tables;
    cuda::decode<head_dim>(problem, Causal{}, workspace, stream);
  };
  const Graph graph(stream, [&](cudaStream_t) { decode_over(workspace.tables(3, 900)); });

  for (const int num_seqs : {5, 1, 0, 3, 5, 2}) {
    const Fill fill(generated, num_seqs, static_cast<std::uint64_t>(100 + num_seqs));
    const Outputs<bf16> eager =
        bits_of(generated, device, [&](const auto&) { decode_over(workspace.upload(fill.view, stream)); });
    const Outputs<bf16> replayed = bits_of(generated, device, [&](const auto&) {
      static_cast<void>(workspace.upload(fill.view, stream));
      graph.replay(stream);
    });
    CHECK(replayed == eager);
    const auto used = static_cast<std::size_t>(fill.query_begin.back() * generated.shape.q_heads());
    const auto untouched = [](float x) { return x == -12345.f; };
    CHECK(std::all_of(replayed.lse.begin() + static_cast<std::ptrdiff_t>(generated.margin + used), replayed.lse.end(),
                      untouched));
  }
}

TEST_CASE("after any call the arrival counters are back at 0") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.max_partials = 4096, .head_dim_v = head_dim});
  static_cast<void>(run(generated, device, workspace));
  const auto arrivals = workspace.partials().arrivals;
  std::vector<unsigned> counters(static_cast<std::size_t>(arrivals.extents[0]), 1u);
  cuda::check(cudaMemcpy(counters.data(), arrivals.data, counters.size() * sizeof(unsigned), cudaMemcpyDeviceToHost),
              "read");
  CHECK(std::all_of(counters.begin(), counters.end(), [](unsigned n) { return n == 0; }));
}

TEST_CASE("no lse is written where none is wanted") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Outputs<bf16> with_lse = run(generated, device, workspace);
  device.clear_outputs();
  auto problem = device.problem();
  problem.lse = {};
  cuda::decode<head_dim>(problem, Causal{}, workspace, nullptr);
  device.fetch_outputs();
  CHECK(same_bits(generated.out, with_lse.out));
  CHECK(std::all_of(generated.lse.begin(), generated.lse.end(), [](float x) { return x == -12345.f; }));
}

TEST_CASE("decode refuses a problem of another head_dim before it launches anything") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  CHECK_THROWS_AS(cuda::decode<32>(device.problem(), Causal{}, workspace, nullptr), InvalidArgument);
  CHECK_THROWS_AS(cuda::decode(cuda::HeadDims<32>{}, device.problem(), Causal{}, workspace, nullptr), InvalidArgument);
  auto inconsistent = device.problem();
  inconsistent.out.extents[1] = 1;
  CHECK_THROWS_AS(cuda::decode<head_dim>(inconsistent, Causal{}, workspace, nullptr), InvalidArgument);
  device.fetch_outputs();
  CHECK(std::all_of(generated.lse.begin(), generated.lse.end(), [](float x) { return x == -12345.f; }));
}
