// The rungs of the ladder, run on the host by emulated warps, against the reference, on poisoned pools.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernels: it defines CUDA's words
// clang-format on

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/ladder/1_naive.cuh"
#include "kernels/ladder/2_warp_per_head.cuh"
#include "kernels/ladder/3_packed_heads.cuh"
#include "kernels/ladder/4_pipelined.cuh"
#include "kernels/ladder/5_split.cuh"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/variants.hpp"
#include "support/problem_generator.hpp"
#include "support/tolerance.hpp"

// What `extern __shared__` names.
namespace ladder {
alignas(128) unsigned char shared_bytes[sizeof(Ring)];
}  // namespace ladder

namespace {

using namespace pagedkv;
using namespace pagedkv_test;
using Problem = AttentionProblem<Space::host, bf16>;

void launch(int num_ctas, int threads, const std::function<void()>& kernel) {
  for (emulated_cta = {0}; emulated_cta.x < static_cast<unsigned>(num_ctas); ++emulated_cta.x)
    emulator.run(threads, kernel);
}

/// Rung 5 with its memory, poisoned but for the counters, which must be back at 0 after each launch.
class Splitter {
 public:
  Splitter(const Problem& problem, int split_keys, int max_splits)
      : plan_(make_plan(problem.tables, 1, ladder::key_tile, split_keys, max_splits)),
        num_units_(problem.tables.num_seqs() * problem.kv_heads()),
        out_(size(num_ctas() * ladder::head_dim * ladder::max_group), std::nanf("")),
        softmax_(size(num_ctas() * 2 * ladder::lanes), {std::nanf(""), std::nanf("")}),
        arrivals_(size(num_units_), 0u) {}

  void run(const Problem& problem) {
    const ladder::Scratch scratch{
        .out = dense_view<Space::device>(out_.data(), {num_ctas(), ladder::head_dim / 16, ladder::lanes, 4}),
        .softmax = dense_view<Space::device>(softmax_.data(), {num_ctas(), 2, ladder::lanes}),
        .arrivals = dense_view<Space::device>(arrivals_.data(), {num_units_})};
    launch(num_ctas(), ladder::lanes, [&] { ladder::split_kernel(problem, plan_, scratch); });
    CHECK(std::ranges::count(arrivals_, 0u) == num_units_);
  }

 private:
  static std::size_t size(int n) { return static_cast<std::size_t>(n); }
  int num_ctas() const { return num_units_ * plan_.max_splits; }

  AttentionPlan plan_;
  int num_units_;
  std::vector<float> out_;
  std::vector<OnlineSoftmax> softmax_;
  std::vector<unsigned> arrivals_;
};

void run_rung(int rung, const Problem& problem) {
  const int heads = problem.tables.num_seqs() * problem.q_heads(), groups = heads / problem.group_size();
  switch (rung) {
    case 1:
      return launch(heads, ladder::head_dim, [&] { ladder::naive_kernel(problem); });
    case 2:
      return launch(heads, ladder::lanes, [&] { ladder::warp_per_head_kernel(problem); });
    case 3:
      return launch(groups, ladder::lanes, [&] { ladder::packed_heads_kernel(problem); });
    case 4:
      return launch(groups, ladder::lanes, [&] { ladder::pipelined_kernel(problem); });
    default:
      return Splitter(problem, 64, 5).run(problem);
  }
}

ProblemShape shape_of(std::uint64_t seed, std::vector<int> kv_len, int kv_heads, int group_size, int block_size,
                      PoolOrder order) {
  return {.seed = seed,
          .q_len = std::vector<int>(kv_len.size(), 1),
          .kv_len = std::move(kv_len),
          .kv_heads = kv_heads,
          .group_size = group_size,
          .head_dim = ladder::head_dim,
          .head_dim_v = ladder::head_dim,
          .block_size = block_size,
          .order = order};
}

/// The first difference from the reference; the rungs write no lse, so it is taken from there.
std::string difference(GeneratedProblem<bf16>& generated, double weight_unit) {
  const Expected expected = expected_of(generated, Causal{});
  std::ranges::copy(expected.lse, generated.lse.begin() + generated.margin);
  generated.lse.resize(generated.margin + expected.lse.size());
  generated.lse.resize(generated.lse.size() + generated.margin, -12345.f);
  return mismatch(generated, expected, out_tolerance<bf16>(weight_unit));
}

void check_rung(int rung) {
  const double weight_unit = rung < 3 ? 0 : rounding_unit<bf16>();
  for (const ProblemShape& shape :
       {shape_of(1, {65, 0, 1, 170, 32}, 2, 4, 16, PoolOrder::hnd), shape_of(2, {40, 31, 96}, 1, 8, 7, PoolOrder::nhd),
        shape_of(3, {33, 64}, 3, 1, 1, PoolOrder::interleaved), shape_of(4, {0, 200}, 1, 5, 64, PoolOrder::hnd)}) {
    GeneratedProblem<bf16> generated(shape);
    run_rung(rung, generated.problem());
    const std::string text = difference(generated, weight_unit);
    REQUIRE_MESSAGE(text.empty(), text);
  }
}

}  // namespace

TEST_CASE("rung 1, naive, gives the reference's results") { check_rung(1); }
TEST_CASE("rung 2, a warp per head, gives the reference's results") { check_rung(2); }
TEST_CASE("rung 3, packed heads, gives the reference's results") { check_rung(3); }
TEST_CASE("rung 4, pipelined, gives the reference's results") { check_rung(4); }
TEST_CASE("rung 5, split, gives the reference's results") { check_rung(5); }

TEST_CASE("rung 5 gives the reference's results however it cuts, launch after launch") {
  GeneratedProblem<bf16> generated(shape_of(5, {300, 20, 0, 129}, 2, 4, 16, PoolOrder::hnd));
  for (const int split_keys : {32, 96, 512}) {
    Splitter splitter(generated.problem(), split_keys, 16);
    for (int i = 0; i < 2; ++i) {
      generated.clear_outputs();
      splitter.run(generated.problem());
      const std::string text = difference(generated, rounding_unit<bf16>());
      CHECK_MESSAGE(text.empty(), text);
    }
  }
}

TEST_CASE("the rungs with tiles read shared memory without bank conflicts") {
  bank_conflicts = 0;
  for (const int rung : {3, 4, 5}) check_rung(rung);
  CHECK(bank_conflicts == 0);
}
