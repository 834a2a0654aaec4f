// NaiveSequence: what the oracle knows of a sequence; lists of tokens, and the chunks of its table by number.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/naive_memory.hpp"

namespace pagedkv_test {

struct NaiveSequence {
  int scope = 0;           // of the prefix cache
  std::uint64_t salt = 0;  // the scope's
  std::vector<std::int32_t> tokens = {};
  std::vector<std::uint64_t> values = {};  // what the row of each token must hold
  int committed = 0;
  int drafts = 0;  // the last of the tokens
  int released_blocks = 0;
  bool may_publish = true;
  int plan = -1;                 // of the uncommitted tokens
  std::vector<int> rows = {};    // in that plan, of the uncommitted tokens
  std::vector<int> chunks = {};  // of 64 entries of the table each; none of a chunk without entries

  static constexpr int none = -1;
  static constexpr int chunk_size = 64;

  int size() const { return static_cast<int>(tokens.size()); }
  std::uint64_t last_value() const { return values.empty() ? salt : values.back(); }

  void push(std::int32_t token) {
    values.push_back(next_value(last_value(), token));
    tokens.push_back(token);
  }

  /// Forgets what a truncation forgets, but neither rows nor chunks.
  void shorten(int num_tokens, int block_size) {
    drafts = std::max(0, drafts - (size() - num_tokens));
    tokens.resize(static_cast<std::size_t>(num_tokens));
    values.resize(static_cast<std::size_t>(num_tokens));
    committed = std::min(committed, num_tokens);
    released_blocks = std::min(released_blocks, (num_tokens + block_size - 1) / block_size);
  }

  /// The first tokens as those of a new sequence, in the same chunks.
  NaiveSequence beginning(int num_tokens, int block_size) const {
    NaiveSequence other = *this;
    other.shorten(num_tokens, block_size);
    other.committed = num_tokens;
    other.drafts = 0;
    other.plan = none;
    other.rows.clear();
    return other;
  }
};

}  // namespace pagedkv_test
