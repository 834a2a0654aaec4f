// PrefixStore: the blocks that the prefix cache keeps; they enter by publish() and leave by eviction.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/block_table.hpp"
#include "pagedkv/cache/events.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/prefix_match.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/cache/prefix_tree.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Counted since the cache was made.
struct PrefixStats {
  std::int64_t hit_tokens = 0;        // of admitted requests: taken from the cache
  std::int64_t missed_tokens = 0;     // of admitted requests: to be computed
  std::int64_t admitted = 0;          // requests
  std::int64_t rejected = 0;          // refusals, so a request that waits is counted each time it is tried
  std::int64_t rejected_twins = 0;    // of these, Refusal::twin
  std::int64_t published_blocks = 0;  // duplicates included
  std::int64_t duplicate_blocks = 0;  // published though the same tokens were there already
  std::int64_t remapped_blocks = 0;   // given back because the same tokens were there already
  std::int64_t evicted_blocks = 0;
  std::int64_t dropped_pins = 0;  // older pins that gave way to newer ones

  bool operator==(const PrefixStats&) const = default;
};

namespace detail {

/// The tree of what is cached, the order of what is idle and the log of both, kept in step with the allocator.
template <class Eviction, class Hash>
class PrefixStore {
 public:
  PrefixStore(BlockAllocator& allocator, int event_capacity, Hash hash)
      : allocator_(allocator),
        tree_(allocator.num_blocks(), allocator.block_size(), std::move(hash)),
        eviction_(allocator.num_blocks()),
        events_(event_capacity, allocator.block_size()) {
    allocator_.install(
        {.context = this,
         .became_idle = [](void* self, std::span<const BlockId> blocks) { cast(self)->became_idle(blocks); },
         .left_idle = [](void* self, std::span<const BlockId> blocks) { cast(self)->left_idle(blocks); },
         .evict = [](void* self, int num_blocks) { cast(self)->evict(num_blocks); }});
  }
  PrefixStore(const PrefixStore&) = delete;  // the allocator holds its address
  PrefixStore& operator=(const PrefixStore&) = delete;
  ~PrefixStore() {
    clear();
    allocator_.uninstall();
  }

  const PrefixTree<Hash>& tree() const { return tree_; }
  Eviction& eviction() { return eviction_; }
  EventLog& events() { return events_; }
  PrefixStats& stats() { return stats_; }
  const PrefixStats& stats() const { return stats_; }

  /// A block that is not published though an entry for its tokens is there.
  struct Duplicate {
    int index;
    EntryId entry;
  };

  /// Publishes the full committed blocks of a table behind those that are published. Blocks whose tokens are there
  /// already are published as copies or, if `duplicates` is given, listed in it instead. Running out of memory changes
  /// nothing.
  void publish(std::span<const std::int32_t> tokens, const BlockTable& table, int num_full, const PrefixScope& scope,
               const Retention& retention, std::vector<Duplicate>* duplicates) {
    int first = num_full;
    for (; first > 0 && !allocator_.is_published(table[first - 1]); --first)
      if (table[first - 1] == BlockId::none) return;  // a sliding window has dropped what would be the parent
    if (first == num_full) return;
    scope.validate();
    retention.validate();
    const std::string key = scope_key(scope);
    EntryId parent = first > 0 ? tree_.entry_of(table[first - 1]) : tree_.find_root(key);
    if (first > 0) {
      require(std::ranges::equal(tree_.tokens_of(parent), block_tokens(tokens, first - 1, allocator_.block_size())),
              "PrefixCache::publish: tokens", "those of the blocks published before", "others");
      require(tree_.extra(tree_.root(parent)) == key, "PrefixCache::publish: scope",
              "that of the blocks published before", "another");
      if (!tree_.is_current(parent)) return;
    }
    for (int i = first; i < num_full; ++i)
      require(allocator_.state(table[i]) == BlockState::sealed, "PrefixCache::publish: blocks", "full and committed",
              "others");

    const auto num_new = static_cast<std::size_t>(num_full - first);
    tree_.prepare(num_new + 1, (scope.extras.empty() ? 0 : num_new) + 1);
    events_.prepare(static_cast<std::size_t>(tree_.entry_bound()) + num_new + 1);
    new_entries_.clear();
    new_entries_.reserve(num_new);
    if (duplicates != nullptr) duplicates->reserve(num_new);
    Publication at{.index = first, .parent = parent, .retention = retention, .duplicates = duplicates};
    at.root_key = key;
    at.hash = first > 0 ? tree_.hash_of(parent) : tree_.hash_of(tree_.root_seed(), {}, key);
    undo_on_failure(
        [&] {
          while (at.index < num_full) publish_batch(at, tokens, table, num_full, scope.extras);
        },
        [&] {  // out of memory
          for (int i = at.index; i-- > first;)
            if (allocator_.is_published(table[i])) take_out(table[i], false);
        });
    stats_.published_blocks += at.num_published;
    stats_.duplicate_blocks += at.num_published - std::ssize(new_entries_);
    for (const EntryId entry : new_entries_) events_.stored(tree_, entry);
  }

  /// Forgets everything; blocks with owners stay with them. O(entries).
  void clear() {
    for (EntryId id{0}; static_cast<int>(id) < tree_.entry_bound(); id = EntryId{static_cast<int>(id) + 1}) {
      if (!tree_.is_alive(id)) continue;
      for (BlockId block = tree_.canonical(id); block != BlockId::none; block = tree_.next_copy(block)) {
        allocator_.unpublish(block);
        eviction_.forgotten(block, tree_.hash_of(id), false);
      }
    }
    tree_.clear();
    events_.cleared();
  }

  /// From now on nothing that is cached can be found. O(1).
  void start_epoch() {
    tree_.start_epoch();
    events_.cleared();
  }

  void check_invariants() const {
    allocator_.check_invariants();
    tree_.check_invariants();
    [[maybe_unused]] int num_published = 0, num_idle = 0;
    for (int i = 0; i < allocator_.num_blocks(); ++i) {
      const BlockId block{i};
      PAGEDKV_ASSERT(allocator_.is_idle(block) == eviction_.contains(block));
      num_idle += allocator_.is_idle(block);
      if (!allocator_.is_published(block)) continue;
      ++num_published;
      PAGEDKV_ASSERT(tree_.is_alive(tree_.entry_of(block)));
    }
    PAGEDKV_ASSERT(num_idle == eviction_.size() && num_idle == allocator_.num_idle());
    for (int i = 0; i < tree_.entry_bound(); ++i) num_published -= tree_.num_copies(EntryId{i});
    PAGEDKV_ASSERT(num_published == 0);
  }

  std::uint64_t state_hash() const {
    std::uint64_t h = hash_mix(hash_mix(allocator_.state_hash(), tree_.state_hash()), eviction_.state_hash());
    if (is_descent_of(descent_.from.id)) h = hash_mix(h, to_index(tree_.canonical(descent_.reached.id)));
    return h;
  }

 private:
  // Where a publication stands: the next block, the entry in front of it (none: the root is still to be made) and the
  // hash of that.
  struct Publication {
    int index;
    EntryId parent;
    Retention retention;
    std::vector<Duplicate>* duplicates;
    std::string root_key = {};
    std::uint64_t hash = 0;
    std::int64_t num_published = 0;
  };

  static PrefixStore* cast(void* self) { return static_cast<PrefixStore*>(self); }

  // Hashes some blocks before it looks the first one up. Blocks with extra bytes go one by one.
  void publish_batch(Publication& at, std::span<const std::int32_t> tokens, const BlockTable& table, int num_full,
                     std::span<const PrefixExtra> extras) {
    constexpr int batch_size = 64;
    const int block_size = allocator_.block_size();
    const int first = at.index;
    const int count = extras.empty() ? min(batch_size, num_full - first) : 1;
    std::string extra = extras_key(extras, first * block_size, block_size);
    std::array<std::uint64_t, batch_size> hashes;
    for (int i = 0; i < count; ++i) {
      at.hash = tree_.hash_of(at.hash, block_tokens(tokens, first + i, block_size), extra);
      hashes[static_cast<std::size_t>(i)] = at.hash;
      tree_.prefetch(at.hash);
    }
    for (int i = 0; i < count; ++i)
      publish_block(at, table[first + i], hashes[static_cast<std::size_t>(i)],
                    block_tokens(tokens, first + i, block_size), std::move(extra));
  }

  void publish_block(Publication& at, BlockId block, std::uint64_t hash, std::span<const std::int32_t> tokens,
                     std::string&& extra) {
    EntryId entry = at.parent == EntryId::none ? EntryId::none : tree_.find(at.parent, hash, tokens, extra);
    if (entry != EntryId::none && at.duplicates != nullptr) {
      at.duplicates->push_back({.index = at.index++, .entry = entry});
      at.parent = entry;
      return;
    }
    eviction_.published(block, hash, at.retention);  // the last thing that can fail
    if (entry == EntryId::none) {
      if (at.parent == EntryId::none) {
        const std::uint64_t root_hash = tree_.hash_of(tree_.root_seed(), {}, at.root_key);
        at.parent = tree_.insert(EntryId::none, root_hash, {}, std::move(at.root_key));
        events_.root_stored(at.parent, tree_.extra(at.parent));
      }
      entry = tree_.insert(at.parent, hash, tokens, std::move(extra));
      new_entries_.push_back(entry);
    }
    allocator_.publish(block);
    tree_.attach(entry, block);
    ++at.num_published;
    ++at.index;
    at.parent = entry;
  }

  void became_idle(std::span<const BlockId> blocks) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (i + prefetch_distance < blocks.size()) eviction_.prefetch(blocks[i + prefetch_distance]);
      eviction_.insert(blocks[i]);
    }
  }

  void left_idle(std::span<const BlockId> blocks) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (i + prefetch_distance < blocks.size()) eviction_.prefetch(blocks[i + prefetch_distance]);
      eviction_.remove(blocks[i]);
    }
  }

  void evict(int num_blocks) {
    stats_.evicted_blocks += num_blocks;
    EntryId ahead = EntryId::none;
    for (; num_blocks > 0; --num_blocks) {
      // Prefixes mostly follow their continuations: the records of the next victims are fetched while this one goes.
      if (ahead == EntryId::none) {
        ahead = tree_.entry_of(eviction_.coldest());
        for (std::size_t i = 0; i < prefetch_distance && ahead != EntryId::none; ++i) fetch_parent(ahead);
      } else {
        fetch_parent(ahead);
      }
      evict_coldest();
    }
  }

  void fetch_parent(EntryId& id) {
    tree_.prefetch(tree_.hash_of(id));
    if (const BlockId block = tree_.canonical(id); block != BlockId::none) {
      tree_.prefetch(block);
      eviction_.prefetch(block);
      allocator_.prefetch(block);
    }
    id = tree_.parent(id);
    if (id != EntryId::none) tree_.prefetch(id);
  }

  // Frees the coldest idle block, but no prefix before its continuations: a block whose tokens have no second copy
  // waits until what follows it is gone. What follows can have owners while it is idle itself where a sliding window
  // dropped it, or where a fork kept a duplicate that was remapped; those blocks leave the cache, not their owners.
  void evict_coldest() {
    const BlockId coldest = eviction_.coldest();
    const EntryId entry = tree_.entry_of(coldest);
    if (tree_.first_child(entry) == EntryId::none || tree_.has_duplicates(entry)) return withdraw(coldest, true);
    EntryId leaf = is_descent_of(entry) ? descent_.reached.id : entry;
    for (;;) {
      while (tree_.first_child(leaf) != EntryId::none) leaf = tree_.first_child(leaf);
      const EntryId above = tree_.parent(leaf);
      BlockId block = tree_.canonical(leaf);
      while (block != BlockId::none && !allocator_.is_idle(block)) block = tree_.next_copy(block);
      const bool is_idle = block != BlockId::none;
      withdraw(is_idle ? block : tree_.canonical(leaf), is_idle);
      if (!tree_.is_alive(leaf)) leaf = above;
      if (!is_idle) continue;
      if (tree_.is_alive(entry)) descent_ = {.from = version_of(entry), .reached = version_of(leaf)};
      return;
    }
  }

  struct Version {
    EntryId id = EntryId::none;
    std::uint32_t generation = 0;
  };
  Version version_of(EntryId id) const { return {.id = id, .generation = tree_.generation(id)}; }
  bool is_same(const Version& version) const {
    return version.id != EntryId::none && tree_.generation(version.id) == version.generation;
  }
  bool is_descent_of(EntryId entry) const {
    return descent_.from.id == entry && is_same(descent_.from) && is_same(descent_.reached);
  }

  void withdraw(BlockId block, bool evicted) {
    const EntryId entry = tree_.entry_of(block);
    const bool is_current = tree_.is_current(entry);
    if (take_out(block, evicted) && is_current) events_.removed(entry);
  }

  // True if it was the last block of its entry.
  bool take_out(BlockId block, bool evicted) {
    const std::uint64_t hash = tree_.hash_of(tree_.entry_of(block));
    allocator_.unpublish(block);  // an idle block leaves the order
    eviction_.forgotten(block, hash, evicted);
    return tree_.detach(block);
  }

  static constexpr std::size_t prefetch_distance = 8;

  BlockAllocator& allocator_;
  PrefixTree<Hash> tree_;
  Eviction eviction_;
  EventLog events_;
  PrefixStats stats_;
  std::vector<EntryId> new_entries_;  // of one publication
  // How far the last descent from a coldest block with continuations came: the next one goes on there, so that giving
  // up a long prefix from its end takes one walk and not one for each block.
  struct {
    Version from;
    Version reached;
  } descent_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
