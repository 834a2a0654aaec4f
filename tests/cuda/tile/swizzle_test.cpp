// No width of a tile makes ldmatrix, or the copies that fill the tile, meet a bank of shared memory twice.
#include "pagedkv/cuda/tile/swizzle.hpp"

#include <doctest/doctest.h>

#include <array>
#include <set>
#include <utility>

namespace {

using pagedkv::cuda::BoxedTile;
using pagedkv::cuda::SwizzledTile;

constexpr int rows = 64;

/// The group of four banks that serves the 16 bytes at an offset in 16-bit elements.
constexpr int bank_group(int offset) { return offset / 8 % 8; }

/// Are the places that are computed from a neighbour's those that are computed from scratch?
template <class Tile>
void check_right_of(int columns) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      CHECK(Tile::right_of(Tile::offset(row, column % 16), column / 16 * 16) == Tile::offset(row, column));
}

template <class Tile>
void check_below(int columns) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      CHECK(Tile::below(Tile::offset(row % 4, column), row / 4 * 4) == Tile::offset(row, column));
}

template <int Columns>
void check_width() {
  CAPTURE(Columns);
  using Tile = SwizzledTile<Columns>;
  std::set<int> offsets;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < Columns; ++column) {
      const int offset = Tile::offset(row, column);
      offsets.insert(offset);
      CHECK(offset / Columns == row);   // never leaves its row
      CHECK(offset % 8 == column % 8);  // 16 bytes stay together
    }
  }
  CHECK(offsets.size() == rows * Columns);
  for (int row = 0; row < rows; row += 8) {
    for (int column = 0; column < Columns; column += 8) {
      std::set<int> read;
      for (int i = 0; i < 8; ++i) read.insert(bank_group(Tile::offset(row + i, column)));
      CHECK(read.size() == 8);  // one 8x8 matrix of ldmatrix
    }
  }
  for (int chunk = 0; chunk < rows * Tile::chunks_per_row; chunk += 8) {
    std::set<int> written;
    for (int i = chunk; i < chunk + 8; ++i)
      written.insert(bank_group(Tile::offset(i / Tile::chunks_per_row, i % Tile::chunks_per_row * 8)));
    CHECK(written.size() == 8);  // eight neighbouring lanes of a copy
  }
  if constexpr (Columns % 16 == 0) check_right_of<Tile>(Columns);
  if constexpr (Columns % 64 == 0) check_below<Tile>(Columns);
}

template <int Columns, int BoxRows>
void check_boxes() {
  CAPTURE(Columns);
  CAPTURE(BoxRows);
  using Tile = BoxedTile<Columns, BoxRows>;
  std::set<int> offsets;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < Columns; ++column) {
      offsets.insert(Tile::offset(row, column));
      CHECK(Tile::offset(row, column) / Tile::box_elements == row / BoxRows);  // never leaves its box
    }
  }
  CHECK(offsets.size() == rows * Columns);
  for (int row = 0; row < rows; row += 8) {
    for (int column = 0; column < Columns; column += 8) {
      std::set<int> read;
      for (int i = 0; i < 8; ++i) read.insert(bank_group(Tile::offset(row + i, column)));
      CHECK(read.size() == 8);  // one 8x8 matrix of ldmatrix
    }
  }
  check_right_of<Tile>(Columns);
  CHECK(2 * Tile::box_elements % Tile::alignment == 0);  // each box begins where the permutation does
}

template <int... Sixteens>
void check_boxes_of_any_width(std::integer_sequence<int, Sixteens...>) {
  (check_boxes<16 * (Sixteens + 1), 8>(), ...);
  (check_boxes<16 * (Sixteens + 1), 16>(), ...);
}

template <int... Eights>
void check_widths(std::integer_sequence<int, Eights...>) {
  (check_width<8 * (Eights + 1)>(), ...);
}

}  // namespace

TEST_CASE("a swizzled tile of any width up to 256 is a permutation without bank conflicts") {
  check_widths(std::make_integer_sequence<int, 32>{});
}

TEST_CASE("a tile of boxes of any width up to 256 is a permutation without bank conflicts") {
  check_boxes_of_any_width(std::make_integer_sequence<int, 16>{});
}

TEST_CASE("a tile without the swizzle would conflict: the counting can fail") {
  std::set<int> read;
  for (int row = 0; row < 8; ++row) read.insert(bank_group(row * 64));
  CHECK(read.size() == 1);
}
