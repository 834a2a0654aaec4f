// A warp multiplies through the library's maps, with instructions that follow the PTX text, and gets the matrix
// product.
#include "pagedkv/cuda/tile/fragment.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>

#include "support/warp_emulator.hpp"

namespace {

using pagedkv::f16;
using pagedkv::cuda::Coordinate;
using pagedkv::cuda::fragment_a;
using pagedkv::cuda::fragment_b;
using pagedkv::cuda::fragment_c;
using pagedkv::cuda::quarters_across;
using pagedkv::cuda::quarters_down;

/// A 16x16 tile of small integers, all products and sums of which are exact. Rows start at multiples of 16 bytes.
struct Tile {
  alignas(16) std::array<std::array<f16, 16>, 16> rows;

  explicit Tile(int seed) {
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 16; ++c)
        at({r, c}) = pagedkv::from_float<f16>(static_cast<float>((r * 5 + c * 3 + r * c + seed) % 11 - 5));
  }
  f16& at(Coordinate place) {
    return rows[static_cast<std::size_t>(place.row)][static_cast<std::size_t>(place.column)];
  }
  float value(int row, int column) { return pagedkv::to_float(at({row, column})); }
};

int lane() { return static_cast<int>(pagedkv_test::lane_index()); }

std::uint32_t pair(f16 low, f16 high) { return low.bits | static_cast<std::uint32_t>(high.bits) << 16; }

/// A lane's registers of A, or of B's eight columns from `first_column` on, by the library's maps.
std::array<std::uint32_t, 4> registers_of_a(Tile& a) {
  std::array<std::uint32_t, 4> registers;
  for (int r = 0; r < 4; ++r)
    registers[static_cast<std::size_t>(r)] = pair(a.at(fragment_a(lane(), 2 * r)), a.at(fragment_a(lane(), 2 * r + 1)));
  return registers;
}
std::array<std::uint32_t, 2> registers_of_b(Tile& b, int first_column) {
  const auto at = [&](int element) {
    const Coordinate place = fragment_b(lane(), element);
    return b.at({place.row, place.column + first_column});
  };
  return {pair(at(0), at(1)), pair(at(2), at(3))};
}

Tile transposed(Tile tile) {
  Tile other = tile;
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) other.at({c, r}) = tile.at({r, c});
  return other;
}

}  // namespace

TEST_CASE("every element of an operand belongs to one lane and one place in its registers") {
  std::set<std::pair<int, int>> a, b, c;
  for (int l = 0; l < 32; ++l) {
    for (int e = 0; e < 8; ++e) a.insert({fragment_a(l, e).row, fragment_a(l, e).column});
    for (int e = 0; e < 4; ++e) b.insert({fragment_b(l, e).row, fragment_b(l, e).column});
    for (int e = 0; e < 4; ++e) c.insert({fragment_c(l, e).row, fragment_c(l, e).column});
  }
  CHECK(a.size() == 16 * 16);
  CHECK(b.size() == 16 * 8);
  CHECK(c.size() == 16 * 8);
}

TEST_CASE("a product through the fragment maps is the product of the matrices") {
  Tile a(1), b(4);
  pagedkv_test::emulator.run(32, [&] {
    const auto from_a = registers_of_a(a);
    const auto from_b = registers_of_b(b, 8);
    float c[4] = {};
    pagedkv::ptx::mma_m16n8k16<f16>(c, {from_a[0], from_a[1], from_a[2], from_a[3]}, from_b[0], from_b[1]);
    for (int element = 0; element < 4; ++element) {
      const Coordinate place = fragment_c(lane(), element);
      float expected = 0.f;
      for (int k = 0; k < 16; ++k) expected += a.value(place.row, k) * b.value(k, place.column + 8);
      CHECK(c[element] == expected);
    }
  });
}

TEST_CASE("ldmatrix by quarters down fetches the registers of A") {
  Tile a(2);
  pagedkv_test::emulator.run(32, [&] {
    std::uint32_t fetched[4];
    pagedkv::ptx::ldmatrix_x4(fetched, &a.at(quarters_down(lane())));
    const auto expected = registers_of_a(a);
    for (std::size_t r = 0; r < 4; ++r) CHECK(fetched[r] == expected[r]);
  });
}

TEST_CASE("ldmatrix by quarters across fetches two fragments of B from its columns, as K lies for Q K^T") {
  Tile b(3);
  Tile columns = transposed(b);
  pagedkv_test::emulator.run(32, [&] {
    std::uint32_t fetched[4];
    pagedkv::ptx::ldmatrix_x4(fetched, &columns.at(quarters_across(lane())));
    for (int n = 0; n < 2; ++n) {
      const auto expected = registers_of_b(b, 8 * n);
      CHECK(fetched[2 * n] == expected[0]);
      CHECK(fetched[2 * n + 1] == expected[1]);
    }
  });
}

TEST_CASE("ldmatrix by quarters down, transposed, fetches two fragments of B from its rows, as V lies for P V") {
  Tile b(5);
  pagedkv_test::emulator.run(32, [&] {
    std::uint32_t fetched[4];
    pagedkv::ptx::ldmatrix_x4_transposed(fetched, &b.at(quarters_down(lane())));
    for (int n = 0; n < 2; ++n) {
      const auto expected = registers_of_b(b, 8 * n);
      CHECK(fetched[2 * n] == expected[0]);
      CHECK(fetched[2 * n + 1] == expected[1]);
    }
  });
}

TEST_CASE("two accumulators side by side lie in the lanes as an A fragment") {
  for (int l = 0; l < 32; ++l) {
    for (int n = 0; n < 2; ++n) {
      for (int half = 0; half < 2; ++half) {
        for (int e = 0; e < 2; ++e) {
          const Coordinate c = fragment_c(l, 2 * half + e), a = fragment_a(l, 2 * (2 * n + half) + e);
          CHECK(a == Coordinate{c.row, c.column + 8 * n});
        }
      }
    }
  }
}
