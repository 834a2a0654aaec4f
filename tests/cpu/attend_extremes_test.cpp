// cpu::attend where softmax is hard: huge logits, rising logits, one outlier, hidden NaN, nothing to see; and bad
// lengths.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "support/problem_generator.hpp"
#include "support/tolerance.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr cpu::AttendOptions small_tiles{.query_tile = 2, .key_tile = 8, .split_keys = 32};

// 100 keys of head_dim 1 with scale 1 and queries 1: the logit of a key is its K.
GeneratedProblem<float> with_logits(const std::function<float(int key)>& logit) {
  GeneratedProblem<float> generated(
      {.seed = 5, .q_len = {3}, .kv_len = {100}, .head_dim = 1, .head_dim_v = 4, .block_size = 7});
  generated.scale = 1.f;
  for (float& q : generated.q) q = 1.f;
  const auto kv = generated.kv_view<Space::host>(generated.pool.data());
  for (int key = 0; key < 100; ++key)
    kv.k(generated.block_ids[static_cast<std::size_t>(key / 7)], 0, key % 7, 0) = logit(key);
  return generated;
}

void check(GeneratedProblem<float> generated, double largest_logit) {
  for (const int split_keys : {8, 32, 128}) {
    generated.clear_outputs();
    cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{},
                {.query_tile = 2, .key_tile = 8, .split_keys = split_keys});
    CHECK(mismatch(generated, expected_of(generated, Causal{}), out_tolerance<float>(0, largest_logit),
                   lse_tolerance(largest_logit)) == "");
  }
}

}  // namespace

TEST_CASE("logits of 10,000 and -10,000 neither overflow nor vanish") {
  check(with_logits([](int) { return 1e4f; }), 16);
  check(with_logits([](int) { return -1e4f; }), 16);
  check(with_logits([](int key) { return key % 2 == 0 ? 1e4f : -1e4f; }), 16);
  check(with_logits([](int key) { return key % 3 == 0 ? 1e4f : 1e4f - 1.f; }), 16);
}

TEST_CASE("rising and falling logits move the maximum at every tile") {
  check(with_logits([](int key) { return static_cast<float>(key); }), 100);
  check(with_logits([](int key) { return static_cast<float>(-key); }), 100);
  check(with_logits([](int key) { return 90.f * static_cast<float>(key); }), 16);
  check(with_logits([](int key) { return 0.01f * static_cast<float>(key); }), 16);
}

TEST_CASE("one outlier takes all the weight wherever it stands") {
  for (const int place : {0, 7, 8, 31, 32, 63, 96, 97}) {
    auto generated = with_logits([place](int key) { return key == place ? 500.f : 0.f; });
    check(generated, 16);
    cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
    const auto problem = generated.problem();
    for (int d = 0; d < 4; ++d) {
      CHECK(problem.out(2, 0, d) == problem.kv.v(problem.tables.block_ids(0, place / 7), 0, place % 7, d));
    }
  }
}

TEST_CASE("a NaN that a query sees reaches its output instead of becoming a plausible number") {
  auto generated = with_logits([](int key) { return key == 99 ? std::nanf("") : 0.f; });
  cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
  const auto problem = generated.problem();
  CHECK(std::isfinite(problem.out(1, 0, 0)));
  CHECK(std::isfinite(problem.lse(1, 0)));
  CHECK(std::isnan(problem.out(2, 0, 0)));
  CHECK(std::isnan(problem.lse(2, 0)));

  auto all = with_logits([](int) { return std::nanf(""); });
  cpu::attend(all.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
  CHECK(std::isnan(all.problem().out(0, 0, 0)));
}

TEST_CASE("an infinite value reaches the queries that see it and no other, though they share a tile") {
  auto generated = with_logits([](int) { return 0.f; });
  const auto kv = generated.kv_view<Space::host>(generated.pool.data());
  kv.v(generated.block_ids[99 / 7], 0, 99 % 7, 0) = infinity;
  cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, {.query_tile = 3, .key_tile = 100});
  const auto problem = generated.problem();
  CHECK(std::isfinite(problem.out(0, 0, 0)));
  CHECK(std::isfinite(problem.out(1, 0, 0)));
  CHECK(problem.out(2, 0, 0) == infinity);
}

TEST_CASE("without sequences, queries or keys there is nothing to do, and outputs are still written") {
  GeneratedProblem<float> no_keys({.seed = 1, .q_len = {2, 0, 1}, .kv_len = {0, 0, 0}});
  cpu::attend(no_keys.problem(), Causal{});
  CHECK(mismatch(no_keys, expected_of(no_keys, Causal{}), out_tolerance<float>()) == "");
  GeneratedProblem<float> no_queries({.seed = 1, .q_len = {0, 0}, .kv_len = {20, 0}});
  cpu::attend(no_queries.problem(), Causal{});
  CHECK(no_queries.canaries_intact());
}

TEST_CASE("blocks may lie more than 2^32 elements apart") {
  // Reserved addresses; only the pages of the three blocks are ever touched.
  const std::int64_t stride = (std::int64_t{1} << 32) + 64;
  const std::size_t size_bytes = 3 * static_cast<std::size_t>(stride) * sizeof(f16);
  void* memory = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    MESSAGE("not run: this machine does not reserve ", size_bytes, " bytes of addresses");
    return;
  }
  KvView<f16> far{.k = {.data = static_cast<f16*>(memory), .extents = {3, 1, 8, 8}, .strides = {stride, 64, 8, 1}},
                  .v = {}};
  far.v = far.k;
  far.v.data += 64;
  GeneratedProblem<float, f16, float> generated(
      {.seed = 4, .q_len = {2}, .kv_len = {20}, .head_dim = 8, .head_dim_v = 8, .block_size = 8});
  const Expected expected = expected_of(generated, Causal{});
  auto problem = generated.problem();
  const std::vector<std::int32_t> near_ids = generated.block_ids;
  const std::vector<std::int32_t> far_ids{2, 0, 1};
  for (int key = 0; key < 20; ++key) {
    const auto block = static_cast<std::size_t>(key / 8);
    std::copy_n(problem.kv.k.at(near_ids[block], 0, key % 8, 0), 8, far.k.at(far_ids[block], 0, key % 8, 0));
    std::copy_n(problem.kv.v.at(near_ids[block], 0, key % 8, 0), 8, far.v.at(far_ids[block], 0, key % 8, 0));
  }
  std::copy_n(far_ids.begin(), 3, generated.block_ids.begin());
  problem.kv = far;
  cpu::attend(problem, Causal{});
  CHECK(mismatch(generated, expected, out_tolerance<float>()) == "");
  munmap(memory, size_bytes);
}

TEST_CASE("an empty lse view is not written") {
  GeneratedProblem<float> generated(random_shape(3));
  auto problem = generated.problem();
  problem.lse = {};
  const auto before = generated.lse;
  cpu::attend(problem, Causal{});
  CHECK(generated.lse == before);
}

TEST_CASE("lengths beyond the stated bounds are refused before anything is written") {
  GeneratedProblem<float> generated({.seed = 1, .q_len = {3, 2}, .kv_len = {9, 20}});
  const auto refused = [&](auto problem, const char* text) {
    CHECK_THROWS_WITH_AS(cpu::attend(problem, Causal{}), doctest::Contains(text), InvalidArgument);
    CHECK(generated.canaries_intact());
  };
  auto problem = generated.problem();
  problem.tables.max_q_len = 2;
  refused(problem, "q_len from 0 to max_q_len 2 expected, 3 given");
  problem = generated.problem();
  problem.tables.max_kv_len = 19;
  refused(problem, "kv_len from 0 to max_kv_len 19 expected, 20 given");
  generated.query_begin = {0, 3, 6};
  problem.tables.max_kv_len = 20;
  refused(problem, "query_begin: at most num_tokens 5 expected, 6 given");
  generated.query_begin = {1, 3, 5};
  refused(problem, "query_begin: first entry 0 expected, 1 given");
}

TEST_CASE("options that cut nothing are refused") {
  GeneratedProblem<float> generated(random_shape(3));
  CHECK_THROWS_WITH_AS(cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, {.query_tile = 0}),
                       doctest::Contains("query_tile at least 1 expected, 0 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, {.key_tile = -1}),
                       doctest::Contains("key_tile at least 1 expected, -1 given"), InvalidArgument);
}

TEST_CASE("explain says how the work is cut") {
  GeneratedProblem<float> generated({.seed = 1,
                                     .q_len = {1, 40},
                                     .kv_len = {3000, 40},
                                     .kv_heads = 2,
                                     .group_size = 4,
                                     .head_dim = 8,
                                     .head_dim_v = 4});
  CHECK(cpu::explain(generated.problem()) ==
        "cpu: 2 sequences, 8 query heads on 2 KV heads, head_dim 8 / 4; 4 query tiles of 16, splits of 1024 keys (at "
        "most 3), "
        "key tiles of 64; 6 items, 12 tasks");
}
