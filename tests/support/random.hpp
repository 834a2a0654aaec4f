// Random numbers for tests: the same on every machine, from a seed.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace pagedkv_test {

/// splitmix64 (Steele et al. 2014): 64 bits of state, any seed is good.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// An integer in [low, high].
  int between(int low, int high) {
    const auto count = static_cast<std::uint64_t>(static_cast<std::int64_t>(high) - low + 1);
    return low + static_cast<int>(next() % count);
  }

  /// True once in `n` times.
  bool one_in(int n) { return between(1, n) == 1; }

  /// A float in [-bound, bound].
  float real(float bound) { return bound * (static_cast<float>(next() >> 40) * 0x1p-23f - 1.f); }

  int pick(std::initializer_list<int> choices) {
    return choices.begin()[between(0, static_cast<int>(choices.size()) - 1)];
  }

 private:
  std::uint64_t state_;
};

}  // namespace pagedkv_test
