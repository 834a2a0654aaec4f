// The bits of decode: the same run after run, alone and in any company, eager and replayed from a graph.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "support/device_problem.cuh"
#include "support/random.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64;

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

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

struct Outputs {
  std::vector<bf16> out;
  std::vector<float> lse;

  friend bool operator==(const Outputs& a, const Outputs& b) {
    return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
  }
};

template <class Generated, class Device>
Outputs run(Generated& generated, Device& device, cuda::Workspace& workspace) {
  device.clear_outputs();
  cuda::decode<head_dim>(device.problem(), Causal{}, workspace, nullptr);
  device.fetch_outputs();
  return {generated.out, generated.lse};
}

/// A stream that does not wait for the default stream, for capturing.
struct Stream {
  Stream() { cuda::check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "stream"); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(handle)); }
  cudaStream_t handle = nullptr;
};

/// The tables of the first `num_seqs` sequences of `generated` with shorter lengths, drawn anew.
struct Fill {
  std::vector<std::int32_t> kv_len, query_begin;
  TablesView<Space::host> view;

  template <class Generated>
  Fill(const Generated& generated, int num_seqs, std::uint64_t seed) : query_begin{0} {
    Random random(seed);
    for (int s = 0; s < num_seqs; ++s) {
      const auto i = static_cast<std::size_t>(s);
      kv_len.push_back(random.one_in(4) ? 0 : random.between(0, generated.shape.kv_len[i]));
      query_begin.push_back(query_begin.back() + random.between(0, generated.shape.q_len[i]));
    }
    view = {.block_ids = dense_view(generated.block_ids.data(), {num_seqs, generated.max_blocks_per_seq}),
            .kv_len = dense_view(kv_len.data(), {num_seqs}),
            .query_begin = dense_view(query_begin.data(), {num_seqs + 1}),
            .max_q_len = 3,
            .max_kv_len = 900};
  }
  Fill(const Fill&) = delete;
  Fill& operator=(const Fill&) = delete;
};

}  // namespace

TEST_CASE("the same call gives the same bits, run after run") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Outputs first = run(generated, device, workspace);
  for (int i = 0; i < 50; ++i) REQUIRE(run(generated, device, workspace) == first);
}

TEST_CASE("how many CTAs share a row's keys changes no bit of it") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace shared({.head_dim_v = head_dim}), alone({.max_partials = 1, .head_dim_v = head_dim});
  REQUIRE(cuda::detail::schedule_for(cuda::choose_decode(90, head_dim, 2), device.problem(), shared).num_shares > 1);
  REQUIRE(cuda::detail::schedule_for(cuda::choose_decode(90, head_dim, 2), device.problem(), alone).num_shares == 1);
  CHECK(run(generated, device, shared) == run(generated, device, alone));
}

TEST_CASE("a sequence gets the same bits alone as in a batch") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Outputs batch = run(generated, device, workspace);
  device.clear_outputs();
  for (int s = 0; s < generated.shape.num_seqs(); ++s) {
    auto problem = device.problem();
    TablesView<Space::device>& tables = problem.tables;
    tables.block_ids.data = tables.block_ids.at(s, 0);
    tables.kv_len.data += s;
    tables.query_begin.data += s;
    tables.block_ids.extents[0] = tables.kv_len.extents[0] = 1;
    tables.query_begin.extents[0] = 2;
    tables.max_q_len = generated.shape.q_len[static_cast<std::size_t>(s)];
    tables.max_kv_len = generated.shape.kv_len[static_cast<std::size_t>(s)];
    cuda::decode<head_dim>(problem, Causal{}, workspace, nullptr);
  }
  device.fetch_outputs();
  CHECK(Outputs{generated.out, generated.lse} == batch);
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
    cuda::decode<head_dim>(problem, Causal{}, workspace, stream.handle);
  };

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal), "capture");
  decode_over(workspace.tables(3, 900));
  cuda::check(cudaStreamEndCapture(stream.handle, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");

  for (const int num_seqs : {5, 1, 0, 3, 5, 2}) {
    const Fill fill(generated, num_seqs, static_cast<std::uint64_t>(100 + num_seqs));
    device.clear_outputs();
    decode_over(workspace.upload(fill.view, stream.handle));
    device.fetch_outputs();
    const Outputs eager{generated.out, generated.lse};

    device.clear_outputs();
    static_cast<void>(workspace.upload(fill.view, stream.handle));
    cuda::check(cudaGraphLaunch(executable, stream.handle), "replay");
    device.fetch_outputs();
    CHECK(Outputs{generated.out, generated.lse} == eager);
    const auto used = static_cast<std::size_t>(fill.query_begin.back() * generated.shape.q_heads());
    const auto untouched = [](float x) { return x == -12345.f; };
    CHECK(std::all_of(generated.lse.begin() + static_cast<std::ptrdiff_t>(generated.margin + used), generated.lse.end(),
                      untouched));
  }
  static_cast<void>(cudaGraphExecDestroy(executable));
  static_cast<void>(cudaGraphDestroy(graph));
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
  const Outputs with_lse = run(generated, device, workspace);
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
