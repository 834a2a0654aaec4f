// Lanes: the floats that this CPU computes side by side, and what attention and matrix products do with them.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

// Files of one program may be compiled for different CPUs. So each class and function that depends on these numbers has
// one of them, or a type made of it, among its template arguments or parameters, or is inlined always.
#if defined(__AVX512F__)
inline constexpr int num_lanes = 16;
#elif defined(__AVX__)
inline constexpr int num_lanes = 8;
#else
inline constexpr int num_lanes = 4;
#endif

// GCC and Clang compile arithmetic on these types to whatever vector instructions they are allowed to use.
using Lanes [[gnu::vector_size(num_lanes * sizeof(float))]] = float;
using LaneBits [[gnu::vector_size(num_lanes * sizeof(float))]] = std::uint32_t;
using HalfLaneBits [[gnu::vector_size(num_lanes * sizeof(std::uint16_t))]] = std::uint16_t;

namespace detail {

// Lists of lanes, because GCC makes one instruction of each; its __builtin_convertvector takes four, and nvcc does not
// understand shuffles by constants.
template <int... i>
LaneBits widen(HalfLaneBits bits, std::integer_sequence<int, i...>) {
  return LaneBits{bits[i]...};
}

template <int Offset, int... i>
Lanes interleave(Lanes a, Lanes b, std::integer_sequence<int, i...>) {
  return Lanes{(i % 2 == 0 ? a : b)[Offset + i / 2]...};
}

/// Half of the lanes of `a` and as many of `b`. A Step of 1 or 2: side by side, from each four lanes the first or last
/// two. Otherwise `a`'s in front of `b`'s, in fours of which every second one is taken.
template <int Step, int Half, int... i>
Lanes half_of_each(Lanes a, Lanes b, std::integer_sequence<int, i...>) {
  if constexpr (Step < 4)
    return Lanes{(i % 2 == 0 ? a : b)[i / 4 * 4 + 2 * Half + i % 4 / 2]...};
  else
    return Lanes{(i < num_lanes / 2 ? a : b)[(2 * (i / 4 % (num_lanes / 8)) + Half) * 4 + i % 4]...};
}

/// Lane i of the result is lane i + Places.
template <int Places, int... i>
Lanes rotate(Lanes lanes, std::integer_sequence<int, i...>) {
  return Lanes{lanes[(i + Places) % num_lanes]...};
}

using EachLane = std::make_integer_sequence<int, num_lanes>;

}  // namespace detail

/// num_lanes elements, as floats.
template <StorageType T>
inline Lanes load_lanes(const T* source) {
  Lanes lanes;
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(&lanes, source, sizeof lanes);
  } else if constexpr (std::is_same_v<T, bf16>) {
    HalfLaneBits bits;
    std::memcpy(&bits, source, sizeof bits);
    lanes = std::bit_cast<Lanes>(detail::widen(bits, detail::EachLane{}) << 16);
  } else if constexpr (std::is_same_v<T, f16>) {  // as in to_float()
    HalfLaneBits half;
    std::memcpy(&half, source, sizeof half);
    const LaneBits bits = detail::widen(half, detail::EachLane{}), magnitude = bits & 0x7fffu;
    const LaneBits finite = std::bit_cast<LaneBits>(std::bit_cast<Lanes>(magnitude << 13) * 0x1p112f);
    const LaneBits special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
    lanes = std::bit_cast<Lanes>((bits & 0x8000u) << 16 | (magnitude >= 0x7c00u ? special : finite));
  } else {
    float values[num_lanes];
    for (int i = 0; i < num_lanes; ++i) values[i] = to_float(source[i]);
    std::memcpy(&lanes, values, sizeof lanes);
  }
  return lanes;
}

inline void store_lanes(Lanes lanes, float* target) { std::memcpy(target, &lanes, sizeof lanes); }

/// Pairs of bf16 as they lie in memory, widened without a shuffle.
[[gnu::always_inline]] inline LaneBits load_pairs(const void* source) {
  LaneBits pairs;
  std::memcpy(&pairs, source, sizeof pairs);
  return pairs;
}
inline Lanes first_of(LaneBits pairs) { return std::bit_cast<Lanes>(pairs << 16); }
inline Lanes second_of(LaneBits pairs) { return std::bit_cast<Lanes>(pairs & 0xffff0000u); }

/// Turns num_lanes first ones and num_lanes second ones into pairs side by side.
[[gnu::always_inline]] inline void join_pairs(float* values) {
  const Lanes first = load_lanes(values), second = load_lanes(values + num_lanes);
  store_lanes(detail::interleave<0>(first, second, detail::EachLane{}), values);
  store_lanes(detail::interleave<num_lanes / 2>(first, second, detail::EachLane{}), values + num_lanes);
}

[[gnu::always_inline]] inline Lanes all_lanes(float x) { return x - Lanes{}; }

/// 2^x for x <= 0, with a relative error below 2^-22: 0 below -126, NaN of NaN, 1 of 0.
inline Lanes exp2_of_negative(Lanes x) {
  const Lanes shifted = x + 0x1.8p23f;  // keeps no fraction: the last bits are the nearest integer
  const Lanes f = x - (shifted - 0x1.8p23f);
  Lanes p = all_lanes(0.000153533619f);  // (2^f - 1) / f for |f| <= 0.5, fitted for the least largest error
  for (const float c : {0.00133988744f, 0.00961843736f, 0.0555033247f, 0.240226479f, 0.693147203f}) p = p * f + c;
  const LaneBits power = std::bit_cast<LaneBits>(p * f + 1.f) + (std::bit_cast<LaneBits>(shifted) << 23);
  const Lanes finite = x < -126.f ? Lanes{} : std::bit_cast<Lanes>(power);
  return x == x ? finite : x;
}

namespace detail {

/// One round of transpose(), of all pairs of rows that are Step apart.
template <int Step, int NumLanes = num_lanes>
[[gnu::always_inline]] inline void exchange(Lanes (&rows)[NumLanes]) {
  for (int i = 0; i < num_lanes; ++i) {
    if ((i & Step) != 0) continue;
    const Lanes a = rows[i], b = rows[i + Step];
    rows[i] = half_of_each<Step, 0>(a, b, EachLane{});
    rows[i + Step] = half_of_each<Step, 1>(a, b, EachLane{});
  }
}

}  // namespace detail

/// rows[i][j] becomes rows[j][i]. Each round exchanges a bit of the row's number for one of the lane's; the order is that
/// in which a CPU's cheapest shuffles, within four lanes and of four lanes, leave the lanes' bits in theirs.
template <int NumLanes = num_lanes>
inline void transpose(Lanes (&rows)[NumLanes]) {
  detail::exchange<2>(rows);
  detail::exchange<1>(rows);
  if constexpr (num_lanes > 4) detail::exchange<4>(rows);
  if constexpr (num_lanes > 8) detail::exchange<8>(rows);
}

/// One number of all lanes, by `join` of lanes, in an order that is always the same: halves, quarters and so on.
template <int Width = num_lanes / 2, class F>
inline float reduce(Lanes lanes, F&& join) {
  const Lanes joined = join(lanes, detail::rotate<Width>(lanes, detail::EachLane{}));
  if constexpr (Width == 1)
    return joined[0];
  else
    return reduce<Width / 2>(joined, join);
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
