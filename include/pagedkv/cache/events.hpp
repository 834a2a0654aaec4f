// Events: what the prefix cache has stored and removed, for routers and other tiers; drained, never called back.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/cache/prefix_index.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {

/// Names a scope, or the prefix that ends with a block: scope, tokens and extras. The same in every process and on
/// every machine, whatever the key of the cache's own hash. Two fixed 64-bit hashes: equal by accident never, but no
/// signature: whoever chooses the tokens can make two prefixes with one key, so trust it only for routing.
struct ContentKey {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const ContentKey&) const = default;
};

/// Of the block that follows `parent`, which is a block or a scope; `extra` as made by detail::extras_key.
inline ContentKey content_key(const ContentKey& parent, std::span<const std::int32_t> tokens,
                              std::string_view extra = {}) {
  static constexpr BlockHash high{0x452821e638d01377u}, low{0xbe5466cf34e90c6cu};
  return {.high = high(parent.high, tokens, extra), .low = low(parent.low, tokens, extra)};
}

inline ContentKey content_key(const PrefixScope& scope) { return content_key({}, {}, detail::scope_key(scope)); }

/// Of each full block of a prompt, so that a router can look up what a cache said it holds.
inline std::vector<ContentKey> content_keys(std::span<const std::int32_t> tokens, const PrefixScope& scope,
                                            int block_size) {
  require(block_size >= 1, "content_keys: block_size", "at least 1", block_size);
  scope.validate();
  std::vector<ContentKey> keys;
  const auto length = static_cast<std::size_t>(block_size);
  ContentKey last = content_key(scope);
  for (std::size_t begin = 0; begin + length <= tokens.size(); begin += length) {
    last = content_key(last, tokens.subspan(begin, length),
                       detail::extras_key(scope.extras, static_cast<int>(begin), block_size));
    keys.push_back(last);
  }
  return keys;
}

enum class CacheEventKind : std::uint8_t {
  stored,   // a key became cached; its parent is
  removed,  // its last copy left the cache
  cleared,  // nothing is cached any more
};

/// `parent`, `scope` and `tokens` belong to `stored`; the parent of a first block is its scope.
struct CacheEvent {
  CacheEventKind kind;
  ContentKey key = {};
  ContentKey parent = {};
  ContentKey scope = {};
  int block_size = 0;
  std::vector<std::int32_t> tokens = {};
};

/// In the order in which they happened. If `num_lost` is not 0, that many older ones were dropped: take a snapshot.
struct CacheEvents {
  std::vector<CacheEvent> events;
  std::int64_t num_lost = 0;
};

namespace detail {

/// A ring of events and the content keys of the entries that are cached. Room is made when entries are, so that
/// evicting allocates nothing. With a capacity of 0 nothing is recorded.
class EventLog {
 public:
  EventLog(int capacity, int block_size) : block_size_(static_cast<std::size_t>(block_size)) {
    require(capacity >= 0, "PrefixCacheOptions: event_capacity", "at least 0", capacity);
    records_.resize(static_cast<std::size_t>(capacity));
    tokens_.resize(static_cast<std::size_t>(capacity) * block_size_);
  }

  bool is_on() const { return !records_.empty(); }

  /// Makes room for the keys of all entries below `entry_bound`.
  void prepare(std::size_t entry_bound) {
    if (is_on() && entry_bound > keys_.size()) keys_.resize(std::max(entry_bound, 2 * keys_.size()));
  }

  void root_stored(EntryId id, std::string_view scope_key) {
    if (is_on()) key(id) = content_key({}, {}, scope_key);
  }

  /// After prepare(), parents first.
  template <class Tree>
  void stored(const Tree& tree, EntryId id) {
    if (!is_on()) return;
    const EntryId parent = tree.parent(id);
    const auto tokens = tree.tokens_of(id);
    key(id) = content_key(key(parent), tokens, tree.extra(id));
    const std::size_t at =
        push({.kind = CacheEventKind::stored, .key = key(id), .parent = key(parent), .scope = key(tree.root(id))});
    std::copy(tokens.begin(), tokens.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(at * block_size_));
  }

  void removed(EntryId id) {
    if (is_on()) push({.kind = CacheEventKind::removed, .key = key(id)});
  }

  void cleared() {
    if (is_on()) push({.kind = CacheEventKind::cleared});
  }

  CacheEvents drain() {
    CacheEvents drained{.events = {}, .num_lost = num_lost_};
    drained.events.reserve(count_);
    for (std::size_t i = 0; i < count_; ++i) drained.events.push_back(event_at((first_ + i) % records_.size()));
    forget();
    return drained;
  }

  /// Stored events of everything that can be found, parents first; forgets what has not been drained.
  template <class Tree>
  std::vector<CacheEvent> snapshot(const Tree& tree) {
    std::vector<CacheEvent> events;
    if (!is_on()) return events;
    events.reserve(static_cast<std::size_t>(tree.num_entries()));
    for (EntryId root{0}; static_cast<int>(root) < tree.entry_bound(); root = EntryId{static_cast<int>(root) + 1}) {
      if (!tree.is_alive(root) || !tree.is_root(root) || !tree.is_current(root)) continue;
      for (EntryId id = tree.first_child(root); id != EntryId::none; id = next_in_order(tree, id)) {
        const auto tokens = tree.tokens_of(id);
        events.push_back({.kind = CacheEventKind::stored,
                          .key = key(id),
                          .parent = key(tree.parent(id)),
                          .scope = key(root),
                          .block_size = static_cast<int>(block_size_),
                          .tokens = {tokens.begin(), tokens.end()}});
      }
    }
    forget();
    return events;
  }

 private:
  struct Record {
    CacheEventKind kind = CacheEventKind::cleared;
    ContentKey key = {};
    ContentKey parent = {};
    ContentKey scope = {};
  };

  ContentKey& key(EntryId id) { return keys_[static_cast<std::size_t>(id)]; }

  // Where it went; the oldest one makes room.
  std::size_t push(const Record& record) {
    if (count_ == records_.size()) {
      first_ = (first_ + 1) % records_.size();
      --count_;
      ++num_lost_;
    }
    const std::size_t at = (first_ + count_++) % records_.size();
    records_[at] = record;
    return at;
  }

  CacheEvent event_at(std::size_t at) const {
    const Record& r = records_[at];
    CacheEvent event{.kind = r.kind, .key = r.key, .parent = r.parent, .scope = r.scope};
    if (r.kind != CacheEventKind::stored) return event;
    event.block_size = static_cast<int>(block_size_);
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(at * block_size_);
    event.tokens.assign(begin, begin + static_cast<std::ptrdiff_t>(block_size_));
    return event;
  }

  // The next entry under the same root, children before siblings.
  template <class Tree>
  static EntryId next_in_order(const Tree& tree, EntryId id) {
    if (tree.first_child(id) != EntryId::none) return tree.first_child(id);
    while (!tree.is_root(id) && tree.next_sibling(id) == EntryId::none) id = tree.parent(id);
    return tree.is_root(id) ? EntryId::none : tree.next_sibling(id);
  }

  void forget() {
    first_ = count_ = 0;
    num_lost_ = 0;
  }

  std::size_t block_size_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  std::int64_t num_lost_ = 0;
  std::vector<Record> records_;       // a ring
  std::vector<std::int32_t> tokens_;  // [capacity, block_size], beside the records
  std::vector<ContentKey> keys_;      // by entry
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
