// Divisor: division by a number that is known only at run time, as a multiplication.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {

/// Quotients and remainders of 0 <= n < 2^31 by `divisor` >= 1, exact, a few instructions where a division takes thirty
/// (Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994, fig. 4.1).
struct Divisor {
  std::uint32_t divisor = 1;
  std::uint32_t magic = 1;
  std::uint32_t shift = 0;

  constexpr Divisor() = default;
  PAGEDKV_HD constexpr explicit Divisor(int d) : divisor(static_cast<std::uint32_t>(d)) {
    while ((std::uint64_t{1} << shift) < divisor) ++shift;
    magic = static_cast<std::uint32_t>((((std::uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }

  PAGEDKV_HD constexpr int quotient(int n) const {
    const auto bits = static_cast<std::uint32_t>(n);
    const auto high = static_cast<std::uint32_t>((std::uint64_t{bits} * magic) >> 32);
    return static_cast<int>((high + bits) >> shift);
  }
  PAGEDKV_HD constexpr int remainder(int n) const { return n - quotient(n) * static_cast<int>(divisor); }

  friend constexpr bool operator==(const Divisor&, const Divisor&) = default;
};

}  // namespace v0
}  // namespace pagedkv
