// The numbers of prefill: huge logits, logits that rise, an outlier at every place of a tile, a million equal keys.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape shape_of(int head_dim, std::vector<int> q_len, std::vector<int> kv_len) {
  return {.seed = 81,
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = 1,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16,
          .shares_prefixes = false};
}

/// Calls set(key, d, element of K) for all keys of sequence `s`.
template <class Set>
void set_keys(GeneratedProblem<bf16>& generated, int s, Set&& set) {
  const auto kv = generated.kv_view<Space::host>(generated.pool.data());
  for (int key = 0; key < generated.kv_len[static_cast<std::size_t>(s)]; ++key) {
    const auto entry = static_cast<std::size_t>(s * generated.max_blocks_per_seq + key / 16);
    for (int d = 0; d < generated.shape.head_dim; ++d)
      set(key, d, *kv.k.at(generated.block_ids[entry], 0, key % 16, d));
  }
}

void matches_the_reference(GeneratedProblem<bf16>& generated, double largest_logit) {
  const int head_dim = generated.shape.head_dim;
  cuda::Workspace workspace({.head_dim_v = head_dim});
  const Expected expected = expected_of(generated, Causal{});
  DeviceProblem device(generated);
  for (const cuda::PrefillKernel kernel : prefill_kernels()) {
    CAPTURE(static_cast<int>(kernel));
    device.clear_outputs();
    prefill(device.problem(), Causal{}, workspace, nullptr, {.kernel = kernel});
    device.fetch_outputs();
    const std::string difference = mismatch(
        generated, expected, out_tolerance<bf16>(rounding_unit<bf16>(), largest_logit), lse_tolerance(largest_logit));
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

}  // namespace

TEST_CASE("prefill stays exact where logits are huge and far apart") {
  for (const int head_dim : {64, 128}) {
    ProblemShape shape = shape_of(head_dim, {30, 70, 64, 9}, {700, 300, 64, 1000});
    shape.kv_heads = 2;
    shape.group_size = 4;
    GeneratedProblem<bf16> generated(shape);
    generated.scale = 100.f;
    matches_the_reference(generated, head_dim * 6 * 100);
  }
}

TEST_CASE("all logits of a row may be near 1e4, or near -1e4") {
  for (const float side : {1.f, -1.f}) {
    GeneratedProblem<bf16> generated(shape_of(64, {70, 17, 64, 1}, {700, 17, 64, 1}));
    for (bf16& x : generated.q) x = from_float<bf16>(std::abs(to_float(x)) + 1.f);
    for (int s = 0; s < 4; ++s)
      set_keys(generated, s, [&](int, int, bf16& x) { x = from_float<bf16>(side * (1.f + 0.01f * to_float(x))); });
    generated.scale = 40.f;
    matches_the_reference(generated, 64 * 7 * 40);
  }
}

TEST_CASE("logits that rise, or fall, from key to key give the reference's results") {
  for (const bool rise : {true, false}) {
    GeneratedProblem<bf16> generated(shape_of(128, {130, 20}, {700, 333}));
    for (bf16& x : generated.q) x = from_float<bf16>(1.f + std::abs(to_float(x)) / 6.f);
    for (int s = 0; s < 2; ++s) {
      const int num_keys = generated.kv_len[static_cast<std::size_t>(s)];
      set_keys(generated, s, [&](int key, int, bf16& x) {
        x = from_float<bf16>(static_cast<float>(rise ? key : num_keys - key) / static_cast<float>(num_keys));
      });
    }
    generated.scale = 2.f;
    matches_the_reference(generated, 2 * 128 * 2);
  }
}

TEST_CASE("one giant logit, or one that is tiny, may stand at any place of any tile") {
  for (const float size : {40.f, -40.f}) {
    const int num_keys = 280;
    GeneratedProblem<bf16> generated(shape_of(64, std::vector<int>(num_keys, 2), std::vector<int>(num_keys, num_keys)));
    for (int s = 0; s < num_keys; ++s) {
      const bf16* const q = generated.q.data() + 2 * s * 64;
      set_keys(generated, s, [&](int key, int d, bf16& x) {
        if (key == s) x = from_float<bf16>(to_float(q[d]) > 0 ? size : -size);
      });
    }
    matches_the_reference(generated, 64 * 6 * 40 / 8);
  }
}

TEST_CASE("a million equal keys weigh a million") {
  const int num_keys = 1'000'000;
  GeneratedProblem<bf16> generated(shape_of(128, {1}, {16}));
  const auto kv = generated.kv_view<Space::host>(generated.pool.data());
  const int block = generated.block_ids[0];
  double dot = 0;
  for (int d = 0; d < 128; ++d) {
    for (int slot = 1; slot < 16; ++slot) {
      kv.k(block, 0, slot, d) = kv.k(block, 0, 0, d);
      kv.v(block, 0, slot, d) = kv.v(block, 0, 0, d);
    }
    dot += double{to_float(generated.q[static_cast<std::size_t>(d)])} * double{to_float(kv.k(block, 0, 0, d))};
  }
  DeviceProblem device(generated);
  const auto block_ids = to_device(std::vector<std::int32_t>(num_keys / 16, block)),
             kv_len = to_device(std::vector<std::int32_t>{num_keys});
  auto problem = device.problem();
  problem.tables.block_ids =
      dense_view<Space::device>(static_cast<const std::int32_t*>(block_ids.data()), {1, num_keys / 16});
  problem.tables.kv_len = dense_view<Space::device>(static_cast<const std::int32_t*>(kv_len.data()), {1});
  problem.tables.max_kv_len = num_keys;
  cuda::Workspace workspace({.head_dim_v = 128});
  for (const cuda::PrefillKernel kernel : prefill_kernels()) {
    device.clear_outputs();
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    device.fetch_outputs();
    CHECK(is_close(generated.lse[generated.margin], dot * double{generated.scale} + std::log(double{num_keys}),
                   lse_tolerance()));
    for (std::size_t d = 0; d < 128; ++d)
      CHECK(is_close(to_float(generated.out[generated.margin + d]), to_float(kv.v(block, 0, 0, d)), prefill_tolerance));
  }
}
