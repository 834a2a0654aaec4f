// The Hopper prefill kernel's own source, run on the host by emulated warps, against the reference: boxes land and
// products are computed as late as they may be, or sooner, as a seed decides.
// clang-format off
#define __CUDA_ARCH_FEAT_SM90_ALL  // what is under test is behind it
#include "support/hopper_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/prefill_sm90.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "pagedkv/cuda/kernels/prefill_merge.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "support/drop_blocks.hpp"
#include "support/mixed_batch.hpp"
#include "support/problem_generator.hpp"
#include "support/random.hpp"
#include "support/rules.hpp"
#include "support/run_grid.hpp"
#include "support/tolerance.hpp"

// What `extern __shared__` names.
namespace pagedkv {
inline namespace v0 {
namespace cuda {
alignas(1024) __thread unsigned char shared_bytes[227 * 1024];
}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Small tiles: more of them.
constexpr cuda::PrefillSm90Policy small_policy{
    .query_tile = 128, .key_tile = 64, .key_stages = 2, .value_stages = 2, .query_buffers = 2};

template <class T, int HeadDim, int HeadDimV = HeadDim, cuda::PrefillSm90Policy Policy = small_policy>
using Config = cuda::PrefillSm90Config<T, HeadDim, HeadDimV, Policy>;

template <class T, int HeadDim, int HeadDimV = HeadDim, bool ManyTiles = true>
using TunedConfig = Config<T, HeadDim, HeadDimV, cuda::choose_prefill_sm90(HeadDim, HeadDimV, ManyTiles)>;

/// How the grid runs.
struct Course {
  std::uint64_t seed = 0;
  unsigned num_ctas = 2;
  int section = 2;  // heads
  int min_q_len = 0;
  int num_splits = 1;
};

template <class Config, class Problem>
cuda::PrefillCut cut_of(const Problem& problem, const Course& course) {
  cuda::PrefillCut cut;
  const int group_size = problem.group_size();
  cut.num_seqs = problem.tables.num_seqs();
  cut.min_q_len = course.min_q_len;
  cut.packed_shift = min(4, std::countr_zero(static_cast<unsigned>(group_size)));
  cut.tile_queries = Config::query_tile >> cut.packed_shift;
  cut.head_tiles = problem.q_heads() >> cut.packed_shift;
  cut.section = course.section;
  cut.num_splits = course.num_splits;
  const auto power = [](int n) { return n & -n; };
  cut.box_rows = min(power(problem.kv.block_size()), power(Config::key_tile));
  cut.group_tiles = Divisor(group_size >> cut.packed_shift);
  cut.block_size = Divisor(problem.kv.block_size());
  return cut;
}

/// Rows that wait to be merged; full of NaN, as nobody has written them.
struct Pieces {
  int num_rows, columns;
  std::vector<float> outputs;
  std::vector<OnlineSoftmax> softmax;

  Pieces(int rows, int head_dim_v)
      : num_rows(rows),
        columns(head_dim_v),
        outputs(static_cast<std::size_t>(rows * head_dim_v), std::numeric_limits<float>::quiet_NaN()),
        softmax(static_cast<std::size_t>(rows), {std::numeric_limits<float>::quiet_NaN(), 0.f}) {}

  cuda::Partials view() {
    return {.outputs = dense_view<Space::device>(outputs.data(), {std::int64_t{num_rows}, std::int64_t{columns}}),
            .softmax = dense_view<Space::device>(softmax.data(), {std::int64_t{num_rows}}),
            .arrivals = {}};
  }
};

/// Runs all CTAs at once.
template <class Config, class Problem, AttentionVariant V>
void launch(const Problem& problem, const V& variant, const Course& course = {}) {
  static_assert(Config::shared_bytes <= sizeof(cuda::shared_bytes));
  const cuda::PrefillCut cut = cut_of<Config>(problem, course);
  REQUIRE(cuda::boxed_support(problem.kv.k, cut.box_rows));
  REQUIRE(cuda::boxed_support(problem.kv.v, cut.box_rows));
  const cuda::PrefillMaps maps{tensor_map(cuda::boxed_queries(problem.q, 1 << cut.packed_shift, 64)),
                               tensor_map(cuda::boxed(problem.kv.k, cut.box_rows, 1)),
                               tensor_map(cuda::boxed(problem.kv.v, cut.box_rows, 1)),
                               tensor_map(cuda::boxed_queries(problem.out, 1 << cut.packed_shift, 64))};
  cuda::PrefillCounters counters{0, 0};
  Pieces pieces(Config::splits_keys ? problem.num_tokens() * problem.q_heads() * course.num_splits : 0,
                Config::head_dim_v);
  const cuda::Partials partials = pieces.view();
  run_grid_together(course.num_ctas, course.seed, [&] {
    run_cta({cuda::shared_bytes, Config::shared_bytes}, Config::threads,
            [&] { cuda::attention_prefill_sm90_kernel<Config>(problem, variant, cut, maps, partials, &counters); });
  });
  CHECK(counters.taken == 0);
  CHECK(counters.finished == 0);
  if (!Config::splits_keys || problem.num_tokens() == 0) return;
  constexpr int rows_per_cta = cuda::prefill_merge_threads / 32;
  run_grid_together(ceil_div(problem.num_tokens() * problem.q_heads(), rows_per_cta), course.seed, [&] {
    run_cta({cuda::shared_bytes, 1}, cuda::prefill_merge_threads,
            [&] { cuda::prefill_merge_kernel(problem, variant, partials, course.num_splits, course.min_q_len); });
  });
}

template <class Config, class V>
void check(GeneratedProblem<typename Config::Element>& generated, const V& variant, const Course& course = {}) {
  using T = typename Config::Element;
  generated.clear_outputs();
  launch<Config>(generated.problem(), variant, course);
  const std::string difference =
      mismatch(generated, expected_of(generated, variant), out_tolerance<T>(rounding_unit<T>()));
  REQUIRE_MESSAGE(difference.empty(), difference);
}

/// Ragged and random, with a block size that TMA takes.
template <class T, int HeadDim, int HeadDimV = HeadDim>
GeneratedProblem<T> generate(std::uint64_t seed, int block_size,
                             const ShapeLimits& limits = {.max_seqs = 4, .max_kv_len = 300, .max_q_len = 150}) {
  ProblemShape shape = random_shape(seed, limits);
  shape.head_dim = HeadDim;
  shape.head_dim_v = HeadDimV;
  shape.block_size = block_size;
  return GeneratedProblem<T>(shape);
}

/// A rule that notes which keys it was asked about, of which sequence, head and query.
template <class V>
struct Asked : V {
  using Places = std::set<std::tuple<int, int, int, int>>;
  Places* places;

  Asked(const V& rule, Places& asked) : V(rule), places(&asked) {}

  bool visible(Position p) const {
    places->insert({p.sequence, p.q_head, p.query, p.key});
    return V::visible(p);
  }
};

template <class V>
void check_asked(const V& rule) {
  constexpr int q_len = 150, kv_len = 300, offset = kv_len - q_len, heads = 2;
  using Tried = Config<bf16, 64>;
  GeneratedProblem<bf16> generated(
      {.seed = 4, .q_len = {q_len}, .kv_len = {kv_len}, .group_size = heads, .head_dim = 64, .head_dim_v = 64});
  typename Asked<V>::Places asked;
  launch<Tried>(generated.problem(), Asked<V>(rule, asked), {.seed = 3});
  int wrong = 0, num_full = 0;
  for (int query = 0; query < q_len; ++query) {
    const int first = query / (64 / heads) * (64 / heads),
              last = min(first + 64 / heads, q_len) - 1;  // of its warpgroup
    const int first_of_tile = first / (128 / heads) * (128 / heads);
    const int last_of_tile = min(first_of_tile + 128 / heads, q_len) - 1;
    const KeyRanges seen = seen_keys(rule, first_of_tile + offset, last_of_tile + offset, kv_len);
    for (int tile = 0; tile < kv_len; tile += Tried::key_tile) {
      const KeyRange keys{tile, tile + Tried::key_tile};
      const bool visited = seen.touches({keys.begin, min(keys.end, kv_len)});
      const bool full = keys.end <= kv_len && sees_all(rule, 0, first + offset, last + offset, keys);
      num_full += full;
      for (int key = keys.begin; key < min(keys.end, kv_len); ++key)
        for (int head = 0; head < heads; ++head)
          wrong += asked.contains({0, head, query + offset, key}) != (visited && !full);
    }
  }
  CHECK(num_full > q_len);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("the Hopper prefill kernel gives the reference's results under every rule and every model's chain") {
  GeneratedProblem<bf16> generated({.seed = 1,
                                    .q_len = {70, 0, 33, 5},
                                    .kv_len = {201, 9, 33, 150},
                                    .kv_heads = 2,
                                    .group_size = 2,
                                    .head_dim = 64,
                                    .head_dim_v = 64});
  std::uint64_t seed = 0;
  const Rules<Space::host> rules = rules_of(generated);
  const auto check_rule = [&](const char* name, const auto& rule) {
    CAPTURE(name);
    check<Config<bf16, 64>>(generated, rule, {.seed = seed++});
  };
  rules.for_each(check_rule);
  rules.for_each_model_chain(check_rule);
}

TEST_CASE("the Hopper prefill kernel gives the reference's results for ragged problems, whatever comes first") {
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    CAPTURE(seed);
    auto generated = generate<bf16, 64>(seed, std::array{8, 16, 24, 40, 64, 256}[seed % 6]);
    check<Config<bf16, 64>>(generated, Causal{}, {.seed = seed, .num_ctas = 1 + static_cast<unsigned>(seed % 4)});
  }
}

TEST_CASE("the Hopper prefill kernel gives the reference's results where shares of a tile's keys are merged") {
  constexpr cuda::PrefillSm90Policy shared_policy{
      .query_tile = 128, .key_tile = 64, .key_stages = 2, .value_stages = 2, .query_buffers = 2, .splits_keys = true};
  using Shared = Config<bf16, 64, 64, shared_policy>;
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    CAPTURE(seed);
    const Course course{
        .seed = seed, .num_ctas = 1 + static_cast<unsigned>(seed % 4), .num_splits = std::array{1, 2, 3, 7}[seed / 4]};
    auto generated = generate<bf16, 64>(seed, std::array{8, 16, 64, 24}[seed % 4]);
    check<Shared>(generated, Causal{}, course);
    check<Shared>(generated, SlidingWindow{.window = 90, .sink_tokens = 5}, course);
  }
}

TEST_CASE("the Hopper prefill kernel gives the reference's results for each of its tiles, three warpgroups, and f16") {
  const auto check_config = [&]<class Tried>() {
    constexpr int head_dim = Tried::head_dim, head_dim_v = Tried::head_dim_v;
    CAPTURE(head_dim);
    CAPTURE(head_dim_v);
    for (std::uint64_t seed = 30; seed < 32; ++seed) {
      auto generated = generate<typename Tried::Element, head_dim, head_dim_v>(seed, 16);
      check<Tried>(generated, Causal{}, {.seed = seed});
    }
  };
  check_config.operator()<TunedConfig<bf16, 64>>();
  check_config.operator()<TunedConfig<bf16, 64, 64, false>>();
  check_config.operator()<TunedConfig<f16, 128>>();
  check_config.operator()<TunedConfig<bf16, 96>>();
  check_config.operator()<TunedConfig<bf16, 192, 128>>();
  check_config.operator()<TunedConfig<bf16, 256>>();
  check_config.operator()<TunedConfig<bf16, 64, 128>>();
}

TEST_CASE("the Hopper prefill kernel takes one buffer of queries, and rings of unequal length") {
  const auto check_policy = [&]<cuda::PrefillSm90Policy Policy>() {
    for (std::uint64_t seed = 40; seed < 43; ++seed) {
      auto generated = generate<bf16, 64>(seed, 8);
      check<Config<bf16, 64, 64, Policy>>(generated, SlidingWindow{.window = 60, .sink_tokens = 3}, {.seed = seed});
    }
  };
  constexpr cuda::PrefillSm90Policy one_buffer{
      .query_tile = 128, .key_tile = 32, .key_stages = 2, .value_stages = 3, .query_buffers = 1};
  constexpr cuda::PrefillSm90Policy many{
      .query_tile = 192, .key_tile = 80, .key_stages = 4, .value_stages = 2, .query_buffers = 3};
  check_policy.operator()<one_buffer>();
  check_policy.operator()<many>();
}

TEST_CASE("the Hopper prefill kernel passes from tile to tile, of long and of short sequences") {
  Random random(5);
  ProblemShape shape{.seed = 5,
                     .q_len = {},
                     .kv_len = {},
                     .kv_heads = 2,
                     .group_size = 3,
                     .head_dim = 64,
                     .head_dim_v = 64,
                     .block_size = 8};
  for (int s = 0; s < 40; ++s) {
    shape.kv_len.push_back(random.between(0, 40) + (s % 10 == 0 ? 130 : 0));
    shape.q_len.push_back(random.between(0, shape.kv_len.back() + 1));
  }
  GeneratedProblem<bf16> generated(shape);
  for (std::uint64_t seed = 50; seed < 56; ++seed) {
    CAPTURE(seed);
    check<Config<bf16, 64>>(generated, Causal{}, {.seed = seed, .num_ctas = seed % 2 == 0 ? 1u : 3u});
  }
}

TEST_CASE("the Hopper prefill kernel reads no block that a sliding window has dropped, nor its table entry") {
  for (const bool leave_ids : {false, true}) {
    GeneratedProblem<bf16> generated(
        {.seed = 11, .q_len = {70}, .kv_len = {700}, .kv_heads = 2, .head_dim = 64, .head_dim_v = 64, .block_size = 8});
    const SlidingWindow window{.window = 150, .sink_tokens = 3};
    const Expected expected = expected_of(generated, window);
    drop_blocks(generated, window.sink_tokens, 700 - 70 - window.window + 1, leave_ids);
    launch<Config<bf16, 64>>(generated.problem(), window, {.seed = 11});
    const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("the Hopper prefill kernel leaves sequences of too few queries alone, and waits for the kernel in front") {
  GeneratedProblem<bf16> generated({.seed = 6,
                                    .q_len = {8, 9, 1, 80, 0, 3},
                                    .kv_len = {90, 91, 40, 100, 5, 3},
                                    .group_size = 4,
                                    .head_dim = 64,
                                    .head_dim_v = 64});
  Expected expected = expected_of(generated, Causal{});
  for (const int sequence : {0, 2, 4, 5}) expect_untouched(expected, generated, sequence);
  waits = 0;
  launch<Config<bf16, 64>>(generated.problem(), Causal{}, {.seed = 6, .min_q_len = 9});
  CHECK(waits == 2 * Config<bf16, 64>::threads);
  const std::string difference = mismatch(generated, expected, out_tolerance<bf16>(rounding_unit<bf16>()));
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("the Hopper prefill kernel gives a prompt the same bits whole, in chunks, in company, and every time") {
  GeneratedProblem<bf16> generated({.seed = 12,
                                    .q_len = {5, 250},
                                    .kv_len = {90, 270},
                                    .kv_heads = 2,
                                    .group_size = 2,
                                    .head_dim = 64,
                                    .head_dim_v = 64,
                                    .block_size = 24});
  const SlidingWindow window{.window = 90, .sink_tokens = 2};
  const auto bits_of_second = [&] {
    std::vector<std::uint16_t> bits;
    for (std::size_t i = generated.margin + 5 * 4 * 64; i < generated.out.size(); ++i)
      bits.push_back(generated.out[i].bits);
    return bits;
  };
  launch<Config<bf16, 64>>(generated.problem(), window);
  const auto whole = bits_of_second();

  for (const int chunk : {250, 128, 64, 37}) {
    generated.clear_outputs();
    for (int begin = 0; begin < 250; begin += chunk) {
      const int end = std::min(begin + chunk, 250);
      const std::int32_t kv_len = 270 - 250 + end, query_begin[] = {5 + begin, 5 + end};
      auto problem = generated.problem();
      problem.tables.block_ids.data = problem.tables.block_ids.at(1, 0);
      problem.tables.block_ids.extents[0] = 1;
      problem.tables.kv_len = dense_view(&kv_len, {1});
      problem.tables.query_begin = dense_view(query_begin, {2});
      launch<Config<bf16, 64>>(problem, window, {.seed = static_cast<std::uint64_t>(chunk)});
    }
    CHECK(bits_of_second() == whole);
  }
}

TEST_CASE("the Hopper prefill kernel asks the rule about every key of a tile that not all rows see, and of no other") {
  check_asked(Causal{});
  check_asked(SlidingWindow{.window = 140, .sink_tokens = 70});
  check_asked(chain(Causal{}, SoftCap{.cap = 3.f}));
}

TEST_CASE("the Hopper prefill kernel stays exact where logits are huge and far apart") {
  auto generated = generate<bf16, 64>(2, 16);
  generated.scale = 100.f;
  const double largest_logit = 64 * 6 * 100;
  launch<Config<bf16, 64>>(generated.problem(), Causal{});
  const std::string difference =
      mismatch(generated, expected_of(generated, Causal{}), out_tolerance<bf16>(rounding_unit<bf16>(), largest_logit),
               lse_tolerance(largest_logit));
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE("the Hopper prefill kernel lays its rows down in shared memory without bank conflicts") {
  GeneratedProblem<bf16> generated({.seed = 8, .q_len = {128}, .kv_len = {128}, .head_dim = 64, .head_dim_v = 64});
  bank_conflicts = 0;
  check<Config<bf16, 64>>(generated, Causal{});
  CHECK(bank_conflicts == 0);
}
