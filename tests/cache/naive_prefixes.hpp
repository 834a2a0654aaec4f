// NaivePrefixes: the prefix cache of the oracle; for each published block the whole prefix it ends, compared in full.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "cache/naive_memory.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace pagedkv_test {

class NaivePrefixes {
 public:
  using Tokens = std::vector<std::int32_t>;

  explicit NaivePrefixes(int block_size) : block_size_(block_size) {}

  /// Records the full committed blocks of a sequence behind the last one that is published; a block that a window dropped
  /// and blocks from before a reset end that.
  void publish(std::uint64_t salt, const Tokens& tokens, std::span<const BlockId> full_blocks) {
    std::size_t first = full_blocks.size();
    while (first > 0 && published_.count(full_blocks[first - 1]) == 0) {
      if (full_blocks[first - 1] == BlockId::none) return;
      --first;
    }
    if (first > 0 && published_.at(full_blocks[first - 1]).epoch != epoch_) return;
    for (std::size_t i = first; i < full_blocks.size(); ++i)
      published_.emplace(full_blocks[i], Key{epoch_, salt, prefix(tokens, i + 1)});
  }

  /// Nothing that is published is found any more.
  void reset() { ++epoch_; }

  /// Does the block hold what it must as the index-th of a sequence that found it?
  bool holds(BlockId block, std::uint64_t salt, const Tokens& tokens, std::size_t index) const {
    const auto found = published_.find(block);
    return found != published_.end() && found->second == Key{epoch_, salt, prefix(tokens, index + 1)};
  }

  /// The keys that can be found.
  int num_keys() const {
    std::set<Key> keys;
    for (const auto& [block, key] : published_)
      if (key.epoch == epoch_) keys.insert(key);
    return static_cast<int>(keys.size());
  }

  /// Evictions are observed, not predicted.
  void forget_unpublished(const BlockAllocator& blocks) {
    std::erase_if(published_, [&blocks](const auto& entry) { return !blocks.is_published(entry.first); });
  }

  /// The longest hit of a prompt: all tokens but the last at most.
  int cached_tokens(std::uint64_t salt, const Tokens& tokens, bool partial_blocks) const {
    const int limit = static_cast<int>(tokens.size()) - 1;
    int best = 0;
    for (const auto& [block, key] : published_) {
      if (key.epoch != epoch_ || key.salt != salt) continue;
      const auto common = std::ranges::mismatch(key.tokens, tokens).in1 - key.tokens.begin();
      best = std::max(best, std::min(static_cast<int>(common), limit));
    }
    return partial_blocks ? best : best - best % block_size_;
  }

  /// Has no copy of this prefix's last block an owner?
  bool is_idle(std::uint64_t salt, std::span<const std::int32_t> first_tokens, const BlockAllocator& blocks) const {
    const Key wanted{epoch_, salt, Tokens(first_tokens.begin(), first_tokens.end())};
    return std::ranges::all_of(
        published_, [&](const auto& entry) { return entry.second != wanted || blocks.is_idle(entry.first); });
  }

  /// `read` gives the value of a row; without it, rows are not looked at.
  void check(const BlockAllocator& blocks, const std::function<std::uint64_t(BlockId, int)>& read = {}) const {
    for (int i = 0; i < blocks.num_blocks(); ++i)
      expect(blocks.is_published(BlockId{i}) == (published_.count(BlockId{i}) == 1),
             "publish publishes every full committed block, and nothing else does");
    std::set<Key> keys;
    for (const auto& [block, key] : published_) keys.insert(key);
    for (const auto& [block, key] : published_) {
      const auto& [epoch, salt, tokens] = key;
      const int last_begin = static_cast<int>(tokens.size()) - block_size_;
      expect(last_begin == 0 || keys.count({epoch, salt, Tokens(tokens.begin(), tokens.end() - block_size_)}) == 1,
             "a prefix outlives its continuations");
      if (!read) continue;
      std::uint64_t value = salt;
      for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
        value = next_value(value, tokens[static_cast<std::size_t>(i)]);
        expect(i < last_begin || read(block, i - last_begin) == value, "published rows are frozen");
      }
    }
  }

 private:
  struct Key {
    int epoch;
    std::uint64_t salt;
    Tokens tokens;
    auto operator<=>(const Key&) const = default;
  };

  Tokens prefix(const Tokens& tokens, std::size_t num_blocks) const {
    return {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(num_blocks) * block_size_};
  }

  int block_size_;
  int epoch_ = 0;
  std::map<BlockId, Key> published_;
};

}  // namespace pagedkv_test
