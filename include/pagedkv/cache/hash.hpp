// The one 64-bit mixing function of the cache: it narrows look-ups and sums up states; it never decides a hit.
#pragma once

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

}  // namespace detail

/// The hash of one block in the prefix cache. Every hit is verified against tokens, so collisions cost time, never
/// correctness; `key` makes them hard to provoke from outside.
struct BlockHash {
  std::uint64_t key = 0x243f6a8885a308d3u;

  std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    std::uint64_t h = detail::hash_mix(key, parent);
    for (const std::int32_t token : tokens) h = detail::hash_mix(h, token);
    for (const char byte : extra) h = detail::hash_mix(h, static_cast<std::uint64_t>(static_cast<unsigned char>(byte)));
    return h;
  }
};

}  // namespace v0
}  // namespace pagedkv
