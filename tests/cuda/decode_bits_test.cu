// The bits of decode: the same run after run; the same alone and in any company where that is asked for.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int head_dim = 64;
constexpr cuda::DecodeOptions invariant{.batch_invariant = true};

ProblemShape several_splits() {
  return {.seed = 21,
          .q_len = {1, 3, 1, 0, 2, 1, 1},
          .kv_len = {900, 257, 0, 31, 513, 4000, 1},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16};
}

cuda::Workspace some_workspace() { return cuda::Workspace({.head_dim_v = head_dim}); }

template <class Generated, class Device>
Outputs<bf16> run(Generated& generated, Device& device, cuda::Workspace& workspace,
                  const cuda::DecodeOptions& options = {}) {
  return bits_of(generated, device,
                 [&](const auto& problem) { decode(problem, DeviceRule(Causal{}), workspace, nullptr, options); });
}

bool untouched(float x) { return x == -12345.f; }

}  // namespace

TEST_CASE("the same call gives the same bits, run after run, whatever ran in between") {
  GeneratedProblem<bf16> generated(several_splits()), other(random_shape(5, {.head_dims = {head_dim}}));
  DeviceProblem device(generated), other_device(other);
  cuda::Workspace workspace = some_workspace();
  for (const bool batch_invariant : {false, true}) {
    const cuda::DecodeOptions options{.batch_invariant = batch_invariant};
    const Outputs<bf16> first = run(generated, device, workspace, options);
    for (int i = 0; i < 200; ++i) {
      if (i % 3 == 0) decode(other_device.problem(), DeviceRule(Causal{}), workspace);
      REQUIRE(run(generated, device, workspace, options) == first);
    }
  }
}

TEST_CASE("a batch-invariant call gives a sequence the same bits alone, among others, in any order, and twice") {
  GeneratedProblem<bf16> generated(several_splits());
  cuda::Workspace workspace = some_workspace();
  const auto rows_in = [&](const std::vector<int>& sequences) {
    GeneratedProblem<bf16> batch = generated.with_sequences(sequences);
    DeviceProblem device(batch);
    static_cast<void>(run(batch, device, workspace, invariant));
    std::vector<std::vector<float>> rows;
    for (std::size_t s = 0; s < sequences.size(); ++s) rows.push_back(batch.rows_of(static_cast<int>(s)));
    return rows;
  };
  std::vector<std::vector<float>> alone;
  for (int s = 0; s < 7; ++s) alone.push_back(rows_in({s})[0]);

  std::vector<std::vector<int>> batches{
      {0, 1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1, 0}, {5, 5}, {0, 5, 0}, {2, 2, 1, 2}, {4, 6}};
  std::vector<int> crowd;
  for (int i = 0; i < 500; ++i) crowd.push_back(i * 5 % 7);
  batches.push_back(crowd);
  for (const std::vector<int>& batch : batches) {
    const auto rows = rows_in(batch);
    for (std::size_t i = 0; i < batch.size(); ++i)
      REQUIRE_MESSAGE(same_bits(rows[i], alone[static_cast<std::size_t>(batch[i])]), "sequence ", batch[i], " at ", i,
                      " of ", batch.size());
  }
}

TEST_CASE("a batch-invariant call gives the same bits whatever bounds are stated and however many partials there are") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace large = some_workspace(), small({.max_partials = 64, .head_dim_v = head_dim});
  const Outputs<bf16> expected = run(generated, device, large, invariant);
  CHECK(run(generated, device, small, invariant) == expected);
  const Outputs<bf16> with_other_bounds = bits_of(generated, device, [&](auto problem) {
    problem.tables.max_kv_len = static_cast<int>(problem.tables.block_ids.extents[1]) * 16;
    decode(problem, DeviceRule(Causal{}), large, nullptr, invariant);
  });
  CHECK(with_other_bounds == expected);
}

TEST_CASE("after any call the counters of the workspace are back at 0") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.max_partials = 4096, .head_dim_v = head_dim});
  const auto all_zero = [](const View<unsigned, 1, Space::device>& counters) {
    std::vector<unsigned> values(static_cast<std::size_t>(counters.extents[0]), 1u);
    cuda::check(cudaMemcpy(values.data(), counters.data, values.size() * sizeof(unsigned), cudaMemcpyDeviceToHost),
                "read");
    return std::all_of(values.begin(), values.end(), [](unsigned n) { return n == 0; });
  };
  for (const bool batch_invariant : {false, true}) {
    static_cast<void>(run(generated, device, workspace, {.batch_invariant = batch_invariant}));
    CHECK(all_zero(workspace.partials().arrivals));
  }
}

TEST_CASE("no lse is written where none is wanted") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace = some_workspace();
  const Outputs<bf16> with_lse = run(generated, device, workspace);
  const Outputs<bf16> without = bits_of(generated, device, [&](auto problem) {
    problem.lse = {};
    decode(problem, DeviceRule(Causal{}), workspace);
  });
  CHECK(same_bits(without.out, with_lse.out));
  CHECK(std::all_of(without.lse.begin(), without.lse.end(), untouched));
}

TEST_CASE("decode refuses a problem of another head_dim before it launches anything") {
  GeneratedProblem<bf16> generated(several_splits());
  DeviceProblem device(generated);
  cuda::Workspace workspace = some_workspace();
  auto other = device.problem();
  other.q.extents[2] = other.kv.k.extents[3] = 32;
  CHECK_THROWS_AS(decode(other, DeviceRule(Causal{}), workspace), InvalidArgument);
  auto inconsistent = device.problem();
  inconsistent.out.extents[1] = 1;
  CHECK_THROWS_AS(decode(inconsistent, DeviceRule(Causal{}), workspace), InvalidArgument);
  device.fetch_outputs();
  CHECK(std::all_of(generated.lse.begin(), generated.lse.end(), untouched));
}

TEST_CASE("a tree without branches gets the bits of causal attention, from decode and from prefill") {
  GeneratedProblem<bf16> generated(several_splits());
  for (std::size_t s = 0; s < 7; ++s) {
    std::uint64_t seen = 0;
    for (int token = generated.query_begin[s]; token < generated.query_begin[s + 1]; ++token)
      generated.tree[static_cast<std::size_t>(token)] = seen = seen << 1 | 1;
  }
  DeviceProblem device(generated);
  cuda::Workspace workspace = some_workspace();
  const auto bits = [&](const DeviceRule& rule, bool by_decode) {
    return bits_of(generated, device, [&](const auto& problem) {
      by_decode ? decode(problem, rule, workspace) : prefill(problem, rule, workspace);
    });
  };
  for (const bool by_decode : {true, false})
    CHECK(bits(DeviceRule(device.rules().tree), by_decode) == bits(DeviceRule(Causal{}), by_decode));
}
