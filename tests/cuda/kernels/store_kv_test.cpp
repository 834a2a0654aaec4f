// The store kernel's own source, run on the host by emulated warps, against plain loops over rows.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/store_kv.cuh"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/pieces.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr cuda::MovePolicy small{.threads = 32, .pieces_per_thread = 2, .max_ctas = 1};

/// New rows, their heads `gap` elements further apart than they are long.
template <class X>
struct Rows {
  Rows(int num_rows, int heads, int dim, int gap, std::uint64_t seed)
      : elements(static_cast<std::size_t>(num_rows * heads * (dim + gap))) {
    Random random(seed);
    for (X& x : elements) x = from_float<X>(random.real(300.f));
    view = dense_view<Space::device>(static_cast<const X*>(elements.data()), {num_rows, heads, dim + gap});
    view.extents[2] = dim;
  }

  std::vector<X> elements;
  View<const X, 3, Space::device> view;
};

template <class T, class X, int Count>
void launch(const std::vector<Slot>& slots, const KvView<T, Space::device>& layer, const Rows<X>& k, const Rows<X>& v) {
  using Config = cuda::StoreConfig<T, X, Count, small>;
  using To = typename Config::To;
  using From = typename Config::From;
  const KvView<To, Space::device> pieces{.k = in_pieces<To>(layer.k), .v = in_pieces<To>(layer.v)};
  const std::int64_t num_pieces =
      k.view.extents[0] * k.view.extents[1] * max(k.view.extents[2], v.view.extents[2]) / Count;
  run_grid({static_cast<unsigned>(ceil_div<std::int64_t>(num_pieces, Config::tile_pieces)), 2}, Config::threads, [&] {
    cuda::kv_store_kernel<Config>(dense_view<Space::device>(slots.data(), {std::ssize(slots)}), pieces,
                                  in_pieces<From>(k.view), in_pieces<From>(v.view), cuda::make_piece_shape(pieces));
  });
}

template <class T, class X, int Count>
void check_store(KvLayout layout, int gap) {
  std::vector<T> pool(static_cast<std::size_t>(layout.num_elements()), from_float<T>(-1.f)), expected = pool;
  const std::vector<Slot> slots{3, dead_slot, 0, 17, 16, dead_slot, 5};
  const int num_rows = static_cast<int>(slots.size());
  const Rows<X> k(num_rows, layout.kv_heads, layout.head_dim, gap, 1),
      v(num_rows, layout.kv_heads, layout.value_dim(), gap, 2);
  const KvView<T> host = layers_view(expected.data(), layout).first;
  const auto expect = [&](const View<T, 4>& blocks, const View<const X, 3, Space::device>& rows) {
    for (int row = 0; row < num_rows; ++row) {
      const Slot slot = slots[static_cast<std::size_t>(row)];
      for (int head = 0; slot >= 0 && head < layout.kv_heads; ++head)
        for (int d = 0; d < rows.extents[2]; ++d)
          blocks(slot / layout.block_size, head, slot % layout.block_size, d) =
              from_float<T>(to_float(rows(row, head, d)));
    }
  };
  expect(host.k, k.view);
  expect(host.v, v.view);
  launch<T, X, Count>(slots, layers_view<Space::device>(pool.data(), layout).first, k, v);
  CHECK(std::memcmp(pool.data(), expected.data(), pool.size() * sizeof(T)) == 0);
}

}  // namespace

TEST_CASE("the store kernel writes live rows to their slots, and not a byte elsewhere") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_blocks = 4, .kv_heads = 3, .block_size = 5, .head_dim = 40, .order = order};
    SUBCASE("in pieces of 16 bytes, rows with gaps between heads") { check_store<bf16, bf16, 8>(layout, 8); }
    SUBCASE("rounding float to bf16, four at a time") { check_store<bf16, float, 4>(layout, 0); }
    SUBCASE("narrowing bf16 to fp8, eight at a time") { check_store<fp8_e4m3, bf16, 8>(layout, 0); }
    SUBCASE("widening f16 to float") { check_store<float, f16, 4>(layout, 0); }
    SUBCASE("element by element, where K and V have odd and unequal rows") {
      layout.head_dim = 7;
      layout.head_dim_v = 11;
      check_store<bf16, bf16, 1>(layout, 3);
      check_store<std::int8_t, f16, 1>(layout, 1);
    }
  }
}

TEST_CASE("the store kernel reaches slots above 2^31 and bytes above 2^33") {
  const std::int64_t far_block = 3'000'000'001, stride = 8;  // blocks of one slot, two heads
  const std::size_t size_bytes = static_cast<std::size_t>((far_block + 1) * 2 * stride) * sizeof(bf16);
  void* const memory =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto* const pool = static_cast<bf16*>(memory);
  const auto blocks = dense_view<Space::device>(pool, {far_block + 1, 2, 1, 8});
  const Rows<bf16> rows(1, 2, 8, 0, 3);
  launch<bf16, bf16, 8>({far_block}, {.k = blocks, .v = blocks}, rows, rows);
  CHECK(std::memcmp(pool + far_block * 2 * stride, rows.elements.data(), 32) == 0);
  munmap(memory, size_bytes);
}
