// The integer and floating arithmetic that host and device share.
#include "pagedkv/core/math.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>

using namespace pagedkv;

TEST_CASE("ceil_div counts a started group as a whole one") {
  for (int a = 0; a < 100; ++a)
    for (int b = 1; b < 40; ++b) CHECK(ceil_div(a, b) == static_cast<int>(std::ceil(static_cast<double>(a) / b)));
}

TEST_CASE("ceil_div does not overflow at the end of its type") {
  constexpr int most = std::numeric_limits<int>::max();
  CHECK(ceil_div(most, 1) == most);
  CHECK(ceil_div(most, most) == 1);
  CHECK(ceil_div(most, 2) == 1 << 30);
  CHECK(ceil_div(std::numeric_limits<std::int64_t>::max(), std::int64_t{16}) == std::int64_t{1} << 59);
}

TEST_CASE("round_up gives the next multiple and leaves multiples alone") {
  static_assert(round_up(0, 16) == 0);
  static_assert(round_up(1, 16) == 16);
  static_assert(round_up(16, 16) == 16);
  static_assert(round_up(17, 16) == 32);
  static_assert(round_up(17, 5) == 20);
}

TEST_CASE("min, max and clamp agree on their bounds") {
  static_assert(min(2, 3) == 2 && min(3, 2) == 2);
  static_assert(max(2, 3) == 3 && max(3, 2) == 3);
  static_assert(clamp(-1, 0, 9) == 0 && clamp(4, 0, 9) == 4 && clamp(10, 0, 9) == 9);
}

TEST_CASE("exp stays within its stated error over the range that softmax uses") {
  for (float x = -87.f; x <= 87.f; x += 0.01f) {
    const double exact = std::exp(static_cast<double>(x));
    const double allowed = 2e-7 + 1e-7 * std::abs(static_cast<double>(x));
    CHECK(std::abs(static_cast<double>(pagedkv::exp(x)) - exact) <= allowed * exact);
  }
}

TEST_CASE("a hidden key weighs exactly nothing") {
  CHECK(pagedkv::exp2(-infinity) == 0.f);
  CHECK(pagedkv::exp(-infinity) == 0.f);
  CHECK(pagedkv::log(0.f) == -infinity);
}

TEST_CASE("the logarithm constants belong together") {
  CHECK(log2_e * ln_2 == doctest::Approx(1.0).epsilon(1e-7));
  CHECK(pagedkv::exp2(log2_e) == doctest::Approx(std::exp(1.0)).epsilon(1e-7));
}

TEST_CASE("tanh saturates at one") {
  CHECK(pagedkv::tanh(0.f) == 0.f);
  CHECK(pagedkv::tanh(100.f) == 1.f);
  CHECK(pagedkv::tanh(-100.f) == -1.f);
  CHECK(pagedkv::tanh(0.5f) == doctest::Approx(std::tanh(0.5)).epsilon(1e-6));
}
