// NaivePrefixes: the prefix cache of the oracle; for each published block the whole prefix it ends, compared in full.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/naive_memory.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace pagedkv_test {

class NaivePrefixes {
 public:
  using Tokens = std::vector<std::int32_t>;

  explicit NaivePrefixes(int block_size) : block_size_(block_size) {}

  /// Records the full committed blocks of a sequence. A block that a window dropped is passed only if one behind it was
  /// published before.
  void publish(std::uint64_t salt, const Tokens& tokens, std::span<const BlockId> full_blocks) {
    for (std::size_t i = 0; i < full_blocks.size(); ++i) {
      const BlockId block = full_blocks[i];
      if (block == BlockId::none) {
        const auto next = std::find_if(full_blocks.begin() + static_cast<std::ptrdiff_t>(i), full_blocks.end(),
                                       [](BlockId b) { return b != BlockId::none; });
        if (next == full_blocks.end() || published_.count(*next) == 0) return;
        continue;
      }
      const auto length = (static_cast<std::ptrdiff_t>(i) + 1) * block_size_;
      const Key key{salt, Tokens(tokens.begin(), tokens.begin() + length)};
      const auto [at, is_new] = published_.emplace(block, key);
      expect(is_new || at->second == key, "a published block never changes its tokens");
    }
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
      if (key.first != salt) continue;
      const auto common = std::ranges::mismatch(key.second, tokens).in1 - key.second.begin();
      best = std::max(best, std::min(static_cast<int>(common), limit));
    }
    return partial_blocks ? best : best - best % block_size_;
  }

  /// Has no copy of this prefix's last block an owner?
  bool is_idle(std::uint64_t salt, std::span<const std::int32_t> prefix, const BlockAllocator& blocks) const {
    const Key wanted{salt, Tokens(prefix.begin(), prefix.end())};
    return std::ranges::all_of(
        published_, [&](const auto& entry) { return entry.second != wanted || blocks.is_idle(entry.first); });
  }

  void check(const BlockAllocator& blocks, const std::function<std::uint64_t(BlockId, int)>& read) const {
    for (int i = 0; i < blocks.num_blocks(); ++i)
      expect(blocks.is_published(BlockId{i}) == (published_.count(BlockId{i}) == 1),
             "publish publishes every full committed block, and nothing else does");
    std::set<Key> keys;
    for (const auto& [block, key] : published_) keys.insert(key);
    for (const auto& [block, key] : published_) {
      const auto& [salt, tokens] = key;
      const int last_begin = static_cast<int>(tokens.size()) - block_size_;
      expect(last_begin == 0 || keys.count({salt, Tokens(tokens.begin(), tokens.end() - block_size_)}) == 1,
             "a prefix outlives its continuations");
      std::uint64_t value = salt;
      for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
        value = next_value(value, tokens[static_cast<std::size_t>(i)]);
        expect(i < last_begin || read(block, i - last_begin) == value, "published rows are frozen");
      }
    }
  }

 private:
  using Key = std::pair<std::uint64_t, Tokens>;

  int block_size_;
  std::map<BlockId, Key> published_;
};

}  // namespace pagedkv_test
