// Which lane of a warp holds which element of mma.m16n8k16's operands, and which row piece it points ldmatrix at.
#pragma once

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// A place in a matrix, counted from its upper left corner.
struct Coordinate {
  int row, column;

  friend constexpr bool operator==(const Coordinate&, const Coordinate&) = default;
};

// A lane's elements are numbered in register order: elements 2 r and 2 r + 1 are the lower and upper half of 32-bit
// register r; C's elements are its four floats. The maps are those of the PTX ISA, "matrix fragments for mma.m16n8k16".

/// Element 0..7 of A [16 rows, 16 columns].
PAGEDKV_HD constexpr Coordinate fragment_a(int lane, int element) {
  return {lane / 4 + element / 2 % 2 * 8, lane % 4 * 2 + element % 2 + element / 4 * 8};
}

/// Element 0..3 of B [16 rows, 8 columns].
PAGEDKV_HD constexpr Coordinate fragment_b(int lane, int element) {
  return {lane % 4 * 2 + element % 2 + element / 2 * 8, lane / 4};
}

/// Element 0..3 of C [16 rows, 8 columns]. The quad of lanes 4 i .. 4 i + 3 shares rows i and i + 8. Two C fragments
/// side by side, rounded to 16 bits and paired, are an A fragment: registers {c[0..1], c[2..3]} of the left, then of
/// the right one.
PAGEDKV_HD constexpr Coordinate fragment_c(int lane, int element) {
  return {lane / 4 + element / 2 * 8, lane % 4 * 2 + element % 2};
}

// ldmatrix.x4 fetches a 16x16 tile as four 8x8 quarters; lane l points at row l % 8 of quarter l / 8. The order of the
// quarters decides what the registers are.

/// Quarters upper left, lower left, upper right, lower right. From A's tile, as it lies: the registers of A. From the
/// [16 rows, 16 columns] tile of a row-major B, transposed: b0, b1 of its left eight columns, then of its right eight.
PAGEDKV_HD constexpr Coordinate quarters_down(int lane) { return {lane % 16, lane / 16 * 8}; }

/// Quarters upper left, upper right, lower left, lower right. From the [16 columns, 16 rows] tile of a column-major B,
/// as it lies: b0, b1 of its first eight columns, then of its last eight.
PAGEDKV_HD constexpr Coordinate quarters_across(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8}; }

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
