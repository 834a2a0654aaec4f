// Afternoon: the manager of KV blocks that an engineer writes in an afternoon, as a rival for benchmarks: std::deque of
// free blocks, std::unordered_map of prefixes, std::list for the least recently used, blocks by std::shared_ptr.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <list>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bench {

/// Correct for one thread, as far as it goes: no steps, no holds, no all-or-nothing under failure, tables are copied.
class Afternoon {
 public:
  struct Block;
  using BlockPtr = std::shared_ptr<Block>;
  using Lru = std::list<BlockPtr>;

  struct Block {
    std::int32_t id;
    int ref_count = 0;
    bool is_cached = false;
    std::uint64_t hash = 0;  // of the prefix that ends here
    std::vector<std::int32_t> tokens = {};
    Lru::iterator place = {};  // while cached and unused
  };

  struct Sequence {
    std::vector<BlockPtr> table = {};
    int size = 0;
  };

  /// Hands out the blocks `ids`, a permutation of 0 .. ids.size() - 1, from the last to the first.
  Afternoon(std::span<const std::int32_t> ids, int block_size) : block_size_(block_size) {
    std::vector<BlockPtr> blocks(ids.size());
    for (std::size_t i = 0; i < blocks.size(); ++i)
      blocks[i] = std::make_shared<Block>(Block{.id = static_cast<std::int32_t>(i)});
    for (const std::int32_t id : ids) free_.push_back(std::move(blocks[static_cast<std::size_t>(id)]));
    prefixes_.reserve(ids.size());
  }

  /// Appends `count` blocks to `table`; false if there are not so many.
  bool allocate(int count, std::vector<BlockPtr>& table) {
    if (static_cast<std::size_t>(count) > free_.size() + lru_.size()) return false;
    for (int i = 0; i < count; ++i) {
      if (free_.empty()) evict();
      table.push_back(std::move(free_.back()));
      free_.pop_back();
      table.back()->ref_count = 1;
    }
    return true;
  }

  void release(BlockPtr block) {
    if (--block->ref_count > 0) return;
    if (block->is_cached) {
      Block& b = *block;
      b.place = lru_.insert(lru_.end(), std::move(block));
    } else {
      free_.push_back(std::move(block));
    }
  }

  void retain(const BlockPtr& block) {
    if (block->ref_count++ == 0) lru_.erase(block->place);
  }

  /// Writes the slots of `count` more tokens behind `slots`; a shared tail is replaced, its copy put into `copies`.
  bool append(Sequence& sequence, int count, std::vector<std::int64_t>& slots) {
    const int used = sequence.size % block_size_;
    const bool copies_tail = used > 0 && sequence.table.back()->ref_count > 1;
    const int room = used > 0 ? block_size_ - used : 0;
    const int num_new = count > room ? (count - room + block_size_ - 1) / block_size_ : 0;
    if (copies_tail) {
      std::vector<BlockPtr> fresh;
      if (!allocate(1, fresh)) return false;
      copies.push_back({sequence.table.back()->id, fresh[0]->id});
      release(std::exchange(sequence.table.back(), std::move(fresh[0])));
    }
    if (num_new > 0 && !allocate(num_new, sequence.table)) return false;
    for (int i = 0; i < count; ++i, ++sequence.size)
      slots.push_back(std::int64_t{sequence.table[static_cast<std::size_t>(sequence.size / block_size_)]->id} *
                          block_size_ +
                      sequence.size % block_size_);
    return true;
  }

  Sequence fork(const Sequence& sequence) {
    for (const BlockPtr& block : sequence.table) ++block->ref_count;
    return sequence;
  }

  void truncate(Sequence& sequence, int size) {
    const auto num_kept = static_cast<std::size_t>((size + block_size_ - 1) / block_size_);
    while (sequence.table.size() > num_kept) {
      release(std::move(sequence.table.back()));
      sequence.table.pop_back();
    }
    sequence.size = size;
  }

  /// The cached blocks that `tokens` begin with, decided by their tokens.
  void match(std::span<const std::int32_t> tokens, std::vector<BlockPtr>& hits) const {
    std::uint64_t hash = 0;
    for (; !tokens.empty() && tokens.size() >= static_cast<std::size_t>(block_size_);
         tokens = tokens.subspan(static_cast<std::size_t>(block_size_))) {
      const auto block_tokens = tokens.first(static_cast<std::size_t>(block_size_));
      hash = hash_of(hash, block_tokens);
      const auto found = prefixes_.find(hash);
      if (found == prefixes_.end() || !std::ranges::equal(found->second->tokens, block_tokens)) return;
      hits.push_back(found->second);
    }
  }

  bool admit(std::span<const std::int32_t> tokens, Sequence& sequence, std::vector<std::int64_t>& slots) {
    match(tokens.first(tokens.size() - 1), sequence.table);
    for (const BlockPtr& block : sequence.table) retain(block);
    sequence.size = static_cast<int>(sequence.table.size()) * block_size_;
    if (append(sequence, static_cast<int>(tokens.size()) - sequence.size, slots)) return true;
    truncate(sequence, 0);
    return false;
  }

  void publish(std::span<const std::int32_t> tokens, const Sequence& sequence) {
    std::uint64_t hash = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(sequence.size / block_size_); ++i) {
      const BlockPtr& block = sequence.table[i];
      const auto block_tokens =
          tokens.subspan(i * static_cast<std::size_t>(block_size_), static_cast<std::size_t>(block_size_));
      hash = hash_of(hash, block_tokens);
      if (block->is_cached || !prefixes_.try_emplace(hash, block).second) continue;
      block->is_cached = true;
      block->hash = hash;
      block->tokens.assign(block_tokens.begin(), block_tokens.end());
    }
  }

  int num_free() const { return static_cast<int>(free_.size()); }

  struct Copy {
    std::int32_t source;
    std::int32_t destination;
  };
  std::vector<Copy> copies;  // the caller clears it

 private:
  static std::uint64_t hash_of(std::uint64_t parent, std::span<const std::int32_t> tokens) {
    const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
    return std::hash<std::string_view>{}(bytes) ^ (parent + 0x9e3779b97f4a7c15u + (parent << 6) + (parent >> 2));
  }

  void evict() {
    BlockPtr victim = std::move(lru_.front());
    lru_.pop_front();
    prefixes_.erase(victim->hash);
    victim->is_cached = false;
    free_.push_back(std::move(victim));
  }

  int block_size_;
  std::deque<BlockPtr> free_;
  std::unordered_map<std::uint64_t, BlockPtr> prefixes_;
  Lru lru_;
};

}  // namespace bench
