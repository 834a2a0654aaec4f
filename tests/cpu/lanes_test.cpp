// Lanes against the same operations one by one: conversions, powers of two, transposes.
#include "pagedkv/cpu/lanes.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "pagedkv/core/math.hpp"

using namespace pagedkv;
using namespace pagedkv::cpu;

namespace {

template <class T>
void check_all_bits() {
  for (std::uint32_t first = 0; first < 1 << 16; first += num_lanes) {
    T source[num_lanes];
    for (int i = 0; i < num_lanes; ++i) source[i].bits = static_cast<std::uint16_t>(first + static_cast<unsigned>(i));
    const Lanes lanes = load_lanes(source);
    for (int i = 0; i < num_lanes; ++i) {
      const float x = lanes[i], expected = to_float(source[i]);
      if (std::bit_cast<std::uint32_t>(x) != std::bit_cast<std::uint32_t>(expected)) FAIL(source[i].bits);
    }
  }
}

}  // namespace

TEST_CASE("lanes of every bf16 and every f16 are what to_float makes of them") {
  check_all_bits<bf16>();
  check_all_bits<f16>();
}

TEST_CASE("powers of two are exact at integers, close between them, 0 far below, and NaN of NaN") {
  const auto power_of = [](float x) { return exp2_of_negative(all_lanes(x))[num_lanes - 1]; };
  for (int i = 0; i >= -126; --i) CHECK(power_of(static_cast<float>(i)) == std::exp2(static_cast<float>(i)));
  for (float x = 0; x > -126; x -= 0.0037f) {
    const double expected = std::exp2(static_cast<double>(x));
    if (!(std::abs(static_cast<double>(power_of(x)) - expected) <= 0x1p-22 * expected)) FAIL(x);
  }
  CHECK(power_of(-126.01f) == 0.f);
  CHECK(power_of(-1e30f) == 0.f);
  CHECK(power_of(-infinity) == 0.f);
  CHECK(std::isnan(power_of(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(power_of(std::bit_cast<float>(0x7fc00001u))));  // its last bits are not an integer to be shifted
}

TEST_CASE("a transposed square has its columns as rows, and a reduction joins every lane once") {
  Lanes rows[num_lanes];
  for (int i = 0; i < num_lanes; ++i)
    for (int j = 0; j < num_lanes; ++j) rows[i][j] = static_cast<float>(100 * i + j);
  transpose(rows);
  for (int i = 0; i < num_lanes; ++i)
    for (int j = 0; j < num_lanes; ++j) CHECK(rows[i][j] == static_cast<float>(100 * j + i));
  Lanes powers{};
  for (int i = 0; i < num_lanes; ++i) powers[i] = static_cast<float>(1 << i);
  CHECK(reduce(powers, [](Lanes a, Lanes b) { return a + b; }) == static_cast<float>((1 << num_lanes) - 1));
}
