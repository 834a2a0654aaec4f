// The plan: every pair of a query and a key is in one item, boundaries are absolute, and only stated bounds move them.
#include "pagedkv/attention/plan.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "pagedkv/core/error.hpp"
#include "support/random.hpp"

using namespace pagedkv;

namespace {

struct Lengths {
  std::vector<std::int32_t> q_len, kv_len, query_begin{0};
  std::int32_t max_q_len = 0, max_kv_len = 0;

  void add(int q, int kv) {
    q_len.push_back(q);
    kv_len.push_back(kv);
    query_begin.push_back(query_begin.back() + q);
    max_q_len = max(max_q_len, q);
    max_kv_len = max(max_kv_len, kv);
  }
  int num_seqs() const { return static_cast<int>(q_len.size()); }
  TablesView<Space::host> view() const {
    return {.block_ids = {},
            .kv_len = dense_view(kv_len.data(), {num_seqs()}),
            .query_begin = dense_view(query_begin.data(), {num_seqs() + 1}),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len};
  }
};

constexpr int any_number = std::numeric_limits<int>::max();

// Does every (query, key) of every sequence, and every query without keys, lie in exactly one item?
void check_covers_once(const AttentionPlan& plan, const Lengths& lengths) {
  std::vector<std::vector<int>> pairs(lengths.q_len.size()), writers(lengths.q_len.size());
  for (std::size_t s = 0; s < pairs.size(); ++s) {
    pairs[s].resize(static_cast<std::size_t>(lengths.q_len[s]) * static_cast<std::size_t>(lengths.kv_len[s]));
    writers[s].resize(static_cast<std::size_t>(lengths.q_len[s]));
  }
  bool in_bounds = true;
  for (std::int64_t tile = 0; tile < plan.num_tiles(); ++tile) {
    const auto s = static_cast<std::size_t>(tile / plan.tiles_per_seq);
    for (int split = 0; split < plan.max_splits; ++split) {
      const WorkItem item = plan.item(tile, split, lengths.q_len[s], lengths.kv_len[s]);
      if (item.rows.empty()) continue;
      in_bounds &= item.rows.sequence == static_cast<int>(s) && item.rows.size() <= plan.query_tile;
      in_bounds &= item.keys.begin == split * plan.split_keys && item.keys.end - item.keys.begin <= plan.split_keys;
      in_bounds &= item.split == split && split < item.num_splits && item.num_splits <= plan.max_splits;
      for (int row = item.rows.begin; row < item.rows.end; ++row) {
        writers[s][static_cast<std::size_t>(row)] += split == item.num_splits - 1;
        for (int key = item.keys.begin; key < item.keys.end; ++key) {
          ++pairs[s][static_cast<std::size_t>(row) * static_cast<std::size_t>(lengths.kv_len[s]) +
                     static_cast<std::size_t>(key)];
        }
      }
    }
  }
  CHECK(in_bounds);
  bool once = true;
  for (const auto& counts : pairs) {
    for (const int count : counts) once &= count == 1;
  }
  for (const auto& counts : writers) {
    for (const int count : counts) once &= count == 1;
  }
  CHECK(once);
}

}  // namespace

TEST_CASE("every query meets every key in exactly one item, and has exactly one last item") {
  pagedkv_test::Random random(1);
  for (int round = 0; round < 300; ++round) {
    Lengths lengths;
    for (int s = random.between(0, 4); s >= 0; --s)
      lengths.add(random.pick({0, 1, 1, 2, 7, 16, 33}), random.pick({0, 1, 15, 16, 17, 64, 100}));
    if (random.one_in(2)) lengths.max_kv_len += random.between(0, 500);  // bounds may be generous
    if (random.one_in(2)) lengths.max_q_len += random.between(0, 50);
    check_covers_once(make_plan(lengths.view(), random.between(1, 20), random.between(1, 20), random.between(1, 200),
                                random.pick({1, 2, 7, any_number})),
                      lengths);
  }
}

TEST_CASE("splits never outnumber what was asked for, and end at tile boundaries") {
  Lengths lengths;
  lengths.add(1, 1000);
  for (int max_splits = 1; max_splits <= 40; ++max_splits) {
    for (const int key_tile : {1, 16, 48}) {
      const AttentionPlan plan = make_plan(lengths.view(), 1, key_tile, 20, max_splits);
      CHECK(plan.max_splits <= max_splits);
      CHECK(plan.split_keys % key_tile == 0);
      CHECK(plan.split_keys >= 20);
    }
  }
}

TEST_CASE("the cut of a sequence does not depend on its company, as long as the bounds stay") {
  Lengths alone, batch;
  alone.add(5, 300);
  batch.add(1, 77);
  batch.add(5, 300);
  batch.add(0, 0);
  alone.max_q_len = batch.max_q_len = 9;
  alone.max_kv_len = batch.max_kv_len = 512;
  const AttentionPlan a = make_plan(alone.view(), 2, 16, 64, 6), b = make_plan(batch.view(), 2, 16, 64, 6);
  for (int tile = 0; tile < a.tiles_per_seq; ++tile) {
    for (int split = 0; split < a.max_splits; ++split) {
      const WorkItem in_a = a.item(tile, split, 5, 300), in_b = b.item(b.tiles_per_seq + tile, split, 5, 300);
      CHECK(in_a.rows.begin == in_b.rows.begin);
      CHECK(in_a.rows.end == in_b.rows.end);
      CHECK(in_a.keys == in_b.keys);
      CHECK(in_a.num_splits == in_b.num_splits);
    }
  }
}

TEST_CASE("without a limit on splits not even the bounds move a boundary") {
  Lengths small, large;
  small.add(1, 100);
  large.add(1, 100);
  large.max_kv_len = 1 << 30;
  CHECK(make_plan(small.view(), 1, 16, 64, any_number).split_keys ==
        make_plan(large.view(), 1, 16, 64, any_number).split_keys);
}

TEST_CASE("the longest sequences and largest splits do not overflow") {
  Lengths lengths;
  lengths.max_q_len = lengths.max_kv_len = any_number;
  const AttentionPlan plan = make_plan(lengths.view(), 1, 1, 1 << 30, any_number);
  const WorkItem item = plan.item(0, 1, 1, any_number);
  CHECK(item.num_splits == 2);
  CHECK(item.keys == KeyRange{1 << 30, any_number});
  AttentionPlan many = plan;
  many.num_seqs = 1 << 20;
  CHECK(many.num_items() == std::int64_t{1} * (1 << 20) * any_number * 2);
}

TEST_CASE("bounds as wide as an int allows leave a tiled kernel its one split, and no tile wraps around") {
  Lengths lengths;
  lengths.add(100, 1000);
  lengths.max_q_len = lengths.max_kv_len = any_number;
  const AttentionPlan plan = make_plan(lengths.view(), 64, 64, 1, 1);
  CHECK(plan.max_splits == 1);
  CHECK(plan.split_keys == any_number);
  CHECK(plan.item(0, 0, 100, 1000).keys == KeyRange{0, 1000});

  constexpr AttentionPlan widest{.num_seqs = 1, .query_tile = 64, .tiles_per_seq = 1 << 25, .split_keys = any_number};
  constexpr WorkItem behind = widest.item((1 << 25) - 1, 0, 100, 1000);  // a constant: an overflow would not compile
  CHECK(behind.rows.empty());
  CHECK(plan.tiles_per_seq == widest.tiles_per_seq);
}

TEST_CASE("sizes below one are refused by name") {
  const Lengths lengths;
  CHECK_THROWS_WITH_AS(make_plan(lengths.view(), 0, 1, 1, 1),
                       doctest::Contains("plan: query_tile at least 1 expected, 0 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(make_plan(lengths.view(), 1, 0, 1, 1),
                       doctest::Contains("plan: key_tile at least 1 expected, 0 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(make_plan(lengths.view(), 1, 1, -5, 1),
                       doctest::Contains("plan: split_keys 1 to 2^30 expected, -5 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(make_plan(lengths.view(), 1, 1, 1, 0),
                       doctest::Contains("plan: max_splits at least 1 expected, 0 given"), InvalidArgument);
}
