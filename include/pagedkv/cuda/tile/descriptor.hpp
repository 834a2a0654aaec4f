// Descriptors: how a warpgroup's products (wgmma) are told where the elements of a tile lie in shared memory.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// The descriptor of a matrix in shared memory (PTX ISA, "matrix descriptor"): address, two strides in bytes, and in
/// how wide a pattern its 16-byte chunks are permuted (bytes: 128, 64 or 32).
PAGEDKV_HD constexpr std::uint64_t matrix_descriptor(std::uint32_t address, int leading_bytes, int stride_bytes,
                                                     int pattern_bytes) {
  const std::uint64_t pattern = pattern_bytes == 128 ? 1 : pattern_bytes == 64 ? 2 : 3;
  return (address & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<std::uint64_t>(stride_bytes >> 4) << 32 | pattern << 62;
}

/// The descriptor of what lies `bytes` behind, a multiple of 16. Addresses are in the lower word, and a sum of 32 bits
/// is one instruction; no place in shared memory is so far behind another that it would carry.
PAGEDKV_HD constexpr std::uint64_t behind(std::uint64_t descriptor, int bytes) {
  const auto low = static_cast<std::uint32_t>(descriptor) + static_cast<std::uint32_t>(bytes >> 4);
  return (descriptor >> 32) << 32 | low;
}

/// Descriptors of a tile [Rows, Columns] that lies as one box of BoxedTile<Columns, Rows>: slab after slab.
template <int Columns, int Rows>
struct TileDescriptor {
  using Tile = BoxedTile<Columns, Rows>;
  static constexpr int pattern_bytes = 2 * Tile::columns_per_slab;
  static constexpr int bytes = 2 * Columns * Rows;
  static constexpr int num_slabs = Columns / Tile::columns_per_slab, elements = Columns * Rows;
  static constexpr int eight_rows_bytes = 8 * pattern_bytes, slab_bytes = Rows * pattern_bytes;

  /// Of 16 columns for all rows, where products sum over columns: Q and K. `address` is the tile's, in shared memory.
  PAGEDKV_HD static constexpr std::uint64_t by_columns(std::uint32_t address) {
    return matrix_descriptor(address, 16, eight_rows_bytes,
                             pattern_bytes);  // within a slab the first stride is not used
  }
  /// To `column`, a multiple of 16.
  PAGEDKV_HD static constexpr std::uint64_t at_column(std::uint64_t descriptor, int column) {
    const int slab = column / Tile::columns_per_slab, inside = column % Tile::columns_per_slab;
    return behind(descriptor, slab * slab_bytes + 2 * inside);
  }

  /// Of 16 rows for all columns, where products sum over rows: V.
  PAGEDKV_HD static constexpr std::uint64_t by_rows(std::uint32_t address) {
    return matrix_descriptor(address, slab_bytes, eight_rows_bytes, pattern_bytes);
  }
  /// To `row`, a multiple of 16.
  PAGEDKV_HD static constexpr std::uint64_t at_row(std::uint64_t descriptor, int row) {
    return behind(descriptor, row / 8 * eight_rows_bytes);
  }
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
