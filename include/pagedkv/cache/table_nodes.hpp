// TableNodes: the reference-counted chunks that block tables are made of; tables with a common past share them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// Names a chunk; `none` is an absent one: its whole range of a table is BlockId::none.
enum class NodeId : std::int32_t { none = -1 };

/// A chunk of 64 entries: block ids in a leaf (height 0), above it the ids of chunks of the height below. Entries that
/// are not in use are none. Chunks lie in slabs that never move; they are counted by the tables and chunks that name
/// them.
///
/// A chunk without users is dead, but its own entries are still counted. Dead chunks wait in a queue and are walked in
/// pieces, so that letting go of a table of any length takes bounded time (the deferred decrements of Deutsch & Bobrow,
/// "An efficient, incremental, automatic garbage collector", CACM 1976).
class TableNodes {
 public:
  static constexpr int fanout_log2 = 6;
  static constexpr int fanout = 1 << fanout_log2;
  using Entries = std::array<BlockId, fanout>;

  /// Makes sure that the next `count` calls of take() do not throw.
  void reserve(std::int64_t count) {
    while (num_spare_ < count) grow();
  }

  /// A chunk with one user and no entries, after reserve().
  NodeId take(int height) {
    PAGEDKV_ASSERT(num_spare_ > 0);
    --num_spare_;
    const NodeId id = spare_;
    Header& h = header(id);
    spare_ = h.next;
    h = {.users = 1, .next = NodeId::none, .height = height};
    entries(id).fill(BlockId::none);
    return id;
  }

  Entries& entries(NodeId id) { return slabs_[slab_of(id)][index_of(id)]; }
  const Entries& entries(NodeId id) const { return slabs_[slab_of(id)][index_of(id)]; }

  /// The chunk that an entry above the leaves names, and the entry that names a chunk.
  static constexpr NodeId child(BlockId entry) { return static_cast<NodeId>(entry); }
  static constexpr BlockId entry_of(NodeId child) { return static_cast<BlockId>(child); }

  bool is_shared(NodeId id) const { return header(id).users > 1; }
  void share(NodeId id) { ++header(id).users; }

  /// Takes one user off; without users the chunk is dead and queued.
  void drop(NodeId id) {
    if (--header(id).users > 0) return;
    enqueue(id);
  }

  /// For a chunk whose entries have been taken over by another: it is spare at once.
  void discard(NodeId id) {
    PAGEDKV_ASSERT(header(id).users == 1);
    make_spare(id);
  }

  bool has_dead() const { return first_dead_ != NodeId::none || !walking_empty(); }

  /// Walks dead chunks, of each table the deepest first, until they are gone or `max_entries` entries were seen (the
  /// last chunk is finished). `release(blocks)` gets the block ids of each dead leaf.
  template <class Release>
  void walk_dead(std::int64_t max_entries, Release&& release) {
    while (max_entries > 0) {
      const NodeId id = next_dead();
      if (id == NodeId::none) return;
      max_entries -= fanout;
      if (header(id).height == 0) {
        const Entries& all = entries(id);
        auto first = all.begin(), last = all.end();
        while (first != last && *first == BlockId::none) ++first;
        while (first != last && *(last - 1) == BlockId::none) --last;
        release(std::span<const BlockId>(first, last));
      } else {
        for (const BlockId entry : entries(id))  // the last one is walked first
          if (entry != BlockId::none && --header(child(entry)).users == 0) push_walking(child(entry));
      }
      make_spare(id);
    }
  }

  /// All leaves that count, dead ones that are still to be walked included.
  template <class Function>
  void for_each_leaf(Function function) const {
    for_each([&](NodeId id, const Header& h) {
      if (h.height == 0) function(std::span<const BlockId>(entries(id)));
    });
  }

  void check_invariants() const {
    [[maybe_unused]] std::int64_t spare = 0;
    for (NodeId id = spare_; id != NodeId::none; id = header(id).next) ++spare;
    PAGEDKV_ASSERT(spare == num_spare_);
    std::vector<std::uint32_t> named(headers_.size());
    for_each([&](NodeId id, const Header& h) {
      if (h.height == 0) return;
      for (const BlockId entry : entries(id))
        if (entry != BlockId::none) ++named[static_cast<std::size_t>(to_index(entry))];
    });
    for_each([&](NodeId id, const Header& h) {
      PAGEDKV_ASSERT(h.users >= named[static_cast<std::size_t>(id)] && "each chunk above is a user");
    });
  }

  std::uint64_t state_hash() const {
    std::uint64_t h = 0;
    const auto add = [&h](NodeId id) { h = hash_mix(h, static_cast<std::int32_t>(id)); };
    for (NodeId id = first_dead_; id != NodeId::none; id = header(id).next) add(id);
    for (const NodeId top : walking_)
      for (NodeId id = top; id != NodeId::none; id = header(id).next) add(id);
    return h;
  }

 private:
  static constexpr int slab_log2 = 8;
  static constexpr int max_height = 6;  // 64^6 entries are more than there are positions
  static constexpr int spare_height = -1;

  struct Header {
    std::uint32_t users;
    NodeId next;  // of the spare chunks, or of the dead ones
    std::int32_t height;
  };

  static std::size_t slab_of(NodeId id) { return static_cast<std::size_t>(id) >> slab_log2; }
  static std::size_t index_of(NodeId id) { return static_cast<std::size_t>(id) & ((1u << slab_log2) - 1); }
  Header& header(NodeId id) { return headers_[static_cast<std::size_t>(id)]; }
  const Header& header(NodeId id) const { return headers_[static_cast<std::size_t>(id)]; }

  void grow() {
    constexpr std::size_t count = std::size_t{1} << slab_log2;
    if (headers_.capacity() < headers_.size() + count) headers_.reserve(2 * headers_.size() + count);
    slabs_.push_back(std::make_unique_for_overwrite<Entries[]>(count));
    const auto first = static_cast<std::int32_t>(headers_.size());
    headers_.resize(headers_.size() + count);
    num_spare_ += static_cast<std::int64_t>(count);
    for (auto i = static_cast<std::int32_t>(count); i-- > 0;) push_spare(NodeId{first + i});
  }

  void push_spare(NodeId id) {
    header(id) = {.users = 0, .next = spare_, .height = spare_height};
    spare_ = id;
  }

  void make_spare(NodeId id) {
    push_spare(id);
    ++num_spare_;
  }

  // Tables die in a queue; the chunks of the one that is being walked are on stacks, one for each height, and the
  // lowest chunk goes first.
  void enqueue(NodeId id) {
    header(id).next = NodeId::none;
    (first_dead_ == NodeId::none ? first_dead_ : header(last_dead_).next) = id;
    last_dead_ = id;
  }

  void push_walking(NodeId id) {
    NodeId& top = walking_[static_cast<std::size_t>(header(id).height)];
    header(id).next = top;
    top = id;
  }

  bool walking_empty() const {
    return std::ranges::all_of(walking_, [](NodeId top) { return top == NodeId::none; });
  }

  NodeId next_dead() {
    for (NodeId& top : walking_) {
      if (top == NodeId::none) continue;
      const NodeId id = top;
      top = header(id).next;
      return id;
    }
    const NodeId id = first_dead_;
    if (id != NodeId::none) first_dead_ = header(id).next;
    return id;
  }

  // Chunks with users and dead ones.
  template <class Function>
  void for_each(Function function) const {
    for (std::size_t i = 0; i < headers_.size(); ++i)
      if (headers_[i].height != spare_height) function(static_cast<NodeId>(i), headers_[i]);
  }

  std::vector<std::unique_ptr<Entries[]>> slabs_;
  std::vector<Header> headers_;
  NodeId spare_ = NodeId::none;
  std::int64_t num_spare_ = 0;
  NodeId first_dead_ = NodeId::none;  // queue through Header::next
  NodeId last_dead_ = NodeId::none;
  std::array<NodeId, max_height> walking_ = {NodeId::none, NodeId::none, NodeId::none,
                                             NodeId::none, NodeId::none, NodeId::none};
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
