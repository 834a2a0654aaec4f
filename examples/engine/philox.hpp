// Philox4x32-10: random numbers without a state: the same (key, counter) gives the same number, whoever asked before.
#pragma once

#include <array>
#include <cstdint>

namespace engine {

/// Four random words for a 128-bit counter and a 64-bit key (Salmon et al., "Parallel random numbers: as easy as 1, 2,
/// 3", SC 2011).
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53} * counter[0], b = std::uint64_t{0xcd9e8d57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9e3779b9, key[1] + 0xbb67ae85};
  }
  return counter;
}

/// Uniform in [0, 1), 53 bits: what sample `sample` draws for the token at `position` under `seed`.
inline double uniform(std::uint64_t seed, std::uint32_t sample, std::uint32_t position) {
  const auto words =
      philox({position, sample, 0, 0}, {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return static_cast<double>(((std::uint64_t{words[0]} << 32) | words[1]) >> 11) * 0x1p-53;
}

}  // namespace engine
