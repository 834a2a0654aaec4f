// PrefixMatch: the cached blocks that a prompt can start from.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_index.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// `num_tokens` of the prompt are cached, in `blocks`; of the last block perhaps only some rows are used.
struct PrefixMatch {
  std::vector<EntryId> entries;  // of the blocks, and perhaps of one more whose rows may not be used
  std::vector<BlockId> blocks;
  int num_tokens = 0;
  int num_idle = 0;  // of the blocks

  void clear() {
    entries.clear();
    blocks.clear();
    num_tokens = num_idle = 0;
  }
};

inline std::span<const std::int32_t> block_tokens(std::span<const std::int32_t> tokens, int index, int block_size) {
  return tokens.subspan(static_cast<std::size_t>(index) * static_cast<std::size_t>(block_size),
                        static_cast<std::size_t>(block_size));
}

/// Appends to `entries` those of the cached full blocks that `tokens` begin with, behind the scope's root.
template <class Tree>
void match_blocks(const Tree& tree, EntryId root, std::span<const std::int32_t> tokens,
                  std::span<const PrefixExtra> extras, int block_size, std::vector<EntryId>& entries) {
  const int num_full = static_cast<int>(tokens.size()) / block_size;
  EntryId last = root;
  for (int depth = 0; depth < num_full;) {
    const auto extra = first_extra_behind(extras, depth * block_size);
    const int plain_end = extra == extras.end() ? num_full : min(num_full, extra->begin / block_size);
    if (depth < plain_end) {
      const auto begin = static_cast<std::size_t>(depth) * static_cast<std::size_t>(block_size);
      const auto end = static_cast<std::size_t>(plain_end) * static_cast<std::size_t>(block_size);
      tree.match(last, tokens.subspan(begin, end - begin), entries);
      if (std::ssize(entries) < plain_end) return;
      depth = plain_end;
    } else {
      const std::string bytes = extras_key(extras, depth * block_size, block_size);
      const auto block = block_tokens(tokens, depth, block_size);
      const EntryId next = tree.find(last, tree.hash_of(tree.hash_of(last), block, bytes), block, bytes);
      if (next == EntryId::none) return;
      entries.push_back(next);
      ++depth;
    }
    last = entries.back();
  }
}

/// Looks among the continuations of the match, none of them with extras, for the one that shares most rows with the
/// prompt.
template <class Tree>
void extend_by_rows(const Tree& tree, EntryId last, std::span<const std::int32_t> tokens,
                    std::span<const PrefixExtra> extras, int block_size, PrefixMatch& match) {
  const auto rest = tokens.subspan(static_cast<std::size_t>(match.num_tokens));
  if (!extras_key(extras, match.num_tokens, block_size).empty()) return;
  std::ptrdiff_t longest = 0;
  EntryId best = EntryId::none;
  for (EntryId child = tree.first_child(last); child != EntryId::none; child = tree.next_sibling(child)) {
    if (!tree.extra(child).empty()) continue;
    const auto rows = tree.tokens_of(child);
    const auto common = std::ranges::mismatch(rows, rest).in1 - rows.begin();
    if (common > longest) {
      longest = common;
      best = child;
    }
  }
  if (best == EntryId::none) return;
  match.entries.push_back(best);
  match.num_tokens += static_cast<int>(longest);
}

/// The most tokens, at most `end`, that fill whole blocks and do not end inside an extra.
inline int whole_blocks(std::span<const PrefixExtra> extras, int end, int block_size) {
  for (int before = -1; before != end;) {
    before = end;
    end = outside_extras(extras, end);
    end -= end % block_size;
  }
  return end;
}

/// Finds the longest match: at most all tokens but the last, and not ending inside an extra. It has no blocks yet.
template <class Tree>
void match_prefix(const Tree& tree, std::string_view scope_key, std::span<const std::int32_t> tokens,
                  std::span<const PrefixExtra> extras, int block_size, bool partial_blocks, PrefixMatch& match) {
  const EntryId root = tree.find_root(scope_key);
  if (root == EntryId::none) return;
  match.entries.reserve(tokens.size() / static_cast<std::size_t>(block_size) + 1);
  match_blocks(tree, root, tokens, extras, block_size, match.entries);
  match.num_tokens = static_cast<int>(match.entries.size()) * block_size;
  if (partial_blocks)
    extend_by_rows(tree, match.entries.empty() ? root : match.entries.back(), tokens, extras, block_size, match);
  const int end = min(match.num_tokens, static_cast<int>(tokens.size()) - 1);
  match.num_tokens = partial_blocks ? outside_extras(extras, end) : whole_blocks(extras, end, block_size);
}

/// A copy that has an owner costs nothing that is available.
template <class Tree>
BlockId copy_to_share(const Tree& tree, const BlockAllocator& allocator, EntryId entry) {
  if (tree.has_duplicates(entry))
    for (BlockId copy = tree.canonical(entry); copy != BlockId::none; copy = tree.next_copy(copy))
      if (!allocator.is_idle(copy)) return copy;
  return tree.canonical(entry);
}

/// Chooses the blocks of the match's tokens.
template <class Tree>
void choose_blocks(const Tree& tree, const BlockAllocator& allocator, PrefixMatch& match) {
  const auto count = static_cast<std::size_t>(ceil_div(match.num_tokens, allocator.block_size()));
  match.blocks.resize(count);
  match.num_idle = 0;
  for (std::size_t i = 0; i < count; ++i) {
    match.blocks[i] = copy_to_share(tree, allocator, match.entries[i]);
    match.num_idle += allocator.is_idle(match.blocks[i]);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
