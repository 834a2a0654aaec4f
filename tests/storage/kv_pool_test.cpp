// KvPool: owns zeroed bytes for all layers and hands out views of them.
#include "pagedkv/storage/kv_pool.hpp"

#include <doctest/doctest.h>

#include <cstdint>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"

using namespace pagedkv;

namespace {

const KvLayout layout{.num_layers = 2, .num_blocks = 3, .kv_heads = 2, .block_size = 4, .head_dim = 8, .head_dim_v = 2};

}  // namespace

TEST_CASE("a new pool is zero, and its layers are views of one memory") {
  KvPool<bf16> pool(layout);
  CHECK(pool.size_bytes() == 2 * 3 * 2 * 4 * (8 + 2) * sizeof(bf16));
  CHECK(pool.layers().num_layers == 2);
  bool zero = true;
  for (std::int64_t i = 0; i < layout.num_elements(); ++i) zero &= pool.layer(0).k.data[i].bits == 0;
  CHECK(zero);
  pool.layer(1).v(2, 1, 3, 1) = from_float<bf16>(5.f);
  CHECK(to_float(pool.layers().layer(1).v(2, 1, 3, 1)) == 5.f);
  CHECK(to_float(pool.layer(0).k.data[layout.num_elements() - 1]) == 5.f);
}

TEST_CASE("a pool begins where a cache line does") {
  for (int num_blocks = 1; num_blocks < 40; ++num_blocks) {
    KvLayout any = layout;
    any.num_blocks = num_blocks;
    KvPool<bf16> pool(any);
    CHECK(reinterpret_cast<std::uintptr_t>(pool.layers().layer(0).k.data) % 64 == 0);
  }
}

TEST_CASE("a pool that is moved keeps its bytes where they are") {
  KvPool<float> pool(layout);
  const float* data = pool.layer(0).k.data;
  KvPool<float> moved = std::move(pool);
  CHECK(moved.layer(0).k.data == data);
}

TEST_CASE("layers that do not exist and impossible layouts are refused") {
  KvPool<float> pool(layout);
  CHECK_THROWS_WITH_AS(pool.layer(2), doctest::Contains("layer index below num_layers 2 expected, 2 given"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(pool.layer(-1), doctest::Contains("-1 given"), InvalidArgument);
  CHECK_THROWS_AS(KvPool<float>(KvLayout{}), InvalidArgument);
}
