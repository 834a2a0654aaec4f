// Tokens for the tests of the prefix cache: consecutive numbers, so that a look tells where a prefix ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

using Tokens = std::vector<std::int32_t>;

inline Tokens iota(int count, int first = 0) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}
