// PrefixTree: which tokens each published block holds, as a tree of full blocks; found by hash, decided by comparing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_lists.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/cache/prefix_index.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// An entry is one block's worth of tokens after its parent's; it lists the blocks that hold them (the first is
/// canonical, the others are duplicates that were computed independently). A root stands for a scope: no tokens, no
/// block, its key in `extra`. Entries live in one array of 48-byte records and are linked by index; their tokens lie in
/// another array, their extra bytes, which few have, in a third.
template <class Hash>
class PrefixTree {
 public:
  PrefixTree(int num_blocks, int block_size, Hash hash)
      : block_size_(static_cast<std::size_t>(block_size)),
        hash_(std::move(hash)),
        links_(std::make_unique_for_overwrite<BlockLink[]>(static_cast<std::size_t>(num_blocks))) {}

  // ---- looking up ----

  /// The hash of a block that follows one with the hash `parent`. Of a root: root_seed() and no tokens.
  std::uint64_t hash_of(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return hash_(parent, tokens, extra);
  }
  std::uint64_t root_seed() const { return epoch_; }
  std::uint32_t epoch() const { return epoch_; }
  std::uint64_t hash_of(EntryId id) const { return entry(id).hash; }

  void prefetch(std::uint64_t hash) const { index_.prefetch(fingerprint(hash)); }

  /// The entry with exactly this parent, these tokens and these extra bytes, which have this hash, or EntryId::none.
  EntryId find(EntryId parent, std::uint64_t hash, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return index_.find(fingerprint(hash), [&](EntryId id) { return is_same(id, parent, tokens, extra); });
  }

  /// The root of a scope, or EntryId::none.
  EntryId find_root(std::string_view key) const { return find(EntryId::none, hash_of(root_seed(), {}, key), {}, key); }

  /// Appends to `hits` the entries, one after the other, of the full blocks without extra bytes that `tokens` begin
  /// with behind `last`. Hashes a batch of blocks, then looks all of them up, then compares: cache misses overlap.
  void match(EntryId last, std::span<const std::int32_t> tokens, std::vector<EntryId>& hits) const {
    std::array<std::uint64_t, batch_size> hashes;
    std::array<EntryId, batch_size> candidates;
    std::uint64_t hash = hash_of(last);
    for (; tokens.size() >= block_size_; tokens = tokens.subspan(std::min(batch_size * block_size_, tokens.size()))) {
      const std::size_t count = std::min(batch_size, tokens.size() / block_size_);
      for (std::size_t i = 0; i < count; ++i) {
        hashes[i] = hash = hash_of(hash, block_at(tokens, i), {});
        prefetch(hash);
      }
      for (std::size_t i = 0; i < count; ++i) {
        candidates[i] = index_.find(fingerprint(hashes[i]), [](EntryId) { return true; });
        if (candidates[i] == EntryId::none) break;
        detail::prefetch(&entry(candidates[i]));
        detail::prefetch(tokens_.data() + token_offset(candidates[i]));
      }
      for (std::size_t i = 0; i < count; ++i) {
        if (candidates[i] == EntryId::none) return;
        if (!is_same(candidates[i], last, block_at(tokens, i), {})) {
          candidates[i] = find(last, hashes[i], block_at(tokens, i), {});
          if (candidates[i] == EntryId::none) return;
        }
        hits.push_back(last = candidates[i]);
      }
    }
  }

  // ---- changing ----

  /// Makes room for `count` more entries, of which `num_extras` have extra bytes: insert() does not throw then. Nothing
  /// that can be observed changes.
  void prepare(std::size_t count, std::size_t num_extras) {
    index_.reserve(static_cast<std::size_t>(num_entries_) + count);
    make_room(entries_, count, entries_.size() - static_cast<std::size_t>(num_entries_));
    tokens_.reserve(entries_.capacity() * block_size_);
    make_room(extras_, num_extras, free_extras_.size());
    free_extras_.reserve(extras_.capacity());
  }

  /// Makes an entry that find() does not find, after prepare(). It must get a block or a child before the next call
  /// that can remove it.
  EntryId insert(EntryId parent, std::uint64_t hash, std::span<const std::int32_t> tokens, std::string&& extra) {
    const EntryId id = new_entry();
    Entry& e = entry(id);
    const std::uint32_t generation = e.generation;
    e = Entry{
        .hash = hash, .parent = parent, .epoch = epoch_, .generation = generation, .extra = keep(std::move(extra))};
    e.root = parent == EntryId::none ? id : entry(parent).root;
    if (!tokens.empty()) std::memcpy(tokens_.data() + token_offset(id), tokens.data(), tokens.size_bytes());
    index_.insert(fingerprint(hash), id);
    if (parent != EntryId::none) link_child(parent, id);
    ++num_entries_;
    return id;
  }

  /// Adds a block that holds the entry's tokens; the first one is canonical. O(1).
  void attach(EntryId id, BlockId block) {
    Entry& e = entry(id);
    if (e.first_copy == BlockId::none) {
      link(block) = {.entry = id, .next_copy = BlockId::none};
      e.first_copy = block;
    } else {
      link(block) = {.entry = id, .next_copy = link(e.first_copy).next_copy};
      link(e.first_copy).next_copy = block;
    }
    ++e.num_copies;
  }

  /// Takes a block off its entry; true if it was the last one. An entry without blocks goes, and so does its root with
  /// the last child; therefore the last block of an entry with children must stay. O(copies).
  bool detach(BlockId block) {
    const EntryId id = entry_of(block);
    Entry& e = entry(id);
    BlockId* at = &e.first_copy;
    while (*at != block) at = &link(*at).next_copy;
    *at = link(block).next_copy;
    if (--e.num_copies > 0) return false;
    PAGEDKV_ASSERT(e.first_child == EntryId::none && "a prefix outlives its continuations");
    const EntryId parent = e.parent;
    remove(id);
    if (is_root(parent) && entry(parent).first_child == EntryId::none) remove(parent);
    return true;
  }

  /// Forgets all entries; which blocks are attached then is nobody's business. O(entries).
  void clear() {
    for (int i = 0; i < entry_bound(); ++i)
      if (is_alive(EntryId{i})) recycle(EntryId{i});
    index_.clear();
  }

  /// From now on no entry can be found; those that are there stay until their blocks are detached. O(1).
  void start_epoch() { ++epoch_; }

  // ---- entries ----

  /// The entry whose tokens an attached block holds.
  EntryId entry_of(BlockId block) const { return link(block).entry; }
  void prefetch(BlockId block) const { detail::prefetch(&link(block)); }
  void prefetch(EntryId id) const { detail::prefetch(&entry(id)); }

  BlockId canonical(EntryId id) const { return entry(id).first_copy; }
  int num_copies(EntryId id) const { return static_cast<int>(entry(id).num_copies); }
  bool has_duplicates(EntryId id) const { return entry(id).num_copies > 1; }
  BlockId next_copy(BlockId block) const { return link(block).next_copy; }
  EntryId parent(EntryId id) const { return entry(id).parent; }
  EntryId root(EntryId id) const { return entry(id).root; }
  bool is_root(EntryId id) const { return entry(id).parent == EntryId::none; }
  EntryId first_child(EntryId id) const { return entry(id).first_child; }
  EntryId next_sibling(EntryId id) const { return entry(id).next_sibling; }
  std::string_view extra(EntryId id) const { return extras_[entry(id).extra]; }

  /// Could the entry be found, or was it made before start_epoch()?
  bool is_current(EntryId id) const { return entry(id).epoch == epoch_; }

  /// An id is used again when its entry is gone, but not with the same generation.
  std::uint32_t generation(EntryId id) const { return entry(id).generation; }

  /// The entry's tokens; none for a root.
  std::span<const std::int32_t> tokens_of(EntryId id) const {
    if (is_root(id)) return {};
    return {tokens_.data() + token_offset(id), block_size_};
  }

  /// Entries and roots.
  int num_entries() const { return num_entries_; }

  /// The ids of entries are below this; not all of them are in use.
  int entry_bound() const { return static_cast<int>(entries_.size()); }
  bool is_alive(EntryId id) const { return entry(id).root != EntryId::none; }

  void check_invariants() const {
    [[maybe_unused]] int alive = 0;
    for (int i = 0; i < entry_bound(); ++i) {
      const EntryId id{i};
      if (!is_alive(id)) continue;
      ++alive;
      const Entry& e = entry(id);
      PAGEDKV_ASSERT(is_root(id) || (is_alive(e.parent) && entry(e.parent).epoch == e.epoch));
      PAGEDKV_ASSERT(e.root == (is_root(id) ? id : entry(e.parent).root));
      PAGEDKV_ASSERT(is_root(id) == (e.first_copy == BlockId::none));
      PAGEDKV_ASSERT(!is_root(id) || e.first_child != EntryId::none);
      PAGEDKV_ASSERT(!is_current(id) || find(e.parent, e.hash, tokens_of(id), extra(id)) == id);
      [[maybe_unused]] std::uint32_t num_copies = 0;
      for (BlockId b = e.first_copy; b != BlockId::none; b = next_copy(b), ++num_copies)
        PAGEDKV_ASSERT(entry_of(b) == id);
      PAGEDKV_ASSERT(num_copies == e.num_copies);
      for (EntryId c = e.first_child; c != EntryId::none; c = next_sibling(c)) PAGEDKV_ASSERT(entry(c).parent == id);
    }
    PAGEDKV_ASSERT(alive == num_entries_);
  }

  /// Depends on the order of children and copies, but neither on the ids of entries nor on hashes.
  std::uint64_t state_hash() const {
    std::uint64_t sum = hash_mix(0, std::uint64_t{epoch_});
    for (int i = 0; i < entry_bound(); ++i)
      if (is_alive(EntryId{i})) sum += hash_of_record(EntryId{i});
    return sum;
  }

 private:
  static constexpr std::size_t batch_size = 64;

  struct Entry {
    std::uint64_t hash = 0;
    EntryId parent = EntryId::none;
    EntryId root = EntryId::none;  // none: the record is not in use
    EntryId first_child = EntryId::none;
    EntryId previous_sibling = EntryId::none;
    EntryId next_sibling = EntryId::none;  // of a record that is not in use: the next of those
    BlockId first_copy = BlockId::none;
    std::uint32_t num_copies = 0;
    std::uint32_t epoch = 0;
    std::uint32_t generation = 0;
    std::uint32_t extra = 0;  // 0: none. Of a root: its scope; else of multimodal extras
  };
  static_assert(sizeof(Entry) == 48);

  struct BlockLink {
    EntryId entry;
    BlockId next_copy;
  };

  static std::uint32_t fingerprint(std::uint64_t hash) { return static_cast<std::uint32_t>(hash); }

  Entry& entry(EntryId id) { return entries_[static_cast<std::size_t>(id)]; }
  const Entry& entry(EntryId id) const { return entries_[static_cast<std::size_t>(id)]; }
  BlockLink& link(BlockId block) { return links_[static_cast<std::size_t>(to_index(block))]; }
  const BlockLink& link(BlockId block) const { return links_[static_cast<std::size_t>(to_index(block))]; }
  std::size_t token_offset(EntryId id) const { return static_cast<std::size_t>(id) * block_size_; }
  std::span<const std::int32_t> block_at(std::span<const std::int32_t> tokens, std::size_t i) const {
    return tokens.subspan(i * block_size_, block_size_);
  }

  // Equality of keys. A root is also of its epoch; the others are so by their parent.
  bool is_same(EntryId id, EntryId parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    const Entry& e = entry(id);
    if (e.parent != parent || (e.extra == 0) != extra.empty() || extras_[e.extra] != extra) return false;
    if (parent == EntryId::none) return e.epoch == epoch_;
    return std::memcmp(tokens_.data() + token_offset(id), tokens.data(), block_size_ * sizeof(std::int32_t)) == 0;
  }

  template <class T>
  static void make_room(std::vector<T>& items, std::size_t count, std::size_t num_unused) {
    const std::size_t size = items.size() + count - std::min(count, num_unused);
    if (size > items.capacity()) items.reserve(std::max(size, 2 * items.size()));
  }

  EntryId new_entry() {
    if (free_ != EntryId::none) return std::exchange(free_, entry(free_).next_sibling);
    entries_.emplace_back();
    tokens_.resize(entries_.size() * block_size_);
    return EntryId{static_cast<std::int32_t>(entries_.size()) - 1};
  }

  std::uint32_t keep(std::string&& extra) {
    if (extra.empty()) return 0;
    if (free_extras_.empty()) {
      extras_.push_back(std::move(extra));
      return static_cast<std::uint32_t>(extras_.size()) - 1;
    }
    const std::uint32_t at = free_extras_.back();
    free_extras_.pop_back();
    extras_[at] = std::move(extra);
    return at;
  }

  void link_child(EntryId parent, EntryId child) {
    const EntryId sibling = entry(parent).first_child;
    entry(child).next_sibling = sibling;
    if (sibling != EntryId::none) entry(sibling).previous_sibling = child;
    entry(parent).first_child = child;
  }

  void unlink_child(const Entry& e) {
    (e.previous_sibling == EntryId::none ? entry(e.parent).first_child : entry(e.previous_sibling).next_sibling) =
        e.next_sibling;
    if (e.next_sibling != EntryId::none) entry(e.next_sibling).previous_sibling = e.previous_sibling;
  }

  void remove(EntryId id) {
    const Entry& e = entry(id);
    if (!is_root(id)) unlink_child(e);
    index_.erase(fingerprint(e.hash), id);
    recycle(id);
  }

  void recycle(EntryId id) {
    Entry& e = entry(id);
    if (e.extra != 0) {
      extras_[e.extra] = {};
      free_extras_.push_back(e.extra);
    }
    e = Entry{.next_sibling = free_, .generation = e.generation + 1};
    free_ = id;
    --num_entries_;
  }

  std::uint64_t hash_of_record(EntryId id) const {
    const Entry& e = entry(id);
    std::uint64_t h = name(id);
    const std::array others = {e.parent, e.first_child,
                               e.next_sibling};  // a list in the loop is too much for nvcc 13.0
    for (const EntryId other : others) h = hash_mix(h, other == EntryId::none ? 0 : name(other));
    for (const std::int32_t token : tokens_of(id)) h = hash_mix(h, token);
    for (const char byte : extra(id)) h = hash_mix(h, std::int32_t{byte});
    for (BlockId b = e.first_copy; b != BlockId::none; b = next_copy(b)) h = hash_mix(h, to_index(b));
    return h;
  }

  // What tells an entry from the others that are there: its canonical block; of a root, epoch and scope.
  std::uint64_t name(EntryId id) const {
    std::uint64_t h = hash_mix(std::uint64_t{entry(id).epoch}, to_index(canonical(id)));
    if (is_root(id))
      for (const char byte : extra(id)) h = hash_mix(h, std::int32_t{byte});
    return h;
  }

  std::size_t block_size_;
  Hash hash_;
  std::uint32_t epoch_ = 0;
  int num_entries_ = 0;
  EntryId free_ = EntryId::none;  // chain through next_sibling
  PrefixIndex index_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> tokens_;        // [entries, block_size]
  std::vector<std::string> extras_{1};      // the first one is that of most entries: empty
  std::vector<std::uint32_t> free_extras_;  // places in extras_
  std::unique_ptr<BlockLink[]> links_;      // by block id; of an attached block
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
