// Bpe: byte-pair encoding of one word, and the alphabet in which byte-level tokenizer files spell bytes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace engine {

/// The character that stands for `byte` in a vocabulary (GPT-2's alphabet): printable Latin-1 stands for itself, the
/// other 68 bytes are U+0100 onwards, so that no token holds a space or a control character. 1 or 2 bytes of UTF-8.
std::string_view symbol_of(unsigned char byte);

/// The bytes that a token spells; a token with any character outside the alphabet stands for itself.
std::string bytes_of(std::string_view token);

/// The token that spells `bytes`.
std::string spelling_of(std::string_view bytes);

/// Sennrich et al. 2016, on bytes: the pair of neighbours with the lowest rank merges first, the leftmost of equals.
class Bpe {
 public:
  static constexpr std::int32_t no_token = -1;

  /// `byte_ids`: the token of each single byte. Those that have `no_token` are left out of words, as by the library
  /// that trains such vocabularies.
  explicit Bpe(const std::array<std::int32_t, 256>& byte_ids) : byte_ids_(byte_ids) {}

  /// Adds the next rank: `left` and `right` merge into `merged`. A pair given twice keeps the later rank.
  void add_merge(std::int32_t left, std::int32_t right, std::int32_t merged);

  /// Appends the tokens of `word` to `ids`. O(n log n) in its bytes.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t id;
  };
  const Merge* find_merge(std::int32_t left, std::int32_t right) const;

  std::array<std::int32_t, 256> byte_ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // key: left in the upper half, right in the lower
  std::int32_t num_ranks_ = 0;
};

}  // namespace engine
