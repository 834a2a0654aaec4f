// K and V as tensors for TMA, without a GPU: a box by the ISA's text is a box of BoxedTile, and what does not fit is told.
#include "pagedkv/cuda/tensor_map.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/boxed_pools.hpp"
#include "support/tma_emulator.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::cuda;
using namespace pagedkv_test;

/// Lifts pieces of a pool into tiles of two boxes; the number of elements that are not where BoxedTile says.
template <int Dim, int BoxRows>
int misplaced(KvOrder order, int block_size) {
  using Tile = BoxedTile<Dim, BoxRows>;
  const KvLayout layout{.num_blocks = 5, .kv_heads = 3, .block_size = block_size, .head_dim = Dim, .order = order};
  const auto elements = numbered_elements<bf16>(layout);
  const View<const bf16, 4> view = block_view(elements.data(), layout, Dim);
  REQUIRE(boxed_support(view, BoxRows));
  const BoxedTensor tensor = boxed(view, BoxRows);
  CHECK(box_bytes(tensor) == 2 * Tile::box_elements);

  alignas(1024) static std::array<std::uint16_t, boxes_per_tile * Tile::box_elements> tile;
  int wrong = 0;
  const auto pieces = pieces_of(layout, BoxRows, 20);
  for (std::size_t first = 0; first < pieces.size(); first += boxes_per_tile) {
    tile.fill(0xffff);
    for (std::size_t i = 0; i < boxes_per_tile; ++i) {
      const auto [block, head, slot] = pieces[first + i];
      lift_box(tile.data() + i * Tile::box_elements, tensor, {0, slot, 0, head, block});
    }
    for (int row = 0; row < boxes_per_tile * BoxRows; ++row)
      for (int column = 0; column < Dim; ++column) {
        const Piece& piece = pieces[first + static_cast<std::size_t>(row / BoxRows)];
        wrong += tile[static_cast<std::size_t>(Tile::offset(row, column))] !=
                 expected_bits(view, piece, row % BoxRows, column);
      }
  }
  return wrong;
}

template <int Dim, int BoxRows>
void check_block_sizes() {
  CAPTURE(Dim);
  CAPTURE(BoxRows);
  for (const int block_size : {8, 16, 24, 32, 64, 128}) {
    if (block_size % BoxRows != 0) continue;
    CAPTURE(block_size);
    CHECK(misplaced<Dim, BoxRows>(KvOrder::hnd, block_size) == 0);
    CHECK(misplaced<Dim, BoxRows>(KvOrder::nhd, block_size) == 0);
  }
}

template <int Dim>
void check_dim() {
  check_block_sizes<Dim, 8>();
  check_block_sizes<Dim, 16>();
}

std::string_view reason(const View<const bf16, 4>& view, int box_rows = 8) {
  const Support support = boxed_support(view, box_rows);
  return support.reason ? support.reason : "";
}

}  // namespace

TEST_CASE("a box lies as BoxedTile says, for every head size and order, with zeros where no block or slot is") {
  check_dim<16>();
  check_dim<64>();
  check_dim<80>();
  check_dim<96>();
  check_dim<112>();
  check_dim<128>();
  check_dim<192>();
  check_dim<256>();
  check_block_sizes<128, 64>();
}

TEST_CASE("what TMA cannot lift comes with a reason") {
  alignas(16) static const std::array<bf16, 16> memory{};
  const KvLayout layout{.num_blocks = 4, .kv_heads = 2, .block_size = 24, .head_dim = 128};
  const View<const bf16, 4> good = block_view(memory.data(), layout, 128);
  CHECK(reason(good) == "");
  CHECK(reason(good, 24) == "");
  CHECK(reason(good, 4) == "a box has 8 to 256 rows, a multiple of 8");
  CHECK(reason(good, 512) == "a box has 8 to 256 rows, a multiple of 8");
  CHECK(reason(good, 16) == "block_size must be a multiple of a box's rows");
  const auto changed = [&](auto change) {
    auto view = good;
    change(view);
    return reason(view);
  };
  CHECK(changed([](auto& v) { v.extents[3] = 8; }) == "head_dim must be a multiple of 16 up to 256");
  CHECK(changed([](auto& v) { v.extents[3] = 100; }) == "head_dim must be a multiple of 16 up to 256");
  CHECK(changed([](auto& v) { v.extents[3] = 320; }) == "head_dim must be a multiple of 16 up to 256");
  CHECK(changed([](auto& v) { v.strides[3] = 2; }) == "rows of head_dim must be contiguous");
  CHECK(changed([](auto& v) { v.data += 4; }) == "K and V must start at a multiple of 16 bytes");
  CHECK(changed([](auto& v) { v.strides[2] = 132; }) == "strides must be multiples of 16 bytes");
  CHECK(changed([](auto& v) { v.strides[1] = -8; }) == "strides must not be negative and be less than 2^40 bytes");
  CHECK(changed([](auto& v) { v.strides[0] = (std::int64_t{1} << 39); }) ==
        "strides must not be negative and be less than 2^40 bytes");
  CHECK(changed([](auto& v) { v.strides[0] = (std::int64_t{1} << 39) - 8; }) == "");
  CHECK(changed([](auto& v) { v.extents[0] = 0; }) == "TMA counts 1 to 2^31 blocks, heads and slots");
  CHECK(changed([](auto& v) { v.extents[0] = (std::int64_t{1} << 31) + 1; }) ==
        "TMA counts 1 to 2^31 blocks, heads and slots");
}

TEST_CASE("the stride of an axis with one element is nobody's, so it may be anything") {
  alignas(16) static const std::array<bf16, 16> memory{};
  View<const bf16, 4> view = block_view(memory.data(), KvLayout{.num_blocks = 1, .kv_heads = 1, .block_size = 8}, 64);
  view.strides[0] = -7;
  view.strides[1] = 3;
  CHECK(boxed_support(view, 8));
  const BoxedTensor tensor = boxed(view, 8);
  for (const auto stride : tensor.strides_bytes) CHECK(stride % 16 == 0);
}
