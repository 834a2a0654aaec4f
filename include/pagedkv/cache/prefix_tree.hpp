// PrefixTree: which tokens each published block holds, as a tree of full blocks; found by hash, decided by comparing.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Names an entry of a PrefixTree; `none` is the parent of the roots.
enum class EntryId : std::int32_t { none = -1 };

/// An entry is one block's worth of tokens after its parent's; it lists the blocks that hold them (the first is
/// canonical, the others are duplicates that were computed independently). A root stands for a scope: no tokens, no
/// block, its key in `extra`. Entries live in one array and are linked by index.
template <class Hash>
class PrefixTree {
 public:
  PrefixTree(int block_size, Hash hash) : block_size_(block_size), hash_(hash), buckets_(16, EntryId::none) {}

  /// The entry with exactly this parent, these tokens and these extra bytes, or EntryId::none. O(tokens) expected.
  EntryId find(EntryId parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    const std::uint64_t hash = hash_of(parent, tokens, extra);
    for (EntryId id = buckets_[bucket_of(hash)]; id != EntryId::none; id = entry(id).next_in_bucket) {
      const Entry& e = entry(id);
      if (e.hash == hash && e.parent == parent && e.extra == extra && std::ranges::equal(tokens_of(id), tokens))
        return id;
    }
    return EntryId::none;
  }

  /// Makes room for `block`, its entry and its root: insert() and attach() do not throw then.
  void prepare(BlockId block) {
    grow_buckets(num_entries_ + 2);
    if (entries_.capacity() < entries_.size() + 2) entries_.reserve(2 * entries_.size() + 2);
    tokens_.reserve(entries_.capacity() * static_cast<std::size_t>(block_size_));
    const auto index = static_cast<std::size_t>(to_index(block));
    if (index >= blocks_.size()) blocks_.resize(index + 1);
  }

  /// Makes an entry that find() does not find, after prepare(). It must get a block or a child before the next call that
  /// can remove it.
  EntryId insert(EntryId parent, std::span<const std::int32_t> tokens, std::string&& extra) {
    const EntryId id = new_entry();
    Entry& e = entry(id);
    e = Entry{.hash = hash_of(parent, tokens, extra), .parent = parent, .extra = std::move(extra), .alive = true};
    std::copy(tokens.begin(), tokens.end(), tokens_.begin() + token_offset(id));
    EntryId& bucket = buckets_[bucket_of(e.hash)];
    e.next_in_bucket = bucket;
    bucket = id;
    if (parent != EntryId::none) link_child(parent, id);
    ++num_entries_;
    return id;
  }

  /// Adds a block that holds the entry's tokens, behind the copies that are there. After prepare(block).
  void attach(EntryId id, BlockId block) {
    block_link(block) = {.entry = id, .next_copy = BlockId::none};
    BlockId* last = &entry(id).first_copy;
    while (*last != BlockId::none) last = &block_link(*last).next_copy;
    *last = block;
  }

  /// Takes a block off its entry. An entry without blocks goes, and so does its root with the last child; therefore the
  /// last block of an entry with children must stay.
  void detach(BlockId block) {
    const EntryId id = entry_of(block);
    BlockId* link = &entry(id).first_copy;
    while (*link != block) link = &block_link(*link).next_copy;
    *link = block_link(block).next_copy;
    block_link(block) = {};
    if (entry(id).first_copy != BlockId::none) return;
    PAGEDKV_ASSERT(entry(id).first_child == EntryId::none && "a prefix outlives its continuations");
    const EntryId parent = entry(id).parent;
    remove(id);
    if (entry(parent).parent == EntryId::none && entry(parent).first_child == EntryId::none) remove(parent);
  }

  void clear() {
    num_entries_ = 0;
    free_ = EntryId::none;
    entries_.clear();
    tokens_.clear();
    blocks_.clear();
    std::ranges::fill(buckets_, EntryId::none);
  }

  /// The entry whose tokens the block holds, or EntryId::none.
  EntryId entry_of(BlockId block) const {
    const auto index = static_cast<std::size_t>(to_index(block));
    return to_index(block) >= 0 && index < blocks_.size() ? blocks_[index].entry : EntryId::none;
  }

  BlockId canonical(EntryId id) const { return entry(id).first_copy; }
  bool has_duplicates(EntryId id) const { return block_link(canonical(id)).next_copy != BlockId::none; }
  BlockId next_copy(BlockId block) const { return block_link(block).next_copy; }
  EntryId parent(EntryId id) const { return entry(id).parent; }
  EntryId first_child(EntryId id) const { return entry(id).first_child; }
  EntryId next_sibling(EntryId id) const { return entry(id).next_sibling; }
  std::string_view extra(EntryId id) const { return entry(id).extra; }

  /// The entry's tokens; none for a root.
  std::span<const std::int32_t> tokens_of(EntryId id) const {
    if (entry(id).parent == EntryId::none) return {};
    return std::span(tokens_).subspan(static_cast<std::size_t>(token_offset(id)),
                                      static_cast<std::size_t>(block_size_));
  }

  /// Entries and roots.
  int num_entries() const { return num_entries_; }

  /// Blocks that were ever attached have an id below this.
  int block_bound() const { return static_cast<int>(blocks_.size()); }

  void check_invariants() const {
    [[maybe_unused]] int alive = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const Entry& e = entries_[i];
      if (!e.alive) continue;
      ++alive;
      [[maybe_unused]] const auto id = static_cast<EntryId>(i);
      [[maybe_unused]] const bool is_root = e.parent == EntryId::none;
      PAGEDKV_ASSERT(is_root || entry(e.parent).alive);
      PAGEDKV_ASSERT(is_root == (e.first_copy == BlockId::none));
      PAGEDKV_ASSERT(!is_root || e.first_child != EntryId::none);
      PAGEDKV_ASSERT(find(e.parent, tokens_of(id), e.extra) == id && "one canonical entry per key");
      for (BlockId b = e.first_copy; b != BlockId::none; b = block_link(b).next_copy) PAGEDKV_ASSERT(entry_of(b) == id);
      for (EntryId c = e.first_child; c != EntryId::none; c = entry(c).next_sibling)
        PAGEDKV_ASSERT(entry(c).parent == id);
    }
    PAGEDKV_ASSERT(alive == num_entries_);
  }

  std::uint64_t state_hash() const {
    std::uint64_t h = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].alive) continue;
      h = hash_mix(hash_mix(h, static_cast<std::uint64_t>(i)), entries_[i].hash);
      h = hash_mix(h, static_cast<std::int32_t>(entries_[i].parent));
      for (BlockId b = entries_[i].first_copy; b != BlockId::none; b = block_link(b).next_copy)
        h = hash_mix(h, to_index(b));
    }
    return h;
  }

 private:
  struct Entry {
    std::uint64_t hash = 0;
    EntryId parent = EntryId::none;
    EntryId first_child = EntryId::none;
    EntryId previous_sibling = EntryId::none;
    EntryId next_sibling = EntryId::none;
    EntryId next_in_bucket = EntryId::none;
    BlockId first_copy = BlockId::none;
    std::string extra;  // of a root: its scope; else of multimodal extras, mostly empty
    bool alive = false;
  };

  struct BlockLink {
    EntryId entry = EntryId::none;
    BlockId next_copy = BlockId::none;
  };

  Entry& entry(EntryId id) { return entries_[static_cast<std::size_t>(id)]; }
  const Entry& entry(EntryId id) const { return entries_[static_cast<std::size_t>(id)]; }
  BlockLink& block_link(BlockId block) { return blocks_[static_cast<std::size_t>(to_index(block))]; }
  const BlockLink& block_link(BlockId block) const { return blocks_[static_cast<std::size_t>(to_index(block))]; }

  std::ptrdiff_t token_offset(EntryId id) const { return static_cast<std::ptrdiff_t>(id) * block_size_; }

  // Chained: a parent's hash stands for all tokens before.
  std::uint64_t hash_of(EntryId parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return hash_(parent == EntryId::none ? 0 : entry(parent).hash, tokens, extra);
  }

  std::size_t bucket_of(std::uint64_t hash) const { return hash & (buckets_.size() - 1); }

  EntryId new_entry() {
    if (free_ != EntryId::none) {
      const EntryId id = free_;
      free_ = entry(id).next_in_bucket;
      return id;
    }
    tokens_.resize(tokens_.size() + static_cast<std::size_t>(block_size_));
    entries_.emplace_back();
    return static_cast<EntryId>(entries_.size() - 1);
  }

  void grow_buckets(int num_entries) {
    if (static_cast<std::size_t>(num_entries) <= buckets_.size()) return;
    buckets_.assign(2 * buckets_.size(), EntryId::none);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!entries_[i].alive) continue;
      EntryId& bucket = buckets_[bucket_of(entries_[i].hash)];
      entries_[i].next_in_bucket = bucket;
      bucket = static_cast<EntryId>(i);
    }
  }

  void link_child(EntryId parent, EntryId child) {
    const EntryId sibling = entry(parent).first_child;
    entry(child).next_sibling = sibling;
    if (sibling != EntryId::none) entry(sibling).previous_sibling = child;
    entry(parent).first_child = child;
  }

  void unlink_child(EntryId id) {
    const Entry& e = entry(id);
    (e.previous_sibling == EntryId::none ? entry(e.parent).first_child : entry(e.previous_sibling).next_sibling) =
        e.next_sibling;
    if (e.next_sibling != EntryId::none) entry(e.next_sibling).previous_sibling = e.previous_sibling;
  }

  void remove(EntryId id) {
    if (entry(id).parent != EntryId::none) unlink_child(id);
    EntryId* link = &buckets_[bucket_of(entry(id).hash)];
    while (*link != id) link = &entry(*link).next_in_bucket;
    *link = entry(id).next_in_bucket;
    entry(id) = {};
    entry(id).next_in_bucket = free_;
    free_ = id;
    --num_entries_;
  }

  int block_size_;
  Hash hash_;
  int num_entries_ = 0;
  EntryId free_ = EntryId::none;  // chain through next_in_bucket
  std::vector<Entry> entries_;
  std::vector<std::int32_t> tokens_;  // [entries, block_size]
  std::vector<EntryId> buckets_;      // a power of two
  std::vector<BlockLink> blocks_;     // by block id
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
