// Storage types of K and V: bits, and conversions to and from float that round alike on host and device.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {

/// bfloat16: the upper half of a float (1 sign, 8 exponent, 7 fraction bits).
struct bf16 {
  std::uint16_t bits;
};

/// IEEE 754 binary16 (1 sign, 5 exponent, 10 fraction bits).
struct f16 {
  std::uint16_t bits;
};

/// OCP FP8 E4M3: 1 sign, 4 exponent, 3 fraction bits; no infinity, largest 448, NaN is 0x7f and 0xff.
struct fp8_e4m3 {
  std::uint8_t bits;
};

namespace detail {

PAGEDKV_HD inline std::uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return std::bit_cast<std::uint32_t>(x);
#endif
}

PAGEDKV_HD inline float bits_float(std::uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  return std::bit_cast<float>(u);
#endif
}

}  // namespace detail

PAGEDKV_HD inline float to_float(float x) { return x; }
PAGEDKV_HD inline float to_float(std::int8_t x) { return static_cast<float>(x); }
PAGEDKV_HD inline float to_float(bf16 x) { return detail::bits_float(static_cast<std::uint32_t>(x.bits) << 16); }

PAGEDKV_HD inline float to_float(f16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return detail::bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));  // inf, NaN
  // Reinterpreted with a float's exponent bias the value is 2^-112 times too small; the product is exact, also for
  // subnormal numbers.
  return detail::bits_float(sign | detail::float_bits(detail::bits_float(magnitude << 13) * 0x1p112f));
#endif
}

PAGEDKV_HD inline float to_float(fp8_e4m3 x) {
  const std::uint32_t sign = (x.bits & 0x80u) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return detail::bits_float(sign | 0x7fc00000u);
  return detail::bits_float(sign | detail::float_bits(detail::bits_float(magnitude << 20) * 0x1p120f));
}

/// from_float<T>(x): x in storage type T, rounded to nearest, ties to even.
/// fp8 and int8 saturate; NaN becomes 0 in int8.
template <class T>
PAGEDKV_HD T from_float(float x);

template <>
PAGEDKV_HD inline float from_float<float>(float x) {
  return x;
}

template <>
PAGEDKV_HD inline bf16 from_float<bf16>(float x) {
  const std::uint32_t u = detail::float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};  // a quiet NaN
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <>
PAGEDKV_HD inline f16 from_float<f16>(float x) {
  const std::uint32_t u = detail::float_bits(x);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and up round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end of the sum
    const float shifted = detail::bits_float(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (detail::float_bits(shifted) - 0x3f000000u))};
  }
  return {static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13))};
}

template <>
PAGEDKV_HD inline fp8_e4m3 from_float<fp8_e4m3>(float x) {
  const std::uint32_t u = detail::float_bits(x);
  const auto sign = static_cast<std::uint8_t>((u >> 24) & 0x80u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint8_t>(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return {static_cast<std::uint8_t>(sign | 0x7eu)};  // 448 and up saturate
  if (magnitude < 0x3c800000u) {  // below 2^-6: 16384 has a unit in the last place of 2^-9, fp8's smallest step
    const float shifted = detail::bits_float(magnitude) + 16384.f;
    return {static_cast<std::uint8_t>(sign | (detail::float_bits(shifted) - 0x46800000u))};
  }
  return {static_cast<std::uint8_t>(sign | ((magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20))};
}

template <>
PAGEDKV_HD inline std::int8_t from_float<std::int8_t>(float x) {
  if (!(x > -128.f)) return x != x ? std::int8_t{0} : std::int8_t{-128};
  if (x >= 127.f) return 127;
  const float rounded = (x + 12582912.f) - 12582912.f;  // 1.5 * 2^23: the sum keeps no fraction and rounds ties to even
  return static_cast<std::int8_t>(rounded);
}

/// A type in which K and V can be stored.
template <class T>
concept StorageType = requires(T x, float y) {
  { to_float(x) } -> std::same_as<float>;
  { from_float<T>(y) } -> std::same_as<T>;
};

}  // namespace v0
}  // namespace pagedkv
