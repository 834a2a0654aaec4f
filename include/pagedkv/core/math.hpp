// Small arithmetic with one source for host and device: std:: functions need compiler flags in device code.
#pragma once

#include <cmath>
#include <concepts>
#include <limits>

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {

/// a / b rounded up, for a >= 0 and b > 0; unlike (a + b - 1) / b it cannot overflow.
template <std::integral T>
PAGEDKV_HD constexpr T ceil_div(T a, T b) {
  return a / b + (a % b > 0 ? 1 : 0);
}

/// The smallest multiple of `multiple` that is not below a.
template <std::integral T>
PAGEDKV_HD constexpr T round_up(T a, T multiple) {
  return ceil_div(a, multiple) * multiple;
}

template <class T>
PAGEDKV_HD constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
PAGEDKV_HD constexpr T max(T a, T b) {
  return a < b ? b : a;
}

/// max() in one instruction on the device. Of a NaN and a number it may be either.
PAGEDKV_HD inline float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return ::fmaxf(a, b);
#else
  return a < b ? b : a;
#endif
}

template <class T>
PAGEDKV_HD constexpr T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}

inline constexpr float log2_e = 1.4426950408889634f;
inline constexpr float ln_2 = 0.6931471805599453f;
inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// On the device one instruction, with a relative error of up to 2^-22, and 0 below 2^-126.
PAGEDKV_HD inline float exp2(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}

/// e^x by way of exp2: the rounding of x * log2_e makes a relative error of up to about |x| * 1e-7.
PAGEDKV_HD inline float exp(float x) { return exp2(x * log2_e); }

PAGEDKV_HD inline float log(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  return std::log(x);
#endif
}

PAGEDKV_HD inline float tanh(float x) {
#if defined(__CUDA_ARCH__)
  return ::tanhf(x);
#else
  return std::tanh(x);
#endif
}

}  // namespace v0
}  // namespace pagedkv
