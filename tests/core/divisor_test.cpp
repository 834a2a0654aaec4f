// Divisor against the machine's own division.
#include "pagedkv/core/divisor.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>

using pagedkv::Divisor;

TEST_CASE("a divisor gives exact quotients and remainders from 0 to 2^31 - 1") {
  constexpr std::int64_t largest = std::numeric_limits<int>::max();
  const auto check = [](std::int64_t n, const Divisor& divisor, int d) {
    REQUIRE(divisor.quotient(static_cast<int>(n)) == n / d);
    REQUIRE(divisor.remainder(static_cast<int>(n)) == n % d);
  };
  const auto check_around_multiples = [&](int d) {
    const Divisor divisor(d);
    for (std::int64_t multiple = 0; multiple <= largest; multiple += std::max<std::int64_t>(d, (largest / 1000 / d) * d))
      for (std::int64_t n = std::max<std::int64_t>(0, multiple - 1); n <= std::min(multiple + 1, largest); ++n)
        check(n, divisor, d);
    check(largest, divisor, d);
  };
  for (int d = 1; d <= 300; ++d) check_around_multiples(d);
  for (int shift = 9; shift < 31; ++shift)
    for (const int d : {(1 << shift) - 1, 1 << shift, (1 << shift) + 1}) check_around_multiples(d);
  check_around_multiples(std::numeric_limits<int>::max());
}
