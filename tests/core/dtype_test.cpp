// Storage types against definitions written a second time: every code, and every place where rounding turns.
#include "pagedkv/core/dtype.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace pagedkv;

namespace {

// A small floating format as its standard describes it, in double.
struct Format {
  int exponent_bits, fraction_bits;
  bool has_infinity;  // if not, the last exponent holds numbers too and only the all-ones code is NaN

  unsigned sign_bit() const { return 1u << (exponent_bits + fraction_bits); }
  unsigned last_finite() const {
    const unsigned all_ones = sign_bit() - 1;
    return has_infinity ? (all_ones & ~((1u << fraction_bits) - 1)) - 1 : all_ones - 1;
  }
  double value(unsigned code) const {
    const double sign = code & sign_bit() ? -1.0 : 1.0;
    const unsigned magnitude = code & (sign_bit() - 1);
    const int exponent = static_cast<int>(magnitude >> fraction_bits);
    const int fraction = static_cast<int>(magnitude & ((1u << fraction_bits) - 1));
    const int bias = (1 << (exponent_bits - 1)) - 1;
    if (magnitude > last_finite() + (has_infinity ? 1u : 0u)) return std::numeric_limits<double>::quiet_NaN();
    if (has_infinity && magnitude == last_finite() + 1) return sign * std::numeric_limits<double>::infinity();
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
    return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
  }
};

constexpr Format bf16_format{8, 7, true};
constexpr Format f16_format{5, 10, true};
constexpr Format fp8_format{4, 3, false};

// Rounds by searching the table of all values of the format: nearest, ties to the even code.
class SlowRounder {
 public:
  explicit SlowRounder(Format format) : format_(format) {
    for (unsigned code = 0; code <= format.last_finite(); ++code) values_.push_back(format.value(code));
    // Where the next value would stand if the exponent had no end: half way to it, rounding goes to infinity.
    beyond_ = 2 * values_.back() - values_[values_.size() - 2];
  }

  unsigned operator()(float x) const {
    const unsigned sign = std::signbit(x) ? format_.sign_bit() : 0;
    const double magnitude = std::abs(static_cast<double>(x));
    const auto above = std::lower_bound(values_.begin(), values_.end(), magnitude);
    const auto code = static_cast<unsigned>(above - values_.begin());
    if (above == values_.end()) {
      const bool overflows = magnitude >= (values_.back() + beyond_) / 2;
      return sign | (format_.has_infinity && overflows ? code : code - 1);
    }
    if (*above == magnitude) return sign | code;
    const double below = values_[code - 1];
    if (magnitude - below < *above - magnitude) return sign | (code - 1);
    if (magnitude - below > *above - magnitude) return sign | code;
    return sign | (code % 2 == 0 ? code : code - 1);
  }

  const std::vector<double>& values() const { return values_; }

 private:
  Format format_;
  std::vector<double> values_;  // of all codes from 0 to the largest finite one
  double beyond_;
};

template <class T>
int count_wrong_values(Format format, unsigned num_codes) {
  int wrong = 0;
  for (unsigned code = 0; code < num_codes; ++code) {
    const T stored{static_cast<decltype(T::bits)>(code)};
    const double expected = format.value(code);
    const float got = to_float(stored);
    const bool same = std::isnan(expected)
                          ? std::isnan(got)
                          : static_cast<double>(got) == expected && std::signbit(got) == std::signbit(expected);
    if (!same) ++wrong;
  }
  return wrong;
}

template <class T>
int count_lost_codes(Format format, unsigned num_codes) {
  int lost = 0;
  for (unsigned code = 0; code < num_codes; ++code) {
    const T stored{static_cast<decltype(T::bits)>(code)};
    const T back = from_float<T>(to_float(stored));
    const bool both_nan = std::isnan(format.value(code)) && std::isnan(format.value(back.bits));
    if (back.bits != code && !both_nan) ++lost;
  }
  return lost;
}

template <class T>
int count_wrong_roundings(Format format) {
  const SlowRounder expected(format);
  int wrong = 0;
  const auto check = [&](float x) {
    for (float signed_x : {x, -x})
      if (from_float<T>(signed_x).bits != expected(signed_x)) ++wrong;
  };
  const float infinite = std::numeric_limits<float>::infinity();
  // Each value and each midpoint between neighbours, with the floats just below and above.
  for (std::size_t code = 0; code + 1 < expected.values().size(); ++code) {
    const double low = expected.values()[code], high = expected.values()[code + 1];
    for (double place : {low, (low + high) / 2, high}) {
      const auto x = static_cast<float>(place);
      check(x);
      check(std::nextafter(x, 0.f));
      check(std::nextafter(x, infinite));
    }
  }
  // Floats of every size, in steps that share no factor with 2^32; NaNs are another test's business.
  for (std::uint64_t bits = 0; bits < 0x7f800000u; bits += 4099)
    check(detail::bits_float(static_cast<std::uint32_t>(bits)));
  check(infinite);
  check(std::numeric_limits<float>::max());
  check(std::numeric_limits<float>::denorm_min());
  return wrong;
}

}  // namespace

TEST_CASE("every bf16, f16 and fp8 code has the value that its standard gives it") {
  CHECK(count_wrong_values<bf16>(bf16_format, 65536) == 0);
  CHECK(count_wrong_values<f16>(f16_format, 65536) == 0);
  CHECK(count_wrong_values<fp8_e4m3>(fp8_format, 256) == 0);
}

TEST_CASE("the landmarks of each format are where the standards put them") {
  CHECK(to_float(bf16{0x3f80}) == 1.f);
  CHECK(to_float(f16{0x3c00}) == 1.f);
  CHECK(to_float(f16{0x7bff}) == 65504.f);
  CHECK(to_float(f16{0x0001}) == 0x1p-24f);
  CHECK(to_float(fp8_e4m3{0x38}) == 1.f);
  CHECK(to_float(fp8_e4m3{0x7e}) == 448.f);
  CHECK(to_float(fp8_e4m3{0x01}) == 0x1p-9f);
  CHECK(std::isnan(to_float(fp8_e4m3{0x7f})));
  CHECK(std::isnan(to_float(fp8_e4m3{0xff})));
}

TEST_CASE("every code survives the way to float and back") {
  CHECK(count_lost_codes<bf16>(bf16_format, 65536) == 0);
  CHECK(count_lost_codes<f16>(f16_format, 65536) == 0);
  CHECK(count_lost_codes<fp8_e4m3>(fp8_format, 256) == 0);
}

TEST_CASE("from_float rounds to nearest even: at every midpoint, beside it, and over all sizes") {
  CHECK(count_wrong_roundings<bf16>(bf16_format) == 0);
  CHECK(count_wrong_roundings<f16>(f16_format) == 0);
  CHECK(count_wrong_roundings<fp8_e4m3>(fp8_format) == 0);
}

TEST_CASE("too large becomes infinity in bf16 and f16, and the largest number in fp8") {
  CHECK(from_float<f16>(65519.f).bits == 0x7bff);
  CHECK(from_float<f16>(65520.f).bits == 0x7c00);
  CHECK(from_float<bf16>(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(from_float<fp8_e4m3>(1e9f).bits == 0x7e);
  CHECK(from_float<fp8_e4m3>(-std::numeric_limits<float>::infinity()).bits == 0xfe);
}

TEST_CASE("NaN stays NaN and keeps its sign, whatever its payload") {
  for (std::uint32_t payload : {0x1u, 0x1fffu, 0x2000u, 0xffffu, 0x10000u, 0x400000u, 0x7fffffu})
    for (std::uint32_t sign : {0u, 0x80000000u}) {
      const float nan = detail::bits_float(sign | 0x7f800000u | payload);
      CHECK(std::isnan(bf16_format.value(from_float<bf16>(nan).bits)));
      CHECK(std::isnan(f16_format.value(from_float<f16>(nan).bits)));
      CHECK(std::isnan(fp8_format.value(from_float<fp8_e4m3>(nan).bits)));
      CHECK((from_float<bf16>(nan).bits >> 15) == (sign >> 31));
      CHECK((from_float<f16>(nan).bits >> 15) == (sign >> 31));
      CHECK((from_float<fp8_e4m3>(nan).bits >> 7) == static_cast<int>(sign >> 31));
    }
}

TEST_CASE("int8 rounds ties to even and saturates, and NaN becomes 0") {
  for (int i = -140 * 8; i <= 140 * 8; ++i) {
    const float x = static_cast<float>(i) / 8;
    CHECK(from_float<std::int8_t>(x) == static_cast<std::int8_t>(std::clamp(std::nearbyint(x), -128.f, 127.f)));
  }
  CHECK(from_float<std::int8_t>(1e30f) == 127);
  CHECK(from_float<std::int8_t>(-std::numeric_limits<float>::infinity()) == -128);
  CHECK(from_float<std::int8_t>(std::nanf("")) == 0);
  for (int i = -128; i <= 127; ++i) CHECK(from_float<std::int8_t>(to_float(static_cast<std::int8_t>(i))) == i);
}

TEST_CASE("the storage types are the ones that the library names") {
  static_assert(StorageType<float> && StorageType<bf16> && StorageType<f16> && StorageType<fp8_e4m3> &&
                StorageType<std::int8_t>);
  static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2 && sizeof(fp8_e4m3) == 1);
}
