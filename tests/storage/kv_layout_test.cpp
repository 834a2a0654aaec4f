// KvLayout: every element of K and V of every layer has its own place, in both orders, and offsets are 64-bit.
#include "pagedkv/storage/kv_layout.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pagedkv/core/error.hpp"

using namespace pagedkv;

namespace {

KvLayout small(KvOrder order) {
  return {
      .num_layers = 3, .num_blocks = 4, .kv_heads = 2, .block_size = 5, .head_dim = 6, .head_dim_v = 3, .order = order};
}

template <class T>
void count_elements(const View<T, 4>& view) {
  for (std::int64_t b = 0; b < view.extents[0]; ++b) {
    for (std::int64_t h = 0; h < view.extents[1]; ++h) {
      for (std::int64_t t = 0; t < view.extents[2]; ++t) {
        for (std::int64_t d = 0; d < view.extents[3]; ++d) ++view(b, h, t, d);
      }
    }
  }
}

}  // namespace

TEST_CASE("K and V of all layers fill the pool, each element once, in both orders") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    const KvLayout layout = small(order);
    CHECK(layout.num_elements() == 3 * 4 * 2 * 5 * (6 + 3));
    std::vector<std::int8_t> pool(static_cast<std::size_t>(layout.num_elements()));
    const auto layers = layers_view(pool.data(), layout);
    for (int i = 0; i < layout.num_layers; ++i) {
      const auto layer = layers.layer(i);
      layer.validate();
      count_elements(layer.k);
      count_elements(layer.v);
    }
    CHECK(std::all_of(pool.begin(), pool.end(), [](int count) { return count == 1; }));
  }
}

TEST_CASE("in HND the slots of a head are one run, in NHD the heads of a slot") {
  std::vector<float> memory(1000);
  const auto hnd = layers_view(memory.data(), small(KvOrder::hnd)).first.k;
  CHECK(hnd.strides[0] == 60);
  CHECK(hnd.strides[1] == 30);
  CHECK(hnd.strides[2] == 6);
  CHECK(hnd.strides[3] == 1);
  const auto nhd = layers_view(memory.data(), small(KvOrder::nhd)).first;
  CHECK(nhd.k.strides[0] == 60);
  CHECK(nhd.k.strides[1] == 6);
  CHECK(nhd.k.strides[2] == 12);
  CHECK(nhd.v.strides[1] == 3);
  CHECK(nhd.v.strides[2] == 6);
}

TEST_CASE("V is as wide as K unless said otherwise") {
  const KvLayout layout{.num_blocks = 2, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  CHECK(layout.value_dim() == 8);
  CHECK(layout.value_elements() == layout.key_elements());
}

TEST_CASE("sizes and offsets beyond 2^32 elements are right") {
  const KvLayout layout{.num_layers = 80, .num_blocks = 1 << 20, .kv_heads = 8, .block_size = 64, .head_dim = 128};
  CHECK(layout.key_elements() == std::int64_t{1} << 36);
  CHECK(layout.num_elements() == 160 * (std::int64_t{1} << 36));
  const auto k = block_view(static_cast<float*>(nullptr), layout, layout.head_dim);
  CHECK(k.strides[0] * ((1 << 20) - 1) == (std::int64_t{1} << 36) - 65536);
}

TEST_CASE("impossible layouts are refused by name") {
  const auto check_refused = [](const char* text, auto&& spoil) {
    KvLayout layout = small(KvOrder::hnd);
    static_cast<void>(layout.validated());
    spoil(layout);
    CHECK_THROWS_WITH_AS(static_cast<void>(layout.validated()), doctest::Contains(text), InvalidArgument);
  };
  check_refused("KvLayout: num_layers at least 1 expected, 0 given", [](KvLayout& l) { l.num_layers = 0; });
  check_refused("KvLayout: num_blocks at least 1 expected, 0 given", [](KvLayout& l) { l.num_blocks = 0; });
  check_refused("KvLayout: kv_heads at least 1 expected, -1 given", [](KvLayout& l) { l.kv_heads = -1; });
  check_refused("KvLayout: block_size at least 1 expected, 0 given", [](KvLayout& l) { l.block_size = 0; });
  check_refused("KvLayout: head_dim at least 1 expected, 0 given", [](KvLayout& l) { l.head_dim = 0; });
  check_refused("KvLayout: head_dim_v 0 (like head_dim) or more expected, -2 given",
                [](KvLayout& l) { l.head_dim_v = -2; });
  const char* const too_many = "KvLayout: elements of all layers at most 2^60 expected, more given";
  check_refused(too_many, [](KvLayout& l) { l.num_blocks = std::int64_t{1} << 62; });
  check_refused(too_many, [](KvLayout& l) { l.head_dim = l.head_dim_v = l.block_size = 1 << 30; });
  check_refused(too_many, [](KvLayout& l) {  // 2^64: a sum of 0 where overflow is not noticed
    l = {.num_blocks = std::int64_t{1} << 31, .kv_heads = 1 << 16, .block_size = 1 << 16, .head_dim = 1};
  });
}
