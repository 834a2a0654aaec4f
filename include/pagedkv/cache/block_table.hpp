// BlockTable: where the tokens of one sequence lie; position -> slot. A tree of chunks that forks share.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/table_nodes.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

class BlockTable;

/// The block ids of a table, in order: a random-access range that reads through the table.
class BlockIds {
 public:
  class Iterator {
   public:
    using iterator_concept = std::random_access_iterator_tag;
    using iterator_category = std::input_iterator_tag;
    using value_type = BlockId;
    using difference_type = std::ptrdiff_t;
    using reference = BlockId;
    using pointer = void;

    Iterator() = default;
    Iterator(const BlockTable* table, std::ptrdiff_t index) : table_(table), index_(index) {}
    BlockId operator*() const;
    BlockId operator[](std::ptrdiff_t i) const { return *(*this + i); }
    Iterator& operator+=(std::ptrdiff_t i) {
      index_ += i;
      return *this;
    }
    Iterator& operator-=(std::ptrdiff_t i) { return *this += -i; }
    Iterator& operator++() { return *this += 1; }
    Iterator& operator--() { return *this -= 1; }
    Iterator operator++(int) { return std::exchange(*this, *this + 1); }
    Iterator operator--(int) { return std::exchange(*this, *this - 1); }
    friend Iterator operator+(Iterator it, std::ptrdiff_t i) { return it += i; }
    friend Iterator operator+(std::ptrdiff_t i, Iterator it) { return it += i; }
    friend Iterator operator-(Iterator it, std::ptrdiff_t i) { return it -= i; }
    friend std::ptrdiff_t operator-(const Iterator& a, const Iterator& b) { return a.index_ - b.index_; }
    friend bool operator==(const Iterator&, const Iterator&) = default;
    friend auto operator<=>(const Iterator& a, const Iterator& b) { return a.index_ <=> b.index_; }

   private:
    const BlockTable* table_ = nullptr;
    std::ptrdiff_t index_ = 0;
  };

  explicit BlockIds(const BlockTable& table) : table_(&table) {}
  Iterator begin() const { return {table_, 0}; }
  Iterator end() const;
  std::size_t size() const;
  bool empty() const { return size() == 0; }
  BlockId operator[](std::size_t index) const { return begin()[static_cast<std::ptrdiff_t>(index)]; }
  BlockId front() const { return (*this)[0]; }
  BlockId back() const { return (*this)[size() - 1]; }

 private:
  const BlockTable* table_;
};

/// A list of block ids: entry i holds the positions i * block_size .. (i + 1) * block_size - 1. It owns its blocks, by
/// way of chunks of 64 ids in a tree: share() costs the same for any length, and the first write after it copies one
/// path (persistent vectors as in Bagwell & Rompf, "RRB-Trees: Efficient Immutable Vectors", 2011, without the
/// relaxation). Move-only; used by Sequence, which decides when to copy a block.
class BlockTable {
 public:
  explicit BlockTable(BlockAllocator& allocator) : allocator_(&allocator), id_(allocator.next_table_++) {}
  BlockTable(BlockTable&& other) noexcept
      : allocator_(std::exchange(other.allocator_, nullptr)),
        id_(std::exchange(other.id_, 0)),
        num_edits_(other.num_edits_),
        edit_begin_(other.edit_begin_),
        edit_end_(other.edit_end_),
        root_(std::exchange(other.root_, NodeId::none)),
        height_(std::exchange(other.height_, 0)),
        num_blocks_(std::exchange(other.num_blocks_, 0)),
        tail_(std::exchange(other.tail_, nullptr)) {}
  BlockTable& operator=(BlockTable&& other) noexcept {
    BlockTable taken{std::move(other)};
    std::swap(allocator_, taken.allocator_);
    std::swap(id_, taken.id_);
    std::swap(num_edits_, taken.num_edits_);
    std::swap(edit_begin_, taken.edit_begin_);
    std::swap(edit_end_, taken.edit_end_);
    std::swap(root_, taken.root_);
    std::swap(height_, taken.height_);
    std::swap(num_blocks_, taken.num_blocks_);
    std::swap(tail_, taken.tail_);
    return *this;
  }
  ~BlockTable() { clear(); }

  /// Null for a table that was moved from.
  BlockAllocator* allocator() const { return allocator_; }
  int block_size() const { return allocator_->block_size(); }
  int num_blocks() const { return num_blocks_; }
  BlockIds blocks() const { return BlockIds{*this}; }

  /// O(height): 1 up to 64 blocks, 2 up to 4,096.
  BlockId operator[](int index) const {
    const NodeId leaf = find(index, 0);
    return leaf == NodeId::none ? BlockId::none : nodes().entries(leaf)[digit(index, 0)];
  }

  BlockId back() const { return tail_ != nullptr ? own_tail() : (*this)[num_blocks_ - 1]; }

  /// The same where owns_tail().
  BlockId own_tail() const { return (*tail_)[digit(num_blocks_ - 1, 0)]; }

  /// Where the token at `position` lies; dead_slot if a sliding window has dropped its block.
  Slot slot(int position) const {
    const int index = position / block_size();
    require(position >= 0 && index < num_blocks(), "BlockTable::slot: position below",
            static_cast<std::int64_t>(num_blocks()) * block_size(), position);
    const BlockId block = (*this)[index];
    if (block == BlockId::none) return dead_slot;
    return static_cast<Slot>(to_index(block)) * block_size() + position % block_size();
  }

  /// Calls f(std::span<const BlockId>) for the entries first .. last - 1, a chunk at a time.
  template <class Function>
  void for_each_chunk(int first, int last, Function&& f) const {
    static constexpr auto nothing = [] {
      Nodes::Entries entries{};
      entries.fill(BlockId::none);
      return entries;
    }();
    while (first < last) {
      const int count = min(last - first, Nodes::fanout - first % Nodes::fanout);
      const NodeId leaf = find(first, 0);
      const Nodes::Entries& entries = leaf == NodeId::none ? nothing : nodes().entries(leaf);
      f(std::span<const BlockId>(entries).subspan(digit(first, 0), static_cast<std::size_t>(count)));
      first += count;
    }
  }

  /// A number that no other table of this allocator has had, how often entries changed after they were appended, and
  /// the range of the last such change. A reader that keeps a copy learns from them what to read anew: what was
  /// appended, and after one more edit its range.
  std::uint64_t id() const { return id_; }
  std::uint64_t num_edits() const { return num_edits_; }
  std::pair<int, int> last_edit() const { return {edit_begin_, edit_end_}; }

  /// A second table with the same blocks. O(1), whatever the length; does not throw.
  BlockTable share() const {
    BlockTable other{*allocator_};
    if (root_ != NodeId::none) nodes().share(root_);
    other.root_ = root_;
    other.height_ = height_;
    other.num_blocks_ = num_blocks_;
    tail_ = nullptr;
    return other;
  }

  /// Does another table, one that died but was not walked yet included, name the chunk of the last entry? Not asked of
  /// an empty table.
  bool shares_tail() const {
    if (tail_ != nullptr) return false;
    NodeId node = root_;
    for (int level = height_; node != NodeId::none && !nodes().is_shared(node); --level) {
      Nodes::Entries& entries = nodes().entries(node);
      if (level == 0) {
        tail_ = &entries;
        return false;
      }
      node = Nodes::child(entries[digit(num_blocks_ - 1, level)]);
    }
    return true;
  }

  /// Makes room, so that the changes to come do not throw: `num_new` more blocks, and `num_paths` other changes.
  void prepare(int num_new, int num_paths) const {
    const std::int64_t path = height_ + 2;
    nodes().reserve(path * num_paths + (num_new > 0 ? 2 * path + num_new / (Nodes::fanout / 2) : 0));
  }

  /// Is the chunk with the last entry, and the way to it, known to be this table's alone?
  bool owns_tail() const { return tail_ != nullptr; }

  /// Can truncate() do without room for a change of the path?
  bool truncates_in_place(int num_kept) const { return num_kept == 0 || ends_in_own_chunk(num_kept - 1); }

  /// Takes one free block if one is at hand, and an owned chunk has room for it; false, and no change, if not.
  bool append_one(BlockId& block) {
    const std::size_t i = digit(num_blocks_, 0);
    if (tail_ == nullptr || i == 0 || !allocator_->take_free(block)) return false;
    (*tail_)[i] = block;
    ++num_blocks_;
    return true;
  }

  /// Takes `num_new` available blocks from the allocator. After prepare(num_new, 0).
  void append_new(int num_new) {
    while (num_new > 0) {
      Nodes::Entries& leaf = writable_tail();
      const std::size_t first = digit(num_blocks_, 0);
      const int count = min(num_new, Nodes::fanout - static_cast<int>(first));
      allocator_->take(std::span(leaf).subspan(first, static_cast<std::size_t>(count)));
      num_blocks_ += count;
      num_new -= count;
    }
  }

  /// Adds blocks of which the caller gives one owner each. After prepare(blocks.size(), 0).
  void append_owned(std::span<const BlockId> blocks) {
    while (!blocks.empty()) {
      Nodes::Entries& leaf = writable_tail();
      const std::size_t first = digit(num_blocks_, 0);
      const std::size_t count = min(blocks.size(), Nodes::fanout - first);
      std::copy_n(blocks.begin(), count, leaf.begin() + static_cast<std::ptrdiff_t>(first));
      num_blocks_ += static_cast<int>(count);
      blocks = blocks.subspan(count);
    }
  }

  /// Puts a block in the place of another, takes over one owner of it, and releases the one that was there. After
  /// prepare(0, 1).
  void replace(int index, BlockId owned) {
    const BlockId before = std::exchange(writable_leaf(index)[digit(index, 0)], owned);
    note_edit(index, index + 1);
    allocator_->release({&before, 1});
  }

  /// Drops the entries from `num_kept` on, the last first. After prepare(0, 1), unless it truncates in place. O(dropped
  /// blocks), but at most 1,024 entries of whole chunks now.
  void truncate(int num_kept) {
    PAGEDKV_ASSERT(num_kept >= 0 && num_kept <= num_blocks_);
    if (num_kept == num_blocks_) return;
    if (num_kept == 0) return clear();
    const int last = num_kept - 1;
    if (ends_in_own_chunk(last)) {
      drop_from_tail(num_kept);
      note_edit(num_kept, num_blocks_);
      num_blocks_ = num_kept;
      return;
    }
    tail_ = &writable_leaf(last);
    for (int level = height_; level > 0; --level) {
      Nodes::Entries& entries = path_entries(last, level);
      for (std::size_t i = Nodes::fanout - 1; i > digit(last, level); --i) drop_child(entries[i]);
    }
    allocator_->walk(BlockAllocator::walk_step);
    if (nodes().has_dead()) {  // the chunk's own entries wait, as a chunk of their own, for the deeper ones
      const NodeId chunk = nodes().take(0);
      std::ranges::copy(tail_from(num_kept), nodes().entries(chunk).begin());
      nodes().drop(chunk);
      std::ranges::fill(tail_from(num_kept), BlockId::none);
    } else {
      drop_from_tail(num_kept);
    }
    while (height_ > 0 && num_kept <= capacity(height_ - 1)) {
      const NodeId child = Nodes::child(nodes().entries(root_)[0]);
      nodes().discard(std::exchange(root_, child));
      --height_;
    }
    note_edit(num_kept, num_blocks_);
    num_blocks_ = num_kept;
  }

  /// Drops the blocks of the entries before `end`, which become BlockId::none. After prepare(0, 1).
  void drop_front(int end) {
    PAGEDKV_ASSERT(end >= 0 && end <= num_blocks_);
    if (end == num_blocks_) {
      drop_root();
    } else {
      Nodes::Entries& leaf = writable_leaf(end);
      const auto head = std::span(leaf).first(digit(end, 0));
      const auto first = std::ranges::find_if(head, [](BlockId id) { return id != BlockId::none; });
      allocator_->release(std::span(first, head.end()));
      std::fill(first, head.end(), BlockId::none);
      for (int level = 1; level <= height_; ++level) {
        Nodes::Entries& entries = path_entries(end, level);
        for (std::size_t i = digit(end, level); i-- > 0;) drop_child(entries[i]);
      }
    }
    allocator_->walk(BlockAllocator::walk_step);
    note_edit(0, end);
  }

 private:
  using Nodes = detail::TableNodes;
  using NodeId = detail::NodeId;

  detail::TableNodes& nodes() const { return allocator_->nodes_; }

  // The place of an entry in its chunk of a level.
  static std::size_t digit(int index, int level) {
    return static_cast<std::size_t>(static_cast<std::int64_t>(index) >> (level * Nodes::fanout_log2)) % Nodes::fanout;
  }
  static std::int64_t capacity(int height) { return std::int64_t{1} << ((height + 1) * Nodes::fanout_log2); }

  // The chunk of a level on the path to an entry, or none.
  NodeId find(int index, int level) const {
    NodeId node = root_;
    for (int i = height_; i > level && node != NodeId::none; --i)
      node = Nodes::child(nodes().entries(node)[digit(index, i)]);
    return node;
  }

  // The same where it exists.
  Nodes::Entries& path_entries(int index, int level) { return nodes().entries(find(index, level)); }

  // The chunk itself if no other table uses it, else a copy of it, else, where there is none, a new one.
  NodeId owned(NodeId node, int level) {
    if (node == NodeId::none) return nodes().take(level);
    if (!nodes().is_shared(node)) return node;
    const NodeId copy = nodes().take(level);
    nodes().entries(copy) = nodes().entries(node);
    for (const BlockId entry : nodes().entries(copy)) {
      if (entry == BlockId::none) continue;
      if (level > 0) {
        nodes().share(Nodes::child(entry));
      } else {
        allocator_->records_.add_user(entry);
      }
    }
    nodes().drop(node);
    return copy;
  }

  // Makes this table the only user of the path to an entry.
  Nodes::Entries& writable_leaf(int index) {
    root_ = owned(root_, height_);
    NodeId node = root_;
    for (int level = height_; level > 0; --level) {
      BlockId& entry = nodes().entries(node)[digit(index, level)];
      node = owned(Nodes::child(entry), level - 1);
      entry = Nodes::entry_of(node);
    }
    return nodes().entries(node);
  }

  // The leaf that gets the next entry.
  Nodes::Entries& writable_tail() {
    if (tail_ != nullptr && digit(num_blocks_, 0) != 0) [[likely]]
      return *tail_;
    while (num_blocks_ >= capacity(height_)) {
      ++height_;
      if (root_ == NodeId::none) continue;
      const NodeId above = nodes().take(height_);
      nodes().entries(above)[0] = Nodes::entry_of(std::exchange(root_, above));
    }
    tail_ = &writable_leaf(num_blocks_);
    return *tail_;
  }

  // Of an entry that is to be the last one: no chunk goes, none has to be copied, and none deeper waits to be walked.
  bool ends_in_own_chunk(int last) const {
    return tail_ != nullptr && last / Nodes::fanout == (num_blocks_ - 1) / Nodes::fanout && !nodes().has_dead();
  }

  // The entries of the chunk of tail_ from one on; the last entry of the table lies in that chunk or behind it.
  std::span<BlockId> tail_from(int first) {
    const int end = min(num_blocks_, round_up(first, Nodes::fanout));
    return std::span(*tail_).subspan(Nodes::fanout - static_cast<std::size_t>(round_up(first, Nodes::fanout) - first),
                                     static_cast<std::size_t>(end - first));
  }

  void drop_from_tail(int first) {
    allocator_->release(tail_from(first));
    std::ranges::fill(tail_from(first), BlockId::none);
  }

  void drop_child(BlockId& entry) {
    if (entry == BlockId::none) return;
    nodes().drop(Nodes::child(std::exchange(entry, BlockId::none)));
  }

  void drop_root() {
    if (root_ != NodeId::none) nodes().drop(std::exchange(root_, NodeId::none));
    tail_ = nullptr;
  }

  void clear() {
    if (num_blocks_ == 0) return;
    drop_root();
    allocator_->walk(BlockAllocator::walk_step);
    note_edit(0, num_blocks_);
    height_ = 0;
    num_blocks_ = 0;
  }

  void note_edit(int begin, int end) {
    ++num_edits_;
    edit_begin_ = begin;
    edit_end_ = end;
  }

  BlockAllocator* allocator_;
  std::uint64_t id_;
  std::uint64_t num_edits_ = 0;
  int edit_begin_ = 0;
  int edit_end_ = 0;
  NodeId root_ = NodeId::none;
  int height_ = 0;  // of the root: a leaf's is 0
  int num_blocks_ = 0;
  // The leaf with the last entry, where this table is the only user of the whole path to it. A share ends that.
  mutable Nodes::Entries* tail_ = nullptr;
};

inline BlockId BlockIds::Iterator::operator*() const { return (*table_)[static_cast<int>(index_)]; }
inline BlockIds::Iterator BlockIds::end() const { return {table_, table_->num_blocks()}; }
inline std::size_t BlockIds::size() const { return static_cast<std::size_t>(table_->num_blocks()); }

}  // namespace v0
}  // namespace pagedkv
