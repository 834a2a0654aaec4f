// copy_blocks and store_kv: the right rows in the right slots of every layer, and not a byte elsewhere.
#include "pagedkv/cpu/step.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/view.hpp"

using namespace pagedkv;

namespace {

constexpr int num_layers = 3, kv_heads = 2, block_size = 4, head_dim = 5, head_dim_v = 3;

KvLayout layout_of(KvOrder order) {
  return {.num_layers = num_layers,
          .num_blocks = 6,
          .kv_heads = kv_heads,
          .block_size = block_size,
          .head_dim = head_dim,
          .head_dim_v = head_dim_v,
          .order = order};
}

// The value of one element: no two are alike, and f16 holds them all.
float element(int layer, int row, int head, int d) {
  return static_cast<float>(((layer * 30 + row) * 2 + head) * 5 + d);
}

// Rows [first, first + num_rows) of K or V, [num_rows, kv_heads, dim].
std::vector<float> make_rows(int layer, int first, int num_rows, int dim) {
  std::vector<float> rows;
  for (int row = first; row < first + num_rows; ++row) {
    for (int head = 0; head < kv_heads; ++head) {
      for (int d = 0; d < dim; ++d) rows.push_back(element(layer, row, head, d));
    }
  }
  return rows;
}

template <class T>
void store(const StepPlan& step, KvPool<T>& pool, int first_row) {
  const int num_rows = step.num_rows();
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto k = make_rows(layer, first_row, num_rows, head_dim),
               v = make_rows(layer, first_row, num_rows, head_dim_v);
    cpu::store_kv(step, pool.layer(layer), dense_view(k.data(), {num_rows, kv_heads, head_dim}),
                  dense_view(v.data(), {num_rows, kv_heads, head_dim_v}));
  }
}

// Does `position` of `sequence` hold `row` in every layer?
template <class T>
bool holds(KvPool<T>& pool, const Sequence& sequence, int position, int row) {
  const Slot slot = sequence.table().slot(position);
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto view = pool.layer(layer);
    for (int head = 0; head < kv_heads; ++head) {
      for (int d = 0; d < head_dim; ++d) {
        if (to_float(view.k(slot / block_size, head, slot % block_size, d)) != element(layer, row, head, d))
          return false;
      }
      for (int d = 0; d < head_dim_v; ++d) {
        if (to_float(view.v(slot / block_size, head, slot % block_size, d)) != element(layer, row, head, d))
          return false;
      }
    }
  }
  return true;
}

template <class T>
std::vector<T> bytes_of(KvPool<T>& pool) {
  const T* data = pool.layer(0).k.data;
  return {data, data + pool.layout().num_elements()};
}

template <class T>
int num_changed(const std::vector<T>& before, const std::vector<T>& after) {
  int count = 0;
  for (std::size_t i = 0; i < before.size(); ++i) count += std::memcmp(&before[i], &after[i], sizeof(T)) != 0;
  return count;
}

}  // namespace

TEST_CASE("rows are stored in the order of the appends, in every layer, and nothing else is written") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvPool<float> pool(layout_of(order));
    for (int layer = 0; layer < num_layers; ++layer) {
      const auto view = pool.layer(layer);
      std::fill_n(view.k.data, pool.layout().layer_elements(), -1.f);
    }
    const auto before = bytes_of(pool);
    BlockAllocator blocks{{.num_blocks = 6, .block_size = block_size}};
    Sequence a{blocks}, b{blocks};
    StepPlan step;
    REQUIRE(a.append(3, step));
    REQUIRE(b.append(6, step));
    REQUIRE(a.append(2, step));
    cpu::copy_blocks(step, pool);
    store(step, pool, 1);
    step.commit();
    for (int i = 0; i < 3; ++i) CHECK(holds(pool, a, i, 1 + i));
    for (int i = 0; i < 6; ++i) CHECK(holds(pool, b, i, 4 + i));
    for (int i = 3; i < 5; ++i) CHECK(holds(pool, a, i, 7 + i));
    CHECK(num_changed(before, bytes_of(pool)) == num_layers * kv_heads * (head_dim + head_dim_v) * 11);
  }
}

TEST_CASE("a forked tail is copied with its valid rows only, in all layers") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvPool<f16> pool(layout_of(order));
    for (std::int64_t i = 0; i < pool.layout().num_elements(); ++i) {
      pool.layer(0).k.data[i] = from_float<f16>(static_cast<float>(i % 1009));  // a row too many would be seen
    }
    BlockAllocator blocks{{.num_blocks = 6, .block_size = block_size}};
    StepPlan step;
    Sequence parent{blocks};
    REQUIRE(parent.append(6, step));
    store(step, pool, 0);
    step.commit();
    Sequence child = parent.fork();
    REQUIRE(child.append(1, step));
    REQUIRE(step.copies().size() == 1);
    CHECK(step.copies()[0].num_rows == 2);
    const auto before = bytes_of(pool);
    cpu::copy_blocks(step, pool);
    const int num_copied = num_changed(before, bytes_of(pool));
    CHECK(num_copied > 0);
    CHECK(num_copied <= num_layers * kv_heads * (head_dim + head_dim_v) * 2);
    store(step, pool, 20);
    step.commit();
    for (int i = 0; i < 6; ++i) {
      CHECK(holds(pool, parent, i, i));
      CHECK(holds(pool, child, i, i));
    }
    CHECK(holds(pool, child, 6, 20));
  }
}

TEST_CASE("rows of a truncated sequence are skipped") {
  KvPool<float> pool(layout_of(KvOrder::hnd));
  BlockAllocator blocks{{.num_blocks = 6, .block_size = block_size}};
  StepPlan step;
  Sequence a{blocks}, b{blocks};
  REQUIRE(a.append(4, step));
  REQUIRE(b.append(2, step));
  a.truncate(0);
  const auto before = bytes_of(pool);
  store(step, pool, 0);
  step.commit();
  CHECK(holds(pool, b, 0, 4));
  CHECK(holds(pool, b, 1, 5));
  CHECK(num_changed(before, bytes_of(pool)) == num_layers * kv_heads * (head_dim + head_dim_v) * 2);
}

TEST_CASE("K and V are rounded to the nearest value of the cache's type") {
  KvPool<bf16> pool({.num_blocks = 1, .kv_heads = 1, .block_size = 1, .head_dim = 3});
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 1}};
  StepPlan step;
  Sequence sequence{blocks};
  REQUIRE(sequence.append(1, step));
  const std::vector<float> rows{1.f, 1.f + 0x1p-8f, 1.f + 0x1.8p-8f};
  cpu::store_kv(step, pool.layer(0), dense_view(rows.data(), {1, 1, 3}), dense_view(rows.data(), {1, 1, 3}));
  step.commit();
  CHECK(to_float(pool.layer(0).k(0, 0, 0, 1)) == 1.f);
  CHECK(to_float(pool.layer(0).v(0, 0, 0, 2)) == 1.f + 0x1p-7f);
}

TEST_CASE("a step that does not fit the pool or the rows is refused by name, before anything is written") {
  KvPool<float> pool(layout_of(KvOrder::hnd));
  BlockAllocator blocks{{.num_blocks = 9, .block_size = block_size}};
  StepPlan step;
  Sequence sequence{blocks}, tail{blocks};
  REQUIRE(sequence.append(27, step));
  const auto before = bytes_of(pool);
  const std::vector<float> rows(1000, 7.f);
  const auto view = [&](int num_rows, int heads, int dim) { return dense_view(rows.data(), {num_rows, heads, dim}); };
  const auto store_views = [&](auto k, auto v) { cpu::store_kv(step, pool.layer(0), k, v); };
  CHECK_THROWS_WITH_AS(store_views(view(27, 2, 5), view(27, 2, 3)),
                       doctest::Contains("store_kv: slot below 24 expected, 24 given"), InvalidArgument);
  sequence.truncate(20);
  CHECK_THROWS_WITH_AS(store_views(view(26, 2, 5), view(27, 2, 3)),
                       doctest::Contains("k rows like the step's slots, 27 expected, 26 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(store_views(view(27, 2, 5), view(27, 1, 3)),
                       doctest::Contains("v kv_heads like the cache's, 2 expected, 1 given"), InvalidArgument);
  CHECK_THROWS_WITH_AS(store_views(view(27, 2, 4), view(27, 2, 3)),
                       doctest::Contains("k head_dim like the cache's, 5 expected, 4 given"), InvalidArgument);
  CHECK(num_changed(before, bytes_of(pool)) == 0);
  step.commit();
}
