// NaiveCache: the prefix cache of the oracle; a list of published blocks, searched from one end to the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/naive_memory.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace pagedkv_test {

/// A row's value stands for all tokens up to it, with the scope, so the value of its last row tells what a block is.
class NaiveCache {
 public:
  struct Entry {
    int epoch;
    std::uint64_t parent;  // the value in front of the block
    std::vector<std::uint64_t> rows;
    bool has_extra;
    std::vector<std::int32_t> tokens;  // of the whole prefix
    int scope;
    std::uint64_t value() const { return rows.back(); }
  };

  NaiveCache(int num_blocks, int block_size)
      : block_size_(block_size), entries_(static_cast<std::size_t>(num_blocks)) {}

  std::optional<Entry>& operator[](BlockId id) { return entries_[static_cast<std::size_t>(to_index(id))]; }
  const std::optional<Entry>& operator[](BlockId id) const { return entries_[static_cast<std::size_t>(to_index(id))]; }
  const std::vector<std::optional<Entry>>& entries() const { return entries_; }

  int epoch() const { return epoch_; }
  void start_epoch() { ++epoch_; }

  /// Evictions are observed, not predicted.
  void forget_unpublished(const BlockAllocator& blocks) {
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (!blocks.is_published(BlockId{static_cast<std::int32_t>(i)})) entries_[i].reset();
  }

  /// The current blocks with this value.
  std::vector<BlockId> copies(std::uint64_t value) const {
    std::vector<BlockId> found;
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i] && entries_[i]->epoch == epoch_ && entries_[i]->value() == value)
        found.push_back(BlockId{static_cast<std::int32_t>(i)});
    return found;
  }

  /// Full blocks that a prompt with these values begins with.
  int num_hit_blocks(std::span<const std::uint64_t> values) const {
    int count = 0;
    while ((count + 1) * block_size_ <= std::ssize(values) && !copies(value_behind(values, count)).empty()) ++count;
    return count;
  }

  /// Rows that some cached block behind `num_blocks` hit ones shares with the prompt; blocks with extras share none.
  int num_hit_rows(std::span<const std::uint64_t> values, std::uint64_t salt, int num_blocks) const {
    const std::uint64_t parent = num_blocks == 0 ? salt : value_behind(values, num_blocks - 1);
    const auto rest = values.subspan(static_cast<std::size_t>(num_blocks * block_size_));
    std::ptrdiff_t most = 0;
    for (const auto& entry : entries_) {
      if (!entry || entry->epoch != epoch_ || entry->parent != parent || entry->has_extra) continue;
      most = std::max(most, std::ranges::mismatch(entry->rows, rest).in1 - entry->rows.begin());
    }
    return static_cast<int>(most);
  }

  std::uint64_t value_behind(std::span<const std::uint64_t> values, int block) const {
    return values[static_cast<std::size_t>((block + 1) * block_size_ - 1)];
  }

  template <class Read>
  void check(const BlockAllocator& blocks, Read read) const {
    std::set<std::pair<int, std::uint64_t>> cached;
    for (const auto& entry : entries_)
      if (entry) cached.insert({entry->epoch, entry->value()});
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const BlockId id{static_cast<std::int32_t>(i)};
      const std::optional<Entry>& entry = entries_[i];
      expect(blocks.is_published(id) == entry.has_value(),
             "publish publishes every full committed block, and nothing else does");
      if (!entry) continue;
      expect(std::ssize(entry->tokens) == block_size_ || cached.count({entry->epoch, entry->parent}) == 1,
             "a prefix outlives its continuations");
      for (int row = 0; row < block_size_; ++row)
        expect(read(id, row) == entry->rows[static_cast<std::size_t>(row)], "published rows are frozen");
    }
  }

 private:
  int block_size_;
  int epoch_ = 0;
  std::vector<std::optional<Entry>> entries_;
};

}  // namespace pagedkv_test
