// Descriptors of a tile name the elements that the tile holds, where the text of the PTX ISA makes a warpgroup look;
// what TMA lays down slab by slab is such a tile; and products through descriptors are the products of the matrices.
#include "pagedkv/cuda/tile/descriptor.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/tensor_map.hpp"
#include "pagedkv/cuda/tile/fragment.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/boxed_pools.hpp"
#include "support/tma_emulator.hpp"
#include "support/wgmma_emulator.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::cuda;
using namespace pagedkv_test;

/// Calls f<Columns, Rows>() for tiles of 64 to 256 rows of every kind: of wgmma's A [64, ..], of its B.
template <int Columns, class F>
void for_each_height(F&& f) {
  f.template operator()<Columns, 64>();
  f.template operator()<Columns, 80>();
  f.template operator()<Columns, 96>();
  f.template operator()<Columns, 112>();
  f.template operator()<Columns, 128>();
  f.template operator()<Columns, 144>();
  f.template operator()<Columns, 176>();
  f.template operator()<Columns, 192>();
  f.template operator()<Columns, 256>();
}

/// The same for every width that K, Q or V has.
template <class F>
void for_each_shape(F&& f) {
  for_each_height<64>(f);
  for_each_height<80>(f);
  for_each_height<96>(f);
  for_each_height<128>(f);
  for_each_height<192>(f);
  for_each_height<256>(f);
}

/// A tile may begin at any multiple of its alignment, up to the end of an SM's 227 KiB.
template <class Tile>
std::array<std::uint32_t, 3> some_addresses(int elements) {
  constexpr std::uint32_t alignment = Tile::alignment, end = 227 * 1024;
  return {0, 5 * alignment, (end - 2 * static_cast<std::uint32_t>(elements)) / alignment * alignment};
}

/// Elements that are not read where they lie, 16 columns at a time or 16 rows at a time.
template <int Columns, int Rows>
int misread_by_columns(std::uint32_t start) {
  using Descriptor = TileDescriptor<Columns, Rows>;
  int wrong = 0;
  for (int column = 0; column < Columns; column += 16) {
    const MatrixDescriptor matrix(Descriptor::at_column(Descriptor::by_columns(start), column));
    for (int row = 0; row < Rows; ++row)
      for (int k = 0; k < 16; ++k)
        wrong += matrix.address(Major::k, static_cast<unsigned>(row), static_cast<unsigned>(k)) !=
                 start + 2 * static_cast<unsigned>(Descriptor::Tile::offset(row, column + k));
  }
  return wrong;
}

template <int Columns, int Rows>
int misread_by_rows(std::uint32_t start) {
  using Descriptor = TileDescriptor<Columns, Rows>;
  int wrong = 0;
  for (int row = 0; row < Rows; row += 16) {
    const MatrixDescriptor matrix(Descriptor::at_row(Descriptor::by_rows(start), row));
    for (int column = 0; column < Columns; ++column)
      for (int k = 0; k < 16; ++k)
        wrong += matrix.address(Major::mn, static_cast<unsigned>(column), static_cast<unsigned>(k)) !=
                 start + 2 * static_cast<unsigned>(Descriptor::Tile::offset(row + k, column));
  }
  return wrong;
}

/// Lifts rows of a pool into a tile, slab after slab, from a block for every box; the number of elements that are not
/// where the tile holds them.
template <int Columns, int Rows>
int mislaid(KvOrder order, int block_size, int box_rows) {
  using Tile = typename TileDescriptor<Columns, Rows>::Tile;
  const KvLayout layout{.num_blocks = 7, .kv_heads = 2, .block_size = block_size, .head_dim = Columns, .order = order};
  const auto elements = numbered_elements<bf16>(layout);
  const View<const bf16, 4> view = block_view(elements.data(), layout, Columns);
  const auto boxes = boxed(view, box_rows, 1);
  alignas(1024) static std::array<std::uint16_t, Columns * Rows> tile;
  tile.fill(0xffff);
  const auto piece_of = [&](int row) {  // block 7 does not exist: zeros
    const int box = row / box_rows;
    return Piece{.block = box * 3 % 8, .head = 1, .slot = box * box_rows % block_size};
  };
  for (int row = 0; row < Rows; row += box_rows)
    for (int slab = 0; slab < Columns / Tile::columns_per_slab; ++slab) {
      const auto [block, head, slot] = piece_of(row);
      lift_box(&tile[static_cast<std::size_t>((slab * Rows + row) * Tile::columns_per_slab)], boxes,
               {0, slot, slab, head, block});
    }
  int wrong = 0;
  for (int row = 0; row < Rows; ++row)
    for (int column = 0; column < Columns; ++column)
      wrong += tile[static_cast<std::size_t>(Tile::offset(row, column))] !=
               expected_bits(view, piece_of(row), row % box_rows, column);
  return wrong;
}

/// The same for 64 packed rows of Q: token 3 and those behind it, the last of which does not exist; `heads` heads from
/// head `heads` on.
template <int Columns>
int mislaid_queries(int heads) {
  using Tile = typename TileDescriptor<Columns, 64>::Tile;
  const int num_tokens = 3 + 64 / heads - 1, q_heads = 3 * heads;
  std::vector<bf16> elements(static_cast<std::size_t>(num_tokens * q_heads * Columns));
  for (std::size_t i = 0; i < elements.size(); ++i)
    elements[i].bits = static_cast<std::uint16_t>(i * 40503 + i / 65536);
  const auto view = dense_view(static_cast<const bf16*>(elements.data()), {num_tokens, q_heads, Columns});
  const auto boxes = boxed_queries(view, heads, 64);
  alignas(1024) static std::array<std::uint16_t, Columns * 64> tile;
  tile.fill(0xffff);
  for (int slab = 0; slab < Columns / Tile::columns_per_slab; ++slab)
    lift_box(&tile[static_cast<std::size_t>(slab * 64 * Tile::columns_per_slab)], boxes, {0, heads, 3, slab, 0});
  int wrong = 0;
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < Columns; ++column) {
      const int token = 3 + row / heads, head = heads + row % heads;
      wrong += tile[static_cast<std::size_t>(Tile::offset(row, column))] !=
               (token < num_tokens ? view(token, head, column).bits : 0);
    }
  return wrong;
}

template <int Columns>
void check_lifted() {
  CAPTURE(Columns);
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    CHECK(mislaid<Columns, 64>(order, 8, 8) == 0);
    CHECK(mislaid<Columns, 112>(order, 16, 16) == 0);
    CHECK(mislaid<Columns, 176>(order, 48, 16) == 0);
    CHECK(mislaid<Columns, 128>(order, 64, 64) == 0);
    CHECK(mislaid<Columns, 128>(order, 24, 8) == 0);
  }
  for (const int heads : {1, 2, 4, 8, 16, 64}) {
    CAPTURE(heads);
    CHECK(mislaid_queries<Columns>(heads) == 0);
  }
}

/// A matrix of small integers: sums of products of some hundreds of them are exact, in every type.
int number(int row, int column, int seed) { return (row * 5 + column * 3 + row * column + seed) % 7 - 3; }

/// 227 KiB from address 0 on, NaN where no tile is.
class Shared {
 public:
  Shared() : bytes_(227 * 1024, std::byte{0xff}) {}

  template <class Tile, class T>
  void store(std::uint32_t address, int rows, int columns, int seed) {
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column) {
        const T value = from_float<T>(static_cast<float>(number(row, column, seed)));
        std::memcpy(&bytes_[address + 2 * static_cast<unsigned>(Tile::offset(row, column))], &value.bits, 2);
      }
  }
  operator SharedMemory() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

template <std::size_t Registers, class F>
int wrong_sums(const Accumulators<Registers>& sums, F&& expected) {
  int wrong = 0;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < static_cast<int>(Registers); ++i) {
      const FragmentPlace place = accumulator_place(thread, i);
      const float sum = sums[static_cast<std::size_t>(thread)][static_cast<std::size_t>(i)];
      wrong += !(sum == static_cast<float>(expected(place.row, place.column)));
    }
  return wrong;
}

/// S = Q K^T for 64 queries and a tile of keys, as prefill_sm90 does it.
template <class T, int HeadDim, int Keys>
void check_scores() {
  CAPTURE(HeadDim);
  CAPTURE(Keys);
  using Queries = TileDescriptor<HeadDim, 64>;
  using KeyTile = TileDescriptor<HeadDim, Keys>;
  constexpr std::uint32_t queries_at = 1024, keys_at = queries_at + 2 * Queries::elements;
  Shared shared;
  shared.store<typename Queries::Tile, T>(queries_at, 64, HeadDim, 1);
  shared.store<typename KeyTile::Tile, T>(keys_at, Keys, HeadDim, 2);
  const auto scores = std::make_unique<Accumulators<Keys / 2>>();
  for (auto& thread : *scores) thread.fill(1e9f);  // whatever the registers held
  const std::uint64_t queries = Queries::by_columns(queries_at), keys = KeyTile::by_columns(keys_at);
  for (int column = 0; column < HeadDim; column += 16)
    wgmma<T>(*scores, shared, Queries::at_column(queries, column), Major::k, KeyTile::at_column(keys, column), Major::k,
             column > 0);
  const int wrong = wrong_sums(*scores, [](int query, int key) {
    int sum = 0;
    for (int i = 0; i < HeadDim; ++i) sum += number(query, i, 1) * number(key, i, 2);
    return sum;
  });
  CHECK(wrong == 0);
}

/// O += P V for 64 rows: P as it leaves a product of [64, Keys], rounded, pair by pair; V as it lies.
template <class T, int HeadDim, int Keys>
void check_output() {
  CAPTURE(HeadDim);
  CAPTURE(Keys);
  using Values = TileDescriptor<HeadDim, Keys>;
  constexpr std::uint32_t values_at = 3 * 1024;
  Shared shared;
  shared.store<typename Values::Tile, T>(values_at, Keys, HeadDim, 3);
  const auto output = std::make_unique<Accumulators<HeadDim / 2>>();
  for (auto& thread : *output) thread.fill(8.f);  // the output so far
  for (int key = 0; key < Keys; key += 16) {
    OperandRegisters weights;
    for (int thread = 0; thread < 128; ++thread)
      for (int j = 0; j < 4; ++j) {
        std::uint32_t pair = 0;
        for (int half = 0; half < 2; ++half) {
          const FragmentPlace place = accumulator_place(thread, key / 2 + 2 * j + half);
          const float weight = static_cast<float>(number(place.row, place.column, 4));
          pair |= std::uint32_t{from_float<T>(weight).bits} << (16 * half);
        }
        weights[static_cast<std::size_t>(thread)][static_cast<std::size_t>(j)] = pair;
      }
    wgmma<T>(*output, weights, shared, Values::at_row(Values::by_rows(values_at), key), Major::mn, true);
  }
  const int wrong = wrong_sums(*output, [](int query, int column) {
    int sum = 8;
    for (int key = 0; key < Keys; ++key) sum += number(query, key, 4) * number(key, column, 3);
    return sum;
  });
  CHECK(wrong == 0);
}

template <int HeadDim>
void check_products() {
  check_scores<bf16, HeadDim, 64>();
  check_scores<f16, HeadDim, 112>();
  check_scores<bf16, HeadDim, 176>();
  check_output<bf16, HeadDim, 64>();
  check_output<f16, HeadDim, 112>();
  check_output<bf16, HeadDim, 176>();
}

}  // namespace

TEST_CASE("the emulator looks where the ISA's own examples say, and refuses what it does not know") {
  constexpr std::uint64_t start = 0x800 >> 4, permuted_64 = std::uint64_t{2} << 62,
                          permuted_32 = std::uint64_t{3} << 62;
  // "MN-major, 32B swizzling and bf16": Swizzle<1,4,3> o ((8,2,2),(8,2)):((1,8,128),(16,256)), encoded as 16 and 32.
  const MatrixDescriptor narrow(start | std::uint64_t{16} << 16 | std::uint64_t{32} << 32 | permuted_32);
  CHECK(narrow.address(Major::mn, 1, 0) == 0x800 + 2 * 1);
  CHECK(narrow.address(Major::mn, 8, 0) == 0x800 + 2 * 8);
  CHECK(narrow.address(Major::mn, 16, 0) == 0x800 + 2 * 128);
  CHECK(narrow.address(Major::mn, 0, 3) == 0x800 + 2 * 3 * 16);
  CHECK(narrow.address(Major::mn, 0, 4) == 0x800 + 2 * 4 * 16 + 16);  // bit 7 turns bit 4
  CHECK(narrow.address(Major::mn, 8, 4) == 0x800 + 2 * 4 * 16);
  CHECK(narrow.address(Major::mn, 0, 8) == 0x800 + 2 * 256);
  // "MN-major, 64B swizzling and bf16": Swizzle<2,4,3> o ((8,4,2),(8,2)):((1,8,256),(32,512)), encoded as 32 and 64.
  const MatrixDescriptor wide(start | std::uint64_t{32} << 16 | std::uint64_t{64} << 32 | permuted_64);
  CHECK(wide.address(Major::mn, 32, 0) == 0x800 + 2 * 256);
  CHECK(wide.address(Major::mn, 24, 6) == 0x800 + 2 * 6 * 32);  // bits 7 and 8 turn bits 4 and 5
  CHECK(wide.address(Major::mn, 0, 8) == 0x800 + 2 * 512);
  CHECK_THROWS(MatrixDescriptor(start));
  CHECK_THROWS(MatrixDescriptor(start | permuted_64 | std::uint64_t{1} << 14));
  CHECK_THROWS(MatrixDescriptor(start | permuted_64 | std::uint64_t{1} << 49));
}

TEST_CASE("16 columns of a tile, for all rows, are read where the tile holds them") {
  const auto check = []<int Columns, int Rows>() {
    CAPTURE(Columns);
    CAPTURE(Rows);
    for (const std::uint32_t start : some_addresses<typename TileDescriptor<Columns, Rows>::Tile>(Columns * Rows))
      CHECK(misread_by_columns<Columns, Rows>(start) == 0);
  };
  for_each_shape(check);
}

TEST_CASE("16 rows of a tile, for all columns, are read where the tile holds them") {
  const auto check = []<int Columns, int Rows>() {
    CAPTURE(Columns);
    CAPTURE(Rows);
    for (const std::uint32_t start : some_addresses<typename TileDescriptor<Columns, Rows>::Tile>(Columns * Rows))
      CHECK(misread_by_rows<Columns, Rows>(start) == 0);
  };
  for_each_shape(check);
}

TEST_CASE("boxes of blocks that TMA lays slab by slab are a tile; so are boxes of heads and tokens") {
  check_lifted<64>();
  check_lifted<80>();
  check_lifted<96>();
  check_lifted<128>();
  check_lifted<192>();
  check_lifted<256>();
}

TEST_CASE("Q K^T and P V through descriptors are the products of the matrices, for every head size") {
  check_products<64>();
  check_products<96>();
  check_products<128>();
  check_products<192>();
  check_products<256>();
}

TEST_CASE("Q K^T and P V of the largest tiles that fit next to each other") {
  check_scores<bf16, 64, 256>();
  check_scores<bf16, 128, 256>();
  check_scores<bf16, 192, 256>();
  check_output<bf16, 64, 256>();
  check_output<bf16, 128, 256>();
  check_output<bf16, 256, 256>();
}

TEST_CASE("a warpgroup's accumulators are those of mma.m16n8k16, warp by warp and eight columns by eight") {
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 128; ++i) {
      const auto in_warp = fragment_c(thread % 32, i % 4);
      const FragmentPlace expected{thread / 32 * 16 + in_warp.row, i / 4 * 8 + in_warp.column};
      CHECK(accumulator_place(thread, i) == expected);
    }
}

TEST_CASE("what a product of 16 columns leaves in a thread's registers, in pairs, is an operand of the next one") {
  for (int thread = 0; thread < 128; ++thread)
    for (int element = 0; element < 8; ++element)
      CHECK(operand_place(thread, element) == accumulator_place(thread, element));
}
