// The decode kernel's own source, run on the host by emulated warps, against the reference.
// clang-format off
#define __shared__ __thread  // one for each host thread, so that CTAs can run together
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/decode_sm80.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "support/mixed_batch.hpp"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/run_grid.hpp"
#include "support/tolerance.hpp"

// What `extern __shared__` names.
namespace pagedkv {
inline namespace v0 {
namespace cuda {
alignas(128) __thread unsigned char shared_bytes[180 * 1024];
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Partials that outlive a launch.
struct Scratch {
  std::int64_t rows;
  int head_dim_v;
  std::vector<float> outputs;
  std::vector<OnlineSoftmax> softmax;

  Scratch(std::int64_t num_rows, int columns)
      : rows(num_rows),
        head_dim_v(columns),
        outputs(static_cast<std::size_t>((num_rows + cuda::AwaitedPartials::slack) * columns), none),
        softmax(static_cast<std::size_t>(num_rows + cuda::AwaitedPartials::slack), {none, none}) {}

  cuda::AwaitedPartials view() {
    return {.outputs = dense_view<Space::device>(outputs.data(), {rows * head_dim_v}),
            .softmax = dense_view<Space::device>(softmax.data(), {rows})};
  }

  bool is_empty() const {
    const auto is_absent = [](float word) { return std::bit_cast<std::uint32_t>(word) == cuda::absent; };
    return std::ranges::all_of(outputs, is_absent) && std::ranges::all_of(softmax, [&](const OnlineSoftmax& row) {
             return is_absent(row.max) && is_absent(row.sum);
           });
  }

 private:
  static constexpr float none = std::bit_cast<float>(cuda::absent);
};

struct Cutting {
  int num_ctas = 7;
  bool unit_pieces = false;
  int unit_tiles = 1;
  std::int64_t num_partials = 4096;  // rows
  int min_slice_units = 1;
  bool beside_previous = false;
  std::uint64_t together = 0;  // seed of the turns that all CTAs take; 0: one after the other
};

/// Runs the grid. How often the threads of each CTA, one after the other, have waited for the kernel in front.
template <class Config, class Problem, AttentionVariant V>
std::vector<long> launch(const Problem& problem, const V& variant, const Cutting& cutting) {
  static_assert(sizeof(typename Config::SharedMemory) <= sizeof(cuda::shared_bytes));
  const int rows = max(1, problem.tables.max_q_len) * problem.group_size();
  const int tiles_per_seq = ceil_div(rows, Config::rows);
  const cuda::DecodeCut cut{
      .num_items = problem.tables.num_seqs() * tiles_per_seq,
      .tiles_per_seq = Divisor(tiles_per_seq),
      .group_size = Divisor(problem.group_size()),
      .block_size = Divisor(problem.kv.block_size()),
      .max_q_len = problem.tables.max_q_len,
      .chunks_in_blocks = problem.kv.block_size() % 16 == 0,
      .tile_rows = Config::rows,
      .kv_heads = problem.kv_heads(),
      .unit_shift = std::countr_zero(static_cast<unsigned>(cutting.unit_tiles * Config::key_tile)),
      .min_slice_units = cutting.min_slice_units,
      .max_slices = cutting.num_ctas,
      .num_sms = cutting.num_ctas,
      .max_pieces = cutting.num_partials / Config::rows,
      .unit_pieces = cutting.unit_pieces,
      .beside_previous = cutting.beside_previous,
  };
  const cuda::DecodePools pools{cuda::in_chunks(problem.kv.k), cuda::in_chunks(problem.kv.v),
                                static_cast<int>(problem.kv.num_blocks())};
  Scratch scratch(cutting.num_partials, Config::head_dim_v);
  std::vector<long> waits_of_cta;
  if (cutting.together != 0) {
    run_grid_together(static_cast<unsigned>(cutting.num_ctas), cutting.together, [&] {
      emulator.run(Config::threads,
                   [&] { cuda::paged_decode_sm80_kernel<Config>(problem, variant, cut, pools, scratch.view()); });
    });
    REQUIRE(scratch.is_empty());
    return waits_of_cta;
  }
  emulated_grid.x = static_cast<unsigned>(cutting.num_ctas);
  for (emulated_cta.x = 0; emulated_cta.x < emulated_grid.x; ++emulated_cta.x) {
    waits = 0;
    emulator.run(Config::threads,
                 [&] { cuda::paged_decode_sm80_kernel<Config>(problem, variant, cut, pools, scratch.view()); });
    waits_of_cta.push_back(waits);
  }
  REQUIRE(scratch.is_empty());
  return waits_of_cta;
}

template <class T, int HeadDim, int HeadDimV = HeadDim, int Rows = 8>
using Config = cuda::DecodeSm80Config<T, HeadDim, HeadDimV,
                                      cuda::choose_decode(Rows == 8 ? cuda::DecodeTile::narrow : cuda::DecodeTile::wide,
                                                          HeadDim, HeadDimV)>;

template <class Config, class V>
void check(GeneratedProblem<typename Config::Element>& generated, const V& variant, const Cutting& cutting = {}) {
  using T = typename Config::Element;
  generated.clear_outputs();
  launch<Config>(generated.problem(), variant, cutting);
  const std::string difference =
      mismatch(generated, expected_of(generated, variant), out_tolerance<T>(rounding_unit<T>()));
  REQUIRE_MESSAGE(difference.empty(), difference);
}

template <class T, int HeadDim, int HeadDimV = HeadDim>
GeneratedProblem<T> generate(std::uint64_t seed,
                             ShapeLimits limits = {
                                 .max_seqs = 3, .max_kv_len = 500, .max_q_len = 3, .max_group_size = 5}) {
  ProblemShape shape = random_shape(seed, limits);
  shape.head_dim = HeadDim;
  shape.head_dim_v = HeadDimV;
  return GeneratedProblem<T>(shape);
}

template <class T, int HeadDim, int HeadDimV = HeadDim, int Rows = 8>
void check_causal(int num_problems) {
  for (int seed = 0; seed < num_problems; ++seed) {
    CAPTURE(seed);
    auto generated = generate<T, HeadDim, HeadDimV>(static_cast<std::uint64_t>(seed));
    check<Config<T, HeadDim, HeadDimV, Rows>>(generated, Causal{});
  }
}

}  // namespace

TEST_CASE("the decode kernel gives the reference's results under every rule and every model's chain") {
  for (std::uint64_t seed = 100; seed < 104; ++seed) {
    auto generated = generate<bf16, 16>(seed);
    const Rules<Space::host> rules = rules_of(generated);
    const auto check_rule = [&](const char* name, const auto& rule) {
      CAPTURE(name);
      check<Config<bf16, 16>>(generated, rule);
    };
    rules.for_each(check_rule);
    rules.for_each_model_chain(check_rule);
  }
}

TEST_CASE("the decode kernel gives the reference's results for ragged batches of common head sizes") {
  check_causal<bf16, 64>(6);
  check_causal<bf16, 128>(4);
  check_causal<bf16, 128, 128, 16>(4);
}

TEST_CASE("the decode kernel gives the reference's results for the largest, odd and unequal head sizes and for f16") {
  check_causal<f16, 64>(1);
  check_causal<bf16, 256>(1);
  check_causal<bf16, 80>(1);
  check_causal<bf16, 48, 112>(1);
  check_causal<bf16, 192, 128, 16>(1);
}

TEST_CASE("the decode kernel gives the reference's results however the keys are cut into slices") {
  auto generated = generate<bf16, 32>(3, {.max_seqs = 4, .max_kv_len = 1500, .max_q_len = 2, .max_group_size = 4});
  for (const int num_ctas : {1, 2, 3, 40, 1000}) {
    for (const bool unit_pieces : {false, true}) {
      for (const int unit_tiles : {1, 4}) {
        for (const int num_partials : {16, 40000}) {
          CAPTURE(num_ctas);
          CAPTURE(unit_pieces);
          CAPTURE(unit_tiles);
          CAPTURE(num_partials);
          check<Config<bf16, 32>>(generated, Causal{},
                                  {.num_ctas = unit_pieces ? min(num_ctas, num_partials / 16) : num_ctas,
                                   .unit_pieces = unit_pieces,
                                   .unit_tiles = unit_tiles,
                                   .num_partials = num_partials});
        }
      }
    }
  }
}

TEST_CASE(
    "the decode kernel gives the reference's results for a window with sinks however the keys are cut into slices") {
  auto generated = generate<bf16, 32>(3, {.max_seqs = 4, .max_kv_len = 3000, .max_q_len = 2, .max_group_size = 4});
  for (const int num_ctas : {1, 2, 5, 9, 17, 50}) {
    for (const bool unit_pieces : {false, true}) {
      CAPTURE(num_ctas);
      CAPTURE(unit_pieces);
      check<Config<bf16, 32>>(generated, SlidingWindow{.window = 700, .sink_tokens = 5},
                              {.num_ctas = num_ctas, .unit_pieces = unit_pieces, .num_partials = 40000});
    }
  }
}

TEST_CASE("the decode kernel waits for the pieces of CTAs that come late, and leaves none behind") {
  auto generated = generate<bf16, 32>(3, {.max_seqs = 3, .max_kv_len = 1500, .max_q_len = 2, .max_group_size = 4});
  for (const std::uint64_t seed : {1, 2, 3, 4, 5, 6}) {
    for (const bool unit_pieces : {false, true}) {
      CAPTURE(seed);
      CAPTURE(unit_pieces);
      check<Config<bf16, 32>>(generated, Causal{},
                              {.num_ctas = std::array{2, 5, 24}[seed % 3],
                               .unit_pieces = unit_pieces,
                               .num_partials = 40000,
                               .together = seed});
    }
  }
}

TEST_CASE("the decode kernel merges many pieces of a row in groups, and in whatever order CTAs come") {
  const ProblemShape shape{.seed = 5,
                           .q_len = {1, 1},
                           .kv_len = {1200, 700},
                           .kv_heads = 1,
                           .group_size = 3,
                           .head_dim = 16,
                           .head_dim_v = 16,
                           .block_size = 16};
  GeneratedProblem<bf16> generated(shape);
  for (const std::uint64_t seed : {1, 2, 3}) {
    CAPTURE(seed);
    check<Config<bf16, 16>>(generated, Causal{}, {.num_ctas = 30, .together = seed});
  }
}

TEST_CASE("the decode kernel joins a hundred pieces of a row") {
  ProblemShape shape{.seed = 5,
                     .q_len = {1},
                     .kv_len = {2500},
                     .kv_heads = 1,
                     .group_size = 3,
                     .head_dim = 256,
                     .head_dim_v = 256,
                     .block_size = 16};
  GeneratedProblem<bf16> generated(shape);
  for (const bool unit_pieces : {false, true})  // 79 units
    check<Config<bf16, 256>>(generated, Causal{}, {.num_ctas = 79, .unit_pieces = unit_pieces});
}

template <class T, int HeadDim>
using LoneConfig =
    cuda::DecodeSm80Config<T, HeadDim, HeadDim, cuda::choose_decode(cuda::DecodeTile::lone, HeadDim, HeadDim)>;

TEST_CASE("the decode kernel gives the reference's results in lone tiles, too, one slice or many of them") {
  for (const std::uint64_t seed : {1, 2, 3, 4}) {
    for (const int num_ctas : {1, 5, 40}) {
      CAPTURE(seed);
      CAPTURE(num_ctas);
      auto small = generate<bf16, 16>(seed), usual = generate<bf16, 128>(seed), wide = generate<bf16, 192>(seed);
      check<LoneConfig<bf16, 16>>(small, Causal{}, {.num_ctas = num_ctas});
      check<LoneConfig<bf16, 128>>(usual, Causal{}, {.num_ctas = num_ctas});
      check<LoneConfig<bf16, 192>>(wide, Causal{}, {.num_ctas = num_ctas});
    }
  }
}

TEST_CASE("the decode kernel leaves prompts of a mixed batch alone, wherever they stand and however it is cut") {
  ProblemShape shape{.seed = 11,
                     .q_len = {},
                     .kv_len = {},
                     .kv_heads = 2,
                     .group_size = 3,
                     .head_dim = 32,
                     .head_dim_v = 32,
                     .block_size = 16,
                     .shares_prefixes = false};
  constexpr int max_q_len = 4;
  for (const std::vector<int>& q_len : {std::vector<int>{1, 40, 4, 0, 5, 1}, {33, 1, 2}, {3, 9}, {70, 5}}) {
    shape.q_len = q_len;
    shape.kv_len.clear();
    for (std::size_t s = 0; s < q_len.size(); ++s) shape.kv_len.push_back(90 + 100 * static_cast<int>(s));
    GeneratedProblem<bf16> generated(shape);
    Expected expected = expected_of(generated, Causal{});
    for (int s = 0; s < shape.num_seqs(); ++s)
      if (q_len[static_cast<std::size_t>(s)] > max_q_len) expect_untouched(expected, generated, s);
    auto problem = generated.problem();
    problem.tables.max_q_len = max_q_len;
    for (const bool unit_pieces : {false, true}) {
      for (const int num_ctas : {1, 6, 40}) {
        CAPTURE(unit_pieces);
        CAPTURE(num_ctas);
        generated.clear_outputs();
        launch<Config<bf16, 32>>(problem, Causal{}, {.num_ctas = num_ctas, .unit_pieces = unit_pieces});
        const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
        CHECK_MESSAGE(difference.empty(), difference);
      }
    }
  }
}

TEST_CASE(
    "all CTAs of decode wait for the kernel in front, beside another kernel the last alone, with work or without") {
  using OneConfig = Config<bf16, 32>;
  auto generated = generate<bf16, 32>(3, {.max_seqs = 4, .max_kv_len = 1500, .max_q_len = 2, .max_group_size = 4});
  for (const int num_ctas : {1, 4, 1000}) {  // of 1,000 most have no slice
    CAPTURE(num_ctas);
    const auto after = launch<OneConfig>(generated.problem(), Causal{}, {.num_ctas = num_ctas});
    CHECK(std::ranges::all_of(after, [](long count) { return count == OneConfig::threads; }));
    generated.clear_outputs();
    auto beside = launch<OneConfig>(generated.problem(), Causal{}, {.num_ctas = num_ctas, .beside_previous = true});
    CHECK(beside.back() == OneConfig::threads);
    beside.pop_back();
    CHECK(std::ranges::all_of(beside, [](long count) { return count == 0; }));
    const std::string difference =
        mismatch(generated, expected_of(generated, Causal{}), out_tolerance<bf16>(rounding_unit<bf16>()));
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("the decode kernel gives a tree without branches the bits of causal attention, however many tiles it has") {
  const ProblemShape shape{.seed = 9,
                           .q_len = {5, 1},
                           .kv_len = {66, 300},
                           .kv_heads = 2,
                           .group_size = 4,
                           .head_dim = 32,
                           .head_dim_v = 32,
                           .block_size = 16};
  GeneratedProblem<bf16> generated(shape);
  for (std::size_t s = 0; s < 2; ++s) {
    std::uint64_t seen = 0;
    for (int token = generated.query_begin[s]; token < generated.query_begin[s + 1]; ++token)
      generated.tree[static_cast<std::size_t>(token)] = seen = seen << 1 | 1;
  }
  generated.clear_outputs();
  launch<Config<bf16, 32>>(generated.problem(), Causal{}, {.num_ctas = 9});
  const auto out = generated.out;
  generated.clear_outputs();
  launch<Config<bf16, 32>>(generated.problem(), rules_of(generated).tree, {.num_ctas = 9});
  for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out[i].bits == generated.out[i].bits);
}

TEST_CASE("the decode kernel gives a batch-invariant row the same bits in tiles of 8 and of 16 rows") {
  auto generated = generate<bf16, 64>(7, {.max_seqs = 3, .max_kv_len = 600, .max_q_len = 1, .max_group_size = 4});
  const Cutting cutting{.num_ctas = 5, .unit_pieces = true, .unit_tiles = 4, .num_partials = 40000};
  generated.clear_outputs();
  launch<Config<bf16, 64, 64, 8>>(generated.problem(), Causal{}, cutting);
  const auto out = generated.out;
  const auto lse = generated.lse;
  generated.clear_outputs();
  launch<Config<bf16, 64, 64, 16>>(generated.problem(), Causal{}, cutting);
  REQUIRE(lse.size() == generated.lse.size());
  for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(out[i].bits == generated.out[i].bits);
  for (std::size_t i = 0; i < lse.size(); ++i)
    REQUIRE(std::bit_cast<std::uint32_t>(lse[i]) == std::bit_cast<std::uint32_t>(generated.lse[i]));
}
