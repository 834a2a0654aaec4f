// PendingBlocks: blocks that an open step computes and that will be published, so that twins in one step can be told.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/cache/prefix_index.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// What a block will be an entry for. Of a first block the parent is none, `generation` is the epoch and `extra` begins
/// with the key of the scope: its root need not exist yet.
struct PendingKey {
  EntryId parent;
  std::uint32_t generation;
  std::span<const std::int32_t> tokens;
  std::string extra;
};

/// One record for each admission that computes something publishable; a record counts while its step is open and its
/// block is being written, so until the commit, or until its sequence gives up. Compared exactly, one after the other:
/// a step admits few.
class PendingBlocks {
 public:
  explicit PendingBlocks(const BlockAllocator& allocator)
      : allocator_(allocator), block_size_(static_cast<std::size_t>(allocator.block_size())) {}

  /// Makes room for one record: the next add() does not throw. Nothing that can be observed changes.
  void prepare() {
    if (records_.size() < records_.capacity()) return;
    for (std::size_t i = records_.size(); i-- > 0;)
      if (!counts(records_[i])) erase(i);
    const std::size_t wanted = 2 * records_.size() + 1;
    tokens_.reserve(wanted * block_size_);  // first: that records_ has room says that both have
    records_.reserve(wanted);
  }

  /// `block` is going to hold what `key` says when the step with this serial is committed.
  void add(BlockId block, std::uint64_t step, PendingKey&& key) {
    for (std::size_t i = 0; i < records_.size(); ++i)
      if (records_[i].block == block) erase(i--);  // of an earlier owner
    records_.push_back({.step = step,
                        .block = block,
                        .parent = key.parent,
                        .generation = key.generation,
                        .extra = std::move(key.extra)});
    tokens_.insert(tokens_.end(), key.tokens.begin(), key.tokens.end());
  }

  bool contains(const PendingKey& key) const {
    for (std::size_t i = 0; i < records_.size(); ++i) {
      const Record& r = records_[i];
      if (r.parent == key.parent && r.generation == key.generation && r.extra == key.extra && counts(r) &&
          std::ranges::equal(tokens_of(i), key.tokens))
        return true;
    }
    return false;
  }

  std::uint64_t state_hash() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < records_.size(); ++i) {
      const Record& r = records_[i];
      if (!counts(r)) continue;
      std::uint64_t h = hash_mix(0, to_index(r.block));
      for (const char byte : r.extra) h = hash_mix(h, std::int32_t{byte});
      for (const std::int32_t token : tokens_of(i)) h = hash_mix(h, token);
      sum += h;
    }
    return sum;
  }

 private:
  struct Record {
    std::uint64_t step;
    BlockId block;
    EntryId parent;
    std::uint32_t generation;
    std::string extra;
  };

  bool counts(const Record& record) const {
    return allocator_.state(record.block) == BlockState::writing && allocator_.is_open(record.step);
  }

  std::span<const std::int32_t> tokens_of(std::size_t i) const {
    return std::span(tokens_).subspan(i * block_size_, block_size_);
  }

  // The last record takes its place.
  void erase(std::size_t i) {
    std::copy_n(tokens_.end() - static_cast<std::ptrdiff_t>(block_size_), block_size_,
                tokens_.begin() + static_cast<std::ptrdiff_t>(i * block_size_));
    tokens_.resize(tokens_.size() - block_size_);
    if (i + 1 < records_.size()) records_[i] = std::move(records_.back());
    records_.pop_back();
  }

  const BlockAllocator& allocator_;
  std::size_t block_size_;
  std::vector<Record> records_;
  std::vector<std::int32_t> tokens_;  // [records, block_size]
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
