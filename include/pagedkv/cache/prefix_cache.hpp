// PrefixCache: lets a request start from blocks that earlier requests computed; admit, publish, evict.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/admission.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/cache/prefix_tree.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
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
  std::int64_t published_blocks = 0;  // duplicates included
  std::int64_t duplicate_blocks = 0;  // published though the same tokens were there already
  std::int64_t evicted_blocks = 0;
};

/// Keeps published blocks when their owners are gone, and gives up the coldest when the allocator runs dry. One per
/// allocator; it must outlive every sequence of that allocator. A hit is decided by comparing tokens. Not thread-safe.
template <EvictionPolicy Eviction = LruEviction, class Hash = BlockHash>
class BasicPrefixCache {
 public:
  explicit BasicPrefixCache(BlockAllocator& allocator, Hash hash = {})
      : allocator_(allocator), tree_(allocator.block_size(), hash) {
    allocator_.install({.context = this,
                        .became_idle = [](void* self, BlockId b) { cast(self)->eviction_.insert(b); },
                        .left_idle = [](void* self, BlockId b) { cast(self)->eviction_.remove(b); },
                        .evict = [](void* self) { cast(self)->evict(); }});
  }
  BasicPrefixCache(const BasicPrefixCache&) = delete;  // the allocator holds its address
  BasicPrefixCache& operator=(const BasicPrefixCache&) = delete;
  ~BasicPrefixCache() {
    PAGEDKV_ASSERT(allocator_.num_used() == 0 && "a sequence or a step plan outlives the prefix cache");
    clear();
    allocator_.uninstall();
  }

  /// Starts the empty sequence with the longest cached prefix of `tokens` (at most all but the last one: its query must
  /// be computed) and appends the rest. One transaction: a refusal leaves every bit of state as it was, the eviction
  /// order included, and no eviction takes a block that this call has matched. `never` means that the tokens alone
  /// exceed the pool. O(tokens); with partial_blocks also O(continuations of the last whole block that is hit).
  Admission admit(std::span<const std::int32_t> tokens, Sequence& sequence, StepPlan& plan,
                  const AdmitOptions& options = {}) {
    require(&sequence.allocator() == &allocator_, "PrefixCache::admit: sequence", "of the same allocator",
            "of another");
    require(sequence.size() == 0, "PrefixCache::admit: sequence.size()", 0, sequence.size());
    require(!tokens.empty(), "PrefixCache::admit: tokens", "at least 1", 0);
    require(std::ssize(tokens) <= std::numeric_limits<int>::max(), "PrefixCache::admit: tokens", "below 2^31",
            tokens.size());
    require(options.max_append >= 1, "PrefixCache::admit: max_append", "at least 1", options.max_append);
    require(options.watermark >= 0, "PrefixCache::admit: watermark", "at least 0", options.watermark);
    const PrefixScope scope = options.scope();
    scope.validate();
    static_cast<void>(sequence.append(0, plan));  // throws now, not half-way, if this plan is not for this sequence
    const int num_tokens = static_cast<int>(tokens.size());
    const int block_size = allocator_.block_size();
    if (ceil_div(num_tokens, block_size) > allocator_.num_blocks()) return refuse(Refusal::never);

    Match match;
    if (!options.skip_lookup) match = find_longest(tokens, scope, options.partial_blocks);
    if (!fits(match, num_tokens, options)) {
      // A partial hit keeps its source from being evicted until the commit; without it there is one block more.
      match = whole_blocks_of(match);
      if (!fits(match, num_tokens, options)) return refuse(Refusal::later);
    }
    const int to_compute = num_tokens - match.num_tokens;
    const int appended = min(to_compute, options.max_append);
    sequence.adopt(match.blocks, match.num_tokens);
    try {
      [[maybe_unused]] const bool has_room = sequence.append(appended, plan);  // copies a partly used last block
      PAGEDKV_ASSERT(has_room);
    } catch (...) {  // out of memory
      sequence.truncate(0);
      throw;
    }

    ++stats_.admitted;
    if (!options.skip_lookup) {
      stats_.hit_tokens += match.num_tokens;
      stats_.missed_tokens += to_compute;
    }
    return Admitted{.cached = match.num_tokens, .to_compute = to_compute, .appended = appended};
  }

  /// Makes the full, committed blocks of a sequence findable. `tokens` are all of the sequence's tokens (at least those
  /// of its full committed blocks) and `scope` is the one it was admitted with. Blocks whose tokens are in the cache
  /// already become duplicates. Stops at a block that a sliding window dropped, so publish before release_before().
  /// O(newly full blocks); if there are none, nothing is hashed.
  void publish(std::span<const std::int32_t> tokens, const Sequence& sequence, const PrefixScope& scope = {}) {
    require(&sequence.allocator() == &allocator_, "PrefixCache::publish: sequence", "of the same allocator",
            "of another");
    const int block_size = allocator_.block_size();
    const int num_full = sequence.num_committed() / block_size;
    require(std::ssize(tokens) >= static_cast<std::ptrdiff_t>(num_full) * block_size,
            "PrefixCache::publish: tokens at least", num_full * block_size, std::ssize(tokens));
    int first = num_full;
    while (first > 0 && tree_.entry_of(block_of(sequence, first - 1)) == EntryId::none) --first;
    if (first == num_full) return;
    scope.validate();

    EntryId parent = first > 0 ? tree_.entry_of(block_of(sequence, first - 1)) : EntryId::none;
    require(first == 0 || std::ranges::equal(tree_.tokens_of(parent), block_tokens(tokens, first - 1)),
            "PrefixCache::publish: tokens", "those of the blocks published before", "others");
    for (int i = first; i < num_full; ++i) {
      const BlockId block = block_of(sequence, i);
      if (block == BlockId::none) return;
      std::string root_key = i == 0 ? detail::scope_key(scope) : std::string();
      std::string extra = detail::extras_key(scope.extras, i * block_size, block_size);
      tree_.prepare(block);  // memory runs out here or not at all
      eviction_.prepare(block);
      if (i == 0) parent = find_or_insert(EntryId::none, {}, std::move(root_key)).entry;
      const auto [entry, is_new] = find_or_insert(parent, block_tokens(tokens, i), std::move(extra));
      allocator_.publish(block);
      tree_.attach(entry, block);
      ++stats_.published_blocks;
      stats_.duplicate_blocks += !is_new;
      parent = entry;
    }
  }

  /// Forgets everything; blocks with owners stay with them. O(blocks).
  void clear() {
    for (int i = 0; i < tree_.block_bound(); ++i)
      if (allocator_.is_published(BlockId{i})) allocator_.unpublish(BlockId{i});
    tree_.clear();
  }

  const PrefixStats& stats() const { return stats_; }

  /// Of the cache and its allocator. For tests: O(everything).
  void check_invariants() const {
    allocator_.check_invariants();
    tree_.check_invariants();
    [[maybe_unused]] int num_idle = 0;
    for (int i = 0; i < allocator_.num_blocks(); ++i) {
      const BlockId block{i};
      PAGEDKV_ASSERT(allocator_.is_published(block) == (tree_.entry_of(block) != EntryId::none));
      PAGEDKV_ASSERT(allocator_.is_idle(block) == eviction_.contains(block));
      num_idle += allocator_.is_idle(block);
    }
    PAGEDKV_ASSERT(num_idle == eviction_.size() && num_idle == allocator_.num_idle());
  }

  /// Of the cache and its allocator; statistics do not count.
  std::uint64_t state_hash() const {
    return detail::hash_mix(detail::hash_mix(allocator_.state_hash(), tree_.state_hash()), eviction_.state_hash());
  }

 private:
  using EntryId = detail::EntryId;

  // The cached blocks that a request can start from; of the last one perhaps only some rows.
  struct Match {
    std::vector<BlockId> blocks;
    int num_tokens = 0;
  };

  static BasicPrefixCache* cast(void* self) { return static_cast<BasicPrefixCache*>(self); }

  static BlockId block_of(const Sequence& sequence, int index) {
    return sequence.blocks()[static_cast<std::size_t>(index)];
  }

  std::span<const std::int32_t> block_tokens(std::span<const std::int32_t> tokens, int index) const {
    const auto block_size = static_cast<std::size_t>(allocator_.block_size());
    return tokens.subspan(static_cast<std::size_t>(index) * block_size, block_size);
  }

  Refusal refuse(Refusal refusal) {
    ++stats_.rejected;
    return refusal;
  }

  Match find_longest(std::span<const std::int32_t> tokens, const PrefixScope& scope, bool partial_blocks) const {
    Match match;
    const int block_size = allocator_.block_size();
    const int num_full = static_cast<int>(tokens.size()) / block_size;
    EntryId last = tree_.find(EntryId::none, {}, detail::scope_key(scope));
    if (last == EntryId::none) return match;
    int depth = 0;
    for (; depth < num_full; ++depth) {
      const EntryId next = tree_.find(last, block_tokens(tokens, depth),
                                      detail::extras_key(scope.extras, depth * block_size, block_size));
      if (next == EntryId::none) break;
      match.blocks.push_back(copy_to_share(next));
      last = next;
    }
    match.num_tokens = depth * block_size;
    if (partial_blocks) extend_by_rows(match, last, tokens, scope);

    // The last token is always computed, and a hit never ends inside an extra.
    int end = min(match.num_tokens, static_cast<int>(tokens.size()) - 1);
    for (int before = -1; before != end;) {
      before = end;
      end = detail::outside_extras(scope.extras, end);
      if (!partial_blocks) end -= end % block_size;
    }
    match.num_tokens = end;
    match.blocks.resize(static_cast<std::size_t>(ceil_div(end, block_size)), BlockId::none);
    return match;
  }

  // Looks for the child of `last` that shares most rows with the tokens behind the match.
  void extend_by_rows(Match& match, EntryId last, std::span<const std::int32_t> tokens,
                      const PrefixScope& scope) const {
    const auto rest = tokens.subspan(static_cast<std::size_t>(match.num_tokens));
    if (!detail::extras_key(scope.extras, match.num_tokens, allocator_.block_size()).empty()) return;
    std::ptrdiff_t longest = 0;
    EntryId best = EntryId::none;
    for (EntryId child = tree_.first_child(last); child != EntryId::none; child = tree_.next_sibling(child)) {
      if (!tree_.extra(child).empty()) continue;
      const auto rows = tree_.tokens_of(child);
      const auto common = std::ranges::mismatch(rows, rest).in1 - rows.begin();
      if (common > longest) {
        longest = common;
        best = child;
      }
    }
    if (best == EntryId::none) return;
    match.blocks.push_back(copy_to_share(best));
    match.num_tokens += static_cast<int>(longest);
  }

  // A copy that has an owner costs nothing that is available.
  BlockId copy_to_share(EntryId entry) const {
    for (BlockId copy = tree_.canonical(entry); copy != BlockId::none; copy = tree_.next_copy(copy))
      if (!allocator_.is_idle(copy)) return copy;
    return tree_.canonical(entry);
  }

  Match whole_blocks_of(const Match& match) const {
    const int num_blocks = match.num_tokens / allocator_.block_size();
    return {.blocks = {match.blocks.begin(), match.blocks.begin() + num_blocks},
            .num_tokens = num_blocks * allocator_.block_size()};
  }

  // Exact: idle hits are no longer available, and a partly used last block costs the block it is copied to.
  bool fits(const Match& match, int num_tokens, const AdmitOptions& options) const {
    const int block_size = allocator_.block_size();
    const int end = match.num_tokens + min(num_tokens - match.num_tokens, options.max_append);
    const int num_new = ceil_div(end, block_size) - match.num_tokens / block_size;
    int num_available = allocator_.num_available();
    for (const BlockId block : match.blocks) num_available -= allocator_.is_idle(block);
    return num_new <= num_available - options.watermark;
  }

  struct FoundEntry {
    EntryId entry;
    bool is_new;
  };

  FoundEntry find_or_insert(EntryId parent, std::span<const std::int32_t> tokens, std::string&& extra) {
    const EntryId found = tree_.find(parent, tokens, extra);
    if (found != EntryId::none) return {.entry = found, .is_new = false};
    return {.entry = tree_.insert(parent, tokens, std::move(extra)), .is_new = true};
  }

  void withdraw(BlockId block) {
    tree_.detach(block);
    allocator_.unpublish(block);
  }

  // Frees the coldest idle block, but no prefix before its continuations: a block whose tokens have no second copy
  // waits until what follows it is gone. What follows can have owners while it is idle itself only where a sliding
  // window dropped it; those blocks leave the cache, not their owners.
  void evict() {
    const BlockId coldest = eviction_.coldest();
    const EntryId entry = tree_.entry_of(coldest);
    if (tree_.has_duplicates(entry)) return evict(coldest);
    for (;;) {
      EntryId leaf = entry;
      while (tree_.first_child(leaf) != EntryId::none) leaf = tree_.first_child(leaf);
      BlockId block = tree_.canonical(leaf);
      while (block != BlockId::none && !allocator_.is_idle(block)) block = tree_.next_copy(block);
      if (block != BlockId::none) return evict(block);
      withdraw(tree_.canonical(leaf));
    }
  }

  void evict(BlockId block) {
    withdraw(block);
    ++stats_.evicted_blocks;
  }

  BlockAllocator& allocator_;
  detail::PrefixTree<Hash> tree_;
  Eviction eviction_;
  PrefixStats stats_;
};

using PrefixCache = BasicPrefixCache<>;

}  // namespace v0
}  // namespace pagedkv
