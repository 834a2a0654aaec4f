// The hashes of the cache: one that narrows look-ups by tokens, one that sums up states; neither decides a hit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Folds `value` into the running hash `seed` (the finaliser of splitmix64).
constexpr std::uint64_t hash_mix(std::uint64_t seed, std::uint64_t value) {
  std::uint64_t x = (seed ^ value) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t hash_mix(std::uint64_t seed, std::int32_t value) {
  return hash_mix(seed, static_cast<std::uint64_t>(static_cast<std::uint32_t>(value)));
}

/// A product of two 64-bit numbers.
struct Product {
  std::uint64_t low;
  std::uint64_t high;
};

constexpr Product multiply(std::uint64_t a, std::uint64_t b) {
#if defined(__SIZEOF_INT128__)
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  return {.low = static_cast<std::uint64_t>(product), .high = static_cast<std::uint64_t>(product >> 64)};
#else
  const std::uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
  const std::uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
  const std::uint64_t carried = a0 * b1 + (middle & 0xffffffffu);
  return {.low = a * b, .high = a1 * b1 + (middle >> 32) + (carried >> 32)};
#endif
}

constexpr std::uint64_t multiply_fold(std::uint64_t a, std::uint64_t b) {
  const Product product = multiply(a, b);
  return product.low ^ product.high;
}

}  // namespace detail

/// The hash of one block in the prefix cache. Every hit is verified against tokens, so collisions cost time, never
/// correctness; a secret `key` makes them hard to provoke from outside. The same on every machine.
///
/// Sixteen tokens at a time are summed by NH (Black et al., "UMAC: Fast and Secure Message Authentication", 1999): 128
/// bits that two different inputs share with a chance of 2^-64 over random secrets. A fold joins them with the hash so
/// far. The sums of all blocks of a prompt are independent of each other; only the folds, one multiplication a block,
/// are a chain.
class BlockHash {
 public:
  explicit constexpr BlockHash(std::uint64_t key = 0x243f6a8885a308d3u) {
    for (std::size_t i = 0; i < secrets_.size(); ++i) secrets_[i] = key = detail::hash_mix(key, std::uint64_t{i});
  }

  /// `parent` is the hash of the block before and so stands for all tokens before; `extra` is mostly empty.
  constexpr std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens,
                                     std::string_view extra) const {
    std::uint64_t h = parent;
    for (; tokens.size() >= stripe; tokens = tokens.subspan(stripe)) h = fold(h, tokens.data());
    if (!tokens.empty()) {
      std::array<std::int32_t, stripe> padded{};
      for (std::size_t i = 0; i < tokens.size(); ++i) padded[i] = tokens[i];
      h = fold(h, padded.data());
    }
    return extra.empty() ? h : fold_bytes(h, extra);
  }

 private:
  static constexpr std::size_t stripe = 16;  // tokens

  static constexpr std::uint64_t word(const std::int32_t* tokens) {
    return static_cast<std::uint32_t>(tokens[0]) | std::uint64_t{static_cast<std::uint32_t>(tokens[1])} << 32;
  }

  constexpr std::uint64_t fold(std::uint64_t h, const std::int32_t* tokens) const {
    std::uint64_t low = 0, high = 0;
    for (std::size_t i = 0; i < stripe / 2; i += 2) {
      const auto [l, u] =
          detail::multiply(word(tokens + 2 * i) + secrets_[i], word(tokens + 2 * i + 2) + secrets_[i + 1]);
      low += l;
      high += u + (low < l ? 1 : 0);
    }
    return detail::multiply_fold(h ^ low ^ secrets_[8], high ^ secrets_[9]);
  }

  constexpr std::uint64_t fold_bytes(std::uint64_t h, std::string_view bytes) const {
    h = detail::multiply_fold(h ^ secrets_[10], bytes.size() ^ secrets_[11]);
    for (std::size_t begin = 0; begin < bytes.size(); begin += 8) {
      std::uint64_t w = 0;
      for (std::size_t i = begin; i < bytes.size() && i < begin + 8; ++i)
        w |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * (i - begin));
      h = detail::multiply_fold(h ^ secrets_[10], w ^ secrets_[11]);
    }
    return h;
  }

  std::array<std::uint64_t, 12> secrets_{};
};

}  // namespace v0
}  // namespace pagedkv
