// wgmma(): where a warpgroup's product reads its operands and leaves its sums, by the text of the PTX ISA ("shared
// memory matrix layout", "matrix descriptor", "matrix fragments for wgmma.mma_async.m64nNk16"), on the host; knows
// nothing of the library's tiles.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>

#include "pagedkv/core/dtype.hpp"

namespace pagedkv_test {

/// Which index of an operand has neighbours in memory: that of the sum (k), or A's rows and B's columns (mn).
enum class Major { k, mn };

/// A matrix descriptor, taken apart. Throws where a bit is set that must not be, and for what this emulator cannot do:
/// matrices without a permutation, and patterns that begin off their boundary (a base offset).
struct MatrixDescriptor {
  std::uint32_t start, leading_bytes, stride_bytes;
  std::uint32_t pattern_bytes;  // 16-byte chunks are permuted within so many bytes: 128, 64 or 32

  explicit MatrixDescriptor(std::uint64_t bits)
      : start(field(bits, 0)), leading_bytes(field(bits, 16)), stride_bytes(field(bits, 32)), pattern_bytes(0) {
    constexpr std::uint64_t fields = 0x3fff | std::uint64_t{0x3fff} << 16 | std::uint64_t{0x3fff} << 32;
    constexpr std::uint64_t base_offset = std::uint64_t{7} << 49, swizzle = std::uint64_t{3} << 62;
    if ((bits & ~(fields | base_offset | swizzle)) != 0) throw std::logic_error("descriptor: a reserved bit is set");
    if ((bits & base_offset) != 0) throw std::logic_error("descriptor: base offsets are not emulated");
    if (bits >> 62 == 0) throw std::logic_error("descriptor: matrices without a permutation are not emulated");
    pattern_bytes = 256u >> (bits >> 62);
  }

  /// Address in shared memory of element (mn, k) of 16 bits, k below 16. For patterns of S chunks, 8 elements each, the
  /// canonical layouts are, shape : strides,
  ///   K-major   ((8, m), (8, 2)) : ((8 S, stride), (1, 8))
  ///   MN-major  ((8, S, m), (8, 2)) : ((1, 8, leading), (8 S, stride))
  /// and in the address that comes of it the number of the chunk, modulo S, is XORed with that of the 128 bytes.
  std::uint32_t address(Major major, std::uint32_t mn, std::uint32_t k) const {
    std::uint32_t place = start;
    if (major == Major::k) {
      place += mn % 8 * pattern_bytes + mn / 8 * stride_bytes + 2 * k;
    } else {
      const std::uint32_t columns = pattern_bytes / 2;
      place += 2 * (mn % columns) + mn / columns * leading_bytes + k % 8 * pattern_bytes + k / 8 * stride_bytes;
    }
    return place ^ (place >> 7 & (pattern_bytes / 16 - 1)) << 4;
  }

 private:
  static constexpr std::uint32_t field(std::uint64_t bits, int from) {
    return static_cast<std::uint32_t>(bits >> from & 0x3fff) << 4;
  }
};

/// A place in a fragment's matrix.
struct FragmentPlace {
  int row, column;
  friend constexpr bool operator==(const FragmentPlace&, const FragmentPlace&) = default;
};

/// Of element 0..N / 2 - 1 of D [64, N] in thread 0..127. Warp w has rows 16 w .. 16 w + 15; with groupID = lane / 4
/// and threadID = lane % 4, d_i stands in row groupID, + 8 where i & 2, column 8 (i / 4) + 2 threadID + (i & 1).
constexpr FragmentPlace accumulator_place(int thread, int i) {
  const int warp = thread / 32, lane = thread % 32;
  return {16 * warp + lane / 4 + ((i & 2) != 0 ? 8 : 0), 8 * (i / 4) + 2 * (lane % 4) + (i & 1)};
}

/// Of element 0..7 of A [64, 16] in registers, two in each, low half first: a_i stands in row groupID, + 8 where i & 2,
/// column 2 threadID + (i & 1), + 8 where i & 4.
constexpr FragmentPlace operand_place(int thread, int i) {
  const int warp = thread / 32, lane = thread % 32;
  return {16 * warp + lane / 4 + ((i & 2) != 0 ? 8 : 0), 2 * (lane % 4) + (i & 1) + ((i & 4) != 0 ? 8 : 0)};
}

/// Registers of the 128 threads.
template <std::size_t Registers>
using Accumulators = std::array<std::array<float, Registers>, 128>;  // D [64, 2 Registers]
using OperandRegisters = std::array<std::array<std::uint32_t, 4>, 128>;

/// Shared memory, from address 0 on.
using SharedMemory = std::span<const std::byte>;

template <class T>
float load_shared(SharedMemory shared, std::uint32_t address) {
  if (address + 2 > shared.size()) throw std::logic_error("wgmma reads behind shared memory");
  T value;
  std::memcpy(&value.bits, &shared[address], 2);
  return pagedkv::to_float(value);
}

/// D = A B + (accumulate ? D : 0), A [64, 16] as a function of row and k, B [16, N] by its descriptor.
template <class T, std::size_t Registers, class A>
void multiply_accumulate(Accumulators<Registers>& d, A&& a, SharedMemory shared, std::uint64_t b, Major b_major,
                         bool accumulate) {
  static_assert(Registers % 4 == 0 && Registers >= 4 && Registers <= 128, "N is a multiple of 8 up to 256");
  const MatrixDescriptor descriptor(b);
  std::array<std::array<float, 16>, 64> rows;
  std::array<std::array<float, 16>, 2 * Registers> columns;
  for (std::uint32_t k = 0; k < 16; ++k) {
    for (std::uint32_t row = 0; row < 64; ++row) rows[row][k] = a(row, k);
    for (std::uint32_t column = 0; column < 2 * Registers; ++column)
      columns[column][k] = load_shared<T>(shared, descriptor.address(b_major, column, k));
  }
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < static_cast<int>(Registers); ++i) {
      const FragmentPlace place = accumulator_place(thread, i);
      float& sum = d[static_cast<std::size_t>(thread)][static_cast<std::size_t>(i)];
      if (!accumulate) sum = 0.f;
      for (std::size_t k = 0; k < 16; ++k)
        sum += rows[static_cast<std::size_t>(place.row)][k] * columns[static_cast<std::size_t>(place.column)][k];
    }
  }
}

/// wgmma.mma_async.m64nNk16 with both operands in shared memory.
template <class T, std::size_t Registers>
void wgmma(Accumulators<Registers>& d, SharedMemory shared, std::uint64_t a, Major a_major, std::uint64_t b,
           Major b_major, bool accumulate) {
  const MatrixDescriptor descriptor(a);
  multiply_accumulate<T>(
      d,
      [&](std::uint32_t row, std::uint32_t k) { return load_shared<T>(shared, descriptor.address(a_major, row, k)); },
      shared, b, b_major, accumulate);
}

/// The same with A in registers.
template <class T, std::size_t Registers>
void wgmma(Accumulators<Registers>& d, const OperandRegisters& a, SharedMemory shared, std::uint64_t b, Major b_major,
           bool accumulate) {
  std::array<std::array<float, 16>, 64> rows;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 8; ++i) {
      const FragmentPlace place = operand_place(thread, i);
      const std::uint32_t pair = a[static_cast<std::size_t>(thread)][static_cast<std::size_t>(i / 2)];
      rows[static_cast<std::size_t>(place.row)][static_cast<std::size_t>(place.column)] =
          pagedkv::to_float(T{static_cast<std::uint16_t>(pair >> (16 * (i % 2)))});
    }
  }
  multiply_accumulate<T>(
      d, [&](std::uint32_t row, std::uint32_t k) { return rows[row][k]; }, shared, b, b_major, accumulate);
}

}  // namespace pagedkv_test
