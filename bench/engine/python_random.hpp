// PythonRandom: the numbers of Python's random module, so that runs defined by a Python script can be repeated.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>

namespace bench {

/// random.seed(n) for 0 <= n < 2^32: the generator is MT19937 (Matsumoto and Nishimura 1998) and its state is filled by
/// their init_by_array.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint32_t seed) : PythonRandom(Seed{seed}) {}

  /// random.randint: both ends are included. Numbers that do not fit are drawn again.
  std::int32_t randint(std::int32_t lowest, std::int32_t highest) {
    const auto count = static_cast<std::uint32_t>(highest - lowest) + 1;
    const int bits = std::bit_width(count);
    std::uint32_t drawn = next() >> (32 - bits);
    while (drawn >= count) drawn = next() >> (32 - bits);
    return lowest + static_cast<std::int32_t>(drawn);
  }

  /// random.random: 0 <= x < 1, 53 bits.
  double random() {
    const std::uint32_t high = next() >> 5, low = next() >> 6;
    return (high * 67108864. + low) / 9007199254740992.;
  }

 private:
  struct Seed {
    using result_type = std::uint_least32_t;
    static constexpr std::size_t size = std::mt19937::state_size;
    result_type key;

    template <class Iterator>
    void generate(Iterator begin, Iterator end) {
      std::array<std::uint32_t, size> state{19650218u};
      for (std::uint32_t i = 1; i < size; ++i) state[i] = 1812433253u * mixed(state[i - 1]) + i;
      std::uint32_t at = 1;
      const auto advance = [&] {
        if (++at < size) return;
        state[0] = state[size - 1];
        at = 1;
      };
      for (std::size_t i = 0; i < size; ++i, advance())
        state[at] = (state[at] ^ mixed(state[at - 1]) * 1664525u) + key;  // a key of one word
      for (std::size_t i = 1; i < size; ++i, advance())
        state[at] = (state[at] ^ mixed(state[at - 1]) * 1566083941u) - at;
      state[0] = 0x80000000u;
      for (std::size_t i = 0; begin != end; ++begin) *begin = state[i++];
    }

   private:
    static std::uint32_t mixed(std::uint32_t x) { return x ^ (x >> 30); }
  };

  explicit PythonRandom(Seed seed) : engine_(seed) {}
  std::uint32_t next() { return static_cast<std::uint32_t>(engine_()); }

  std::mt19937 engine_;
};

}  // namespace bench
