// Where the elements of a tile lie in shared memory, so that ldmatrix never meets a bank twice.
#pragma once

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// A row-major tile of 16-bit elements, `Columns` wide (a multiple of 8), whose 16-byte chunks are permuted within each
/// row.
///
/// Shared memory serves 128 bytes at a time: eight chunks, one from each group of four banks. ldmatrix asks for the
/// same chunk of eight rows. With g chunks in the largest power of two (up to 8) that divides a row, rows 8 / g apart
/// begin in the same group; an XOR with the row's number in steps of 8 / g sends them to different ones. It stays
/// within g chunks, so it never leaves the row, and eight chunks written side by side still meet eight groups.
template <int Columns>
struct SwizzledTile {
  static_assert(Columns > 0 && Columns % 8 == 0, "a row is made of 16-byte chunks");

  static constexpr int chunk = 8;  // elements of 16 bytes
  static constexpr int chunks_per_row = Columns / chunk;
  static constexpr int permuted = chunks_per_row % 8 == 0   ? 8
                                  : chunks_per_row % 4 == 0 ? 4
                                  : chunks_per_row % 2 == 0 ? 2
                                                            : 1;

  /// Offset in elements of (row, column) from the tile's start, which must be aligned to 128 bytes.
  PAGEDKV_HD static constexpr int offset(int row, int column) {
    const int place = column / chunk ^ row / (8 / permuted) % permuted;
    return row * Columns + place * chunk + column % chunk;
  }

  // Neighbours of a place that a lane has computed once, by a constant: no more than an XOR and a sum.

  /// Offset of the place `columns`, a multiple of 16, to the right of one in the first 16 columns.
  PAGEDKV_HD static constexpr int right_of(int offset, int columns) {
    const int step = columns / chunk;
    return (offset ^ step % permuted * chunk) + step / permuted * permuted * chunk;
  }

  /// Offset of the place `rows` below one in the first 2^n rows, where 2^n divides `rows`. Of tiles whose rows are multiples
  /// of 128 bytes.
  PAGEDKV_HD static constexpr int below(int offset, int rows) requires(permuted == 8) {
    return (offset ^ rows % permuted * chunk) + rows * Columns;
  }
};

/// Columns of 16-bit elements that TMA permutes together: 128, 64 or 32 bytes, whatever divides the row.
PAGEDKV_HD constexpr int slab_columns(int columns) { return columns % 64 == 0 ? 64 : columns % 32 == 0 ? 32 : 16; }

/// A tile as TMA lays it down, `Columns` wide (a multiple of 16): box after box of `BoxRows` rows (a multiple of 8), in a
/// box slab after slab of slab_columns(Columns).
///
/// A slab is a SwizzledTile: TMA's swizzle modes XOR the number of a 16-byte chunk with the address in steps of 128
/// bytes, which is the same permutation where a slab begins at a multiple of its 8 rows. So every box must.
template <int Columns, int BoxRows>
struct BoxedTile {
  static_assert(Columns > 0 && Columns % 16 == 0, "a slab is 16, 32 or 64 columns wide");
  static_assert(BoxRows > 0 && BoxRows % 8 == 0, "the permutation repeats every 8 rows");

  using Slab = SwizzledTile<slab_columns(Columns)>;
  static constexpr int columns_per_slab = slab_columns(Columns);
  static constexpr int box_elements = BoxRows * Columns;
  static constexpr int alignment = 8 * 2 * columns_per_slab;  // of the tile's start, in bytes

  /// Offset in elements of (row, column) from the tile's start.
  PAGEDKV_HD static constexpr int offset(int row, int column) {
    return row / BoxRows * box_elements + column / columns_per_slab * (BoxRows * columns_per_slab) +
           Slab::offset(row % BoxRows, column % columns_per_slab);
  }

  /// As SwizzledTile's.
  PAGEDKV_HD static constexpr int right_of(int offset, int columns) {
    return Slab::right_of(offset, columns % columns_per_slab) +
           columns / columns_per_slab * (BoxRows * columns_per_slab);
  }
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
