// Where prefill finds its queries and keys and puts its results: any block size, any order of the pool, blocks that are
// gone, tables that hold anything, rows with gaps between them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/drop_blocks.hpp"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape several_lengths(int head_dim) {
  return {.seed = 31,
          .q_len = {70, 2, 20, 16, 1, 100},
          .kv_len = {500, 257, 255, 16, 1, 100},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .shares_prefixes = false};
}

/// Rows of T with gaps between them, on the device: [rows, stride] of which a view takes the first `columns`.
template <class T>
struct GappyRows {
  static constexpr int gap = 8;
  std::vector<T> host;
  cuda::DeviceArray<T> device;
  std::int64_t rows, columns;

  GappyRows(std::int64_t num_rows, std::int64_t num_columns, T filler)
      : host(static_cast<std::size_t>(num_rows * (num_columns + gap)), filler),
        device(host.size()),
        rows(num_rows),
        columns(num_columns) {}

  std::int64_t stride() const { return columns + gap; }
  T* row(std::int64_t r) { return host.data() + r * stride(); }
};

}  // namespace

TEST_CASE(
    "blocks of any size in any order of the pool give the reference's results, those that TMA lifts the same bits") {
  for (const int head_dim : {64, 128}) {
    cuda::Workspace workspace({.head_dim_v = head_dim});
    std::optional<Expected> expected;
    std::optional<Outputs<bf16>> first_sm80, first_sm90, first_wide;
    for (const PoolOrder order : {PoolOrder::hnd, PoolOrder::nhd, PoolOrder::interleaved}) {
      for (const int block_size : {1, 7, 8, 16, 19, 24, 32, 64, 100, 128, 1024}) {
        ProblemShape shape = several_lengths(head_dim);
        shape.order = order;
        shape.block_size = block_size;
        GeneratedProblem<bf16> generated(shape);
        DeviceProblem device(generated);
        if (!expected) expected = expected_of(generated, Causal{});
        const cuda::Support lifts = cuda::prefill_sm90_support(device.problem(), workspace.device());
        CHECK(bool(lifts) == (workspace.device().arch == 90 && block_size % 8 == 0));
        const bool is_sm90 = lifts && has_prefill_sm90();

        const auto check = [&](const PrefillProblem& problem, std::optional<Outputs<bf16>>& first) {
          const Outputs<bf16> bits =
              bits_of(generated, device, [&](const auto&) { prefill(problem, Causal{}, workspace); });
          const std::string difference = mismatch(generated, *expected, prefill_tolerance);
          CHECK_MESSAGE(difference.empty(), difference);
          if (!first) first = bits;
          CHECK_MESSAGE(bits == *first, shape.describe());
        };
        check(device.problem(), is_sm90 ? first_sm90 : first_sm80);
        if (is_sm90) check(stated_large(device.problem()), first_wide);
      }
    }
  }
}

TEST_CASE("a context may end anywhere in a tile of keys, and be shorter than a block") {
  for (const int head_dim : {64, 128}) {
    cuda::Workspace workspace({.head_dim_v = head_dim});
    for (const int block_size : {8, 16, 128, 1024}) {
      ProblemShape shape = several_lengths(head_dim);
      shape.block_size = block_size;
      shape.kv_heads = 1;
      shape.q_len.clear();
      shape.kv_len.clear();
      for (const int tile : {1, 8, 16, 64, 128, 256, 384}) {
        for (const int kv_len : {tile - 1, tile, tile + 1}) {
          shape.q_len.push_back(std::min(kv_len, 9));
          shape.kv_len.push_back(kv_len);
        }
      }
      GeneratedProblem<bf16> generated(shape);
      for (const bool is_causal : {true, false}) {
        const std::string difference = is_causal ? mismatch_of_kernels(generated, Causal{}, Causal{}, workspace)
                                                 : mismatch_of_kernels(generated, Full{}, Full{}, workspace);
        CHECK_MESSAGE(difference.empty(), difference);
      }
    }
  }
}

TEST_CASE("blocks behind a window may be gone, and their bytes may hold anything") {
  for (const int head_dim : {64, 128}) {
    cuda::Workspace workspace({.head_dim_v = head_dim});
    for (const int block_size : {7, 8, 16, 64}) {
      for (const bool leave_ids : {false, true}) {
        for (const SlidingWindow window :
             {SlidingWindow{.window = 70, .sink_tokens = 5}, SlidingWindow{.window = 33}}) {
          ProblemShape shape = several_lengths(head_dim);
          shape.block_size = block_size;
          GeneratedProblem<bf16> generated(shape);
          const Expected expected = expected_of(generated, window);
          drop_blocks(generated, window.sink_tokens, 500 - 70 - window.window + 1, leave_ids);
          DeviceProblem device(generated);
          for (const cuda::PrefillKernel kernel : {cuda::PrefillKernel::sm80, cuda::PrefillKernel::best}) {
            device.clear_outputs();
            prefill(device.problem(), DeviceRule(window), workspace, nullptr, {.kernel = kernel});
            device.fetch_outputs();
            const std::string difference = mismatch(generated, expected, prefill_tolerance);
            CHECK_MESSAGE(difference.empty(), difference);
          }
        }
      }
    }
  }
}

TEST_CASE("one block may stand for many, in one sequence and in several") {
  ProblemShape shape = several_lengths(128);
  shape.q_len = {30, 16, 64};
  shape.kv_len = {333, 16, 320};
  GeneratedProblem<bf16> generated(shape);
  const auto width = static_cast<std::size_t>(generated.max_blocks_per_seq);
  for (std::size_t block = 0; block < 21; ++block) {
    if (block < 20) generated.block_ids[2 * width + block] = generated.block_ids[width];
    if (block % 3 == 0) generated.block_ids[block] = generated.block_ids[width];
  }
  cuda::Workspace workspace({.head_dim_v = 128});
  const std::string difference = mismatch_of_kernels(generated, Causal{}, Causal{}, workspace, 1'000'000);
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("rows of q, out and lse may lie apart, and what lies between them is left alone") {
  for (const int head_dim : {64, 128}) {
    GeneratedProblem<bf16> generated(several_lengths(head_dim));
    const Expected expected = expected_of(generated, Causal{});
    DeviceProblem device(generated);
    cuda::Workspace workspace({.head_dim_v = head_dim});
    const std::int64_t tokens = generated.num_tokens(), heads = generated.shape.q_heads();
    const bf16 canary = from_float<bf16>(-12345.f);
    // As in one projection of q, k and v: the heads of k and v lie behind those of q.
    GappyRows<bf16> q(tokens, (heads + 4) * head_dim, from_float<bf16>(std::nanf("")));
    GappyRows<bf16> out(tokens * heads, head_dim, canary);
    GappyRows<float> lse(tokens, heads, -12345.f);
    for (std::int64_t t = 0; t < tokens; ++t)
      std::copy_n(generated.q.data() + t * heads * head_dim, heads * head_dim, q.row(t));
    copy_to_device(q.device, q.host);

    auto problem = device.problem();
    problem.q.data = q.device.data();
    problem.q.strides[0] = q.stride();
    problem.out.data = out.device.data();
    problem.out.strides[0] = heads * out.stride();
    problem.out.strides[1] = out.stride();
    problem.lse.data = lse.device.data();
    problem.lse.strides[0] = lse.stride();
    const auto run = [&](const PrefillProblem& stated, cuda::PrefillKernel kernel) {
      std::fill(out.host.begin(), out.host.end(), canary);
      std::fill(lse.host.begin(), lse.host.end(), -12345.f);
      copy_to_device(out.device, out.host);
      copy_to_device(lse.device, lse.host);
      prefill(stated, Causal{}, workspace, nullptr, {.kernel = kernel});
      to_host(out.host, out.device);
      to_host(lse.host, lse.device);

      generated.clear_outputs();
      const std::ptrdiff_t margin = generated.margin;
      bool gaps_are_intact = true;
      for (std::int64_t r = 0; r < out.rows; ++r) {
        std::copy_n(out.row(r), head_dim, generated.out.begin() + margin + r * head_dim);
        for (int i = 0; i < out.gap; ++i) gaps_are_intact &= out.row(r)[head_dim + i].bits == canary.bits;
      }
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::copy_n(lse.row(t), heads, generated.lse.begin() + margin + t * heads);
        for (int i = 0; i < lse.gap; ++i) gaps_are_intact &= lse.row(t)[heads + i] == -12345.f;
      }
      const std::string difference = mismatch(generated, expected, prefill_tolerance);
      CHECK_MESSAGE(difference.empty(), difference);
      CHECK(gaps_are_intact);
    };
    for (const cuda::PrefillKernel kernel : prefill_kernels()) run(problem, kernel);
    run(stated_large(problem), cuda::PrefillKernel::best);
  }
}
