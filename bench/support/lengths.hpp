// The batches of the decode benchmarks: how many keys each sequence has; equal lengths and five ways to mix them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// `name` stands in the benchmark's name and in the peers' table: "8x4096", "lognormal32".
struct Lengths {
  std::string name;
  std::vector<std::int32_t> kv_len;  // [num_seqs]

  int num_seqs() const { return static_cast<int>(kv_len.size()); }
  int longest() const { return *std::max_element(kv_len.begin(), kv_len.end()); }
  std::int64_t total() const { return std::accumulate(kv_len.begin(), kv_len.end(), std::int64_t{0}); }
};

inline Lengths equal_lengths(int num_seqs, int kv_len) {
  return {std::to_string(num_seqs) + "x" + std::to_string(kv_len),
          std::vector<std::int32_t>(static_cast<std::size_t>(num_seqs), kv_len)};
}

/// One sequence, at `place`, is much longer than its num_seqs - 1 neighbours.
inline Lengths one_long(int num_seqs, int kv_len, int place, int long_len) {
  Lengths lengths = equal_lengths(num_seqs, kv_len);
  lengths.kv_len[static_cast<std::size_t>(place)] = long_len;
  lengths.name = std::to_string(num_seqs - 1) + "x" + std::to_string(kv_len) + "+1x" + std::to_string(long_len);
  return lengths;
}

/// Every length from 1 to max_len is as likely. mt19937's numbers are the same on every machine; those of the standard
/// distributions are not, so they are made by hand here and below.
inline Lengths uniform_lengths(int num_seqs, int max_len, unsigned seed) {
  std::mt19937 random(seed);
  Lengths lengths = equal_lengths(num_seqs, 0);
  for (std::int32_t& len : lengths.kv_len)
    len = 1 + static_cast<std::int32_t>(random() % static_cast<unsigned>(max_len));
  lengths.name = "uniform" + std::to_string(num_seqs);
  return lengths;
}

/// exp of a normal number with mean 7 and deviation 1 (the median is 1,097 keys), cut to 16 .. 32,768: what chats look
/// like. The normal number is a sum of twelve uniform ones.
inline Lengths log_normal_lengths(int num_seqs, unsigned seed) {
  std::mt19937 random(seed);
  Lengths lengths = equal_lengths(num_seqs, 0);
  for (std::int32_t& len : lengths.kv_len) {
    int sum = 0;  // of sixteen-bit numbers: 12 * 2^15 on average
    for (int i = 0; i < 12; ++i) sum += static_cast<int>(random() % 65536);
    const double normal = sum / 65536. - 6.;
    len = static_cast<std::int32_t>(std::clamp(std::exp(7. + normal), 16., 32768.));
  }
  lengths.name = "lognormal" + std::to_string(num_seqs);
  return lengths;
}

/// The mixed batches that the peers were measured on.
inline std::vector<Lengths> mixed_lengths() {
  return {uniform_lengths(8, 8192, 1),  uniform_lengths(32, 8192, 2), uniform_lengths(128, 8192, 3),
          one_long(32, 1024, 5, 65536), one_long(8, 512, 0, 32768),   log_normal_lengths(32, 4),
          log_normal_lengths(128, 5)};
}

/// `num_sets` lists of `set_size` different numbers below `limit` in random order, one behind the other. The lists
/// share no number as long as `limit` allows it; where it does not, they start again from the first.
inline std::vector<std::int32_t> shuffled_sets(std::int64_t num_sets, std::int64_t set_size, std::int64_t limit,
                                               unsigned seed) {
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(limit));
  std::iota(numbers.begin(), numbers.end(), 0);
  std::mt19937_64 random(seed);
  const std::int64_t wanted = num_sets * set_size, different = std::min(wanted, limit);
  for (std::int64_t i = 0; i < different; ++i) {
    const auto rest = static_cast<std::uint64_t>(limit - i);
    std::swap(numbers[static_cast<std::size_t>(i)],
              numbers[static_cast<std::size_t>(i + static_cast<std::int64_t>(random() % rest))]);
  }
  numbers.resize(static_cast<std::size_t>(different));
  numbers.reserve(static_cast<std::size_t>(wanted));
  for (std::int64_t i = different; i < wanted; ++i) numbers.push_back(numbers[static_cast<std::size_t>(i - different)]);
  return numbers;
}

/// How many calls, each on K and V of its own, are replayed in a row: a gigabyte of them, so that what is read is cold.
inline int num_rotating_sets(std::int64_t call_bytes) {
  return static_cast<int>(
      std::clamp((std::int64_t{1'000'000'000} + call_bytes - 1) / call_bytes, std::int64_t{2}, std::int64_t{512}));
}

}  // namespace bench
