// PrefixCache: lets a request start from blocks that earlier requests computed; admit, publish, pin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/admission.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/events.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/prefix_match.hpp"
#include "pagedkv/cache/prefix_pending.hpp"
#include "pagedkv/cache/prefix_pins.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/cache/prefix_store.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/cache/trace_prefix.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

struct PrefixCacheOptions {
  int pin_budget = std::numeric_limits<int>::max();  // blocks in pins at most; a block in several pins counts once
  int event_capacity = 0;                            // events kept until they are drained; 0: none are recorded
};

/// Keeps published blocks when their owners are gone, and gives up the coldest when the allocator runs dry. One per
/// allocator; it must outlive every sequence of that allocator. A hit is decided by comparing tokens; `Hash` only
/// narrows, so it may be as weak as a constant: (hash of the block before, tokens, extra bytes) -> 64 bits.
/// Single-owner: one thread at a time, together with the allocator.
template <EvictionPolicy Eviction = LruEviction, class Hash = BlockHash>
class BasicPrefixCache {
 public:
  explicit BasicPrefixCache(BlockAllocator& allocator, const PrefixCacheOptions& options = {}, Hash hash = Hash{})
      : allocator_(allocator),
        pending_(allocator),
        pins_(allocator, options.pin_budget),
        store_(allocator, options.event_capacity, std::move(hash)) {}
  BasicPrefixCache(const BasicPrefixCache&) = delete;
  BasicPrefixCache& operator=(const BasicPrefixCache&) = delete;
  ~BasicPrefixCache() {
    pins_.clear();
    allocator_.drain();
    PAGEDKV_ASSERT(allocator_.num_used() == 0 && "a sequence or a step plan outlives the prefix cache");
  }

  /// Starts the empty sequence with the longest cached prefix of `tokens` (at most all but the last one: its query must
  /// be computed) and appends the rest. One transaction: a refusal leaves every bit of state as it was, the eviction
  /// order included, and no eviction takes a block that this call has matched. `never` means that the tokens alone
  /// exceed the pool. O(tokens); with partial_blocks also O(continuations of the last whole block that is hit).
  Admission admit(std::span<const std::int32_t> tokens, Sequence& sequence, StepPlan& plan,
                  const AdmitOptions& options = {}) {
    return recorded([&] { return start(tokens, sequence, plan, options); },
                    [&](Trace& trace, const Admission& admission) {
                      detail::write_admit(trace, sequence.table().id(), plan.serial(), tokens, options,
                                          static_cast<bool>(admission));
                    });
  }

  /// Tells later requests of the step what the sequence computes in it, as admit() does: for the chunks of a long
  /// prompt that are appended afterwards. Call it after that append(); what earlier steps computed should be published
  /// before.
  void announce(std::span<const std::int32_t> tokens, const Sequence& sequence, const PrefixScope& scope = {}) {
    check_sequence(sequence, "PrefixCache::announce: sequence");
    require(std::ssize(tokens) >= sequence.size(), "PrefixCache::announce: tokens at least", sequence.size(),
            std::ssize(tokens));
    scope.validate();
    const int next = sequence.num_committed() / allocator_.block_size();
    if (!sequence.may_publish() ||
        !has_block(tokens.first(static_cast<std::size_t>(sequence.size() - sequence.num_drafts())), next))
      return;
    match_.clear();
    if (next > 0) {
      const BlockId before = sequence.table()[next - 1];
      if (!allocator_.is_published(before) || !store_.tree().is_current(store_.tree().entry_of(before))) return;
      match_.entries.assign(static_cast<std::size_t>(next), store_.tree().entry_of(before));
    }
    detail::write_scope_key(scope, scope_key_);
    detail::PendingKey key = pending_key(next, tokens, scope.extras);
    pending_.prepare();
    pending_.add(sequence.table()[next], sequence.open_step(), std::move(key));
    if (Trace* const trace = allocator_.recorder(); trace != nullptr) [[unlikely]]
      detail::write_announce(*trace, sequence.table().id(), tokens, next * allocator_.block_size(), scope);
  }

  /// Makes the full, committed blocks of a sequence findable. `tokens` are all of the sequence's tokens (at least those
  /// of its full committed blocks) and `scope` is the one it was admitted with. Blocks whose tokens are in the cache
  /// already become duplicates. Does nothing for a sequence that may not publish, or whose published blocks are from
  /// before reset(). Stops at a block that a sliding window dropped, so publish before release_before(). Running out of
  /// memory changes nothing. O(newly full blocks); if there are none, nothing is hashed.
  void publish(std::span<const std::int32_t> tokens, const Sequence& sequence, const PrefixScope& scope = {},
               const Retention& retention = {}) {
    record_publish(tokens, sequence, scope, retention, false,
                   [&] { publish(tokens, sequence, scope, retention, nullptr); });
  }

  /// The same, but where the cache has a block with the same tokens already, the sequence takes that one and gives its
  /// own back. Its table changes, so no step that was planned before may still be waiting to read it. Running out of
  /// memory half-way leaves some duplicates where they are, unpublished; the rest is as it should be.
  void publish_and_remap(std::span<const std::int32_t> tokens, Sequence& sequence, const PrefixScope& scope = {},
                         const Retention& retention = {}) {
    record_publish(tokens, sequence, scope, retention, true, [&] {
      std::vector<Duplicate> duplicates;
      publish(tokens, sequence, scope, retention, &duplicates);
      for (const Duplicate& duplicate : duplicates) {
        const BlockId copy = copy_to_share(store_.tree(), allocator_, duplicate.entry);
        if (allocator_.is_idle(copy) && allocator_.num_available() == 0) continue;  // reserved
        sequence.remap(duplicate.index, copy);
        store_.eviction().touched(copy, retention);
        ++store_.stats().remapped_blocks;
      }
    });
  }

  /// How many tokens a request would find now. Changes nothing.
  int num_cached_tokens(std::span<const std::int32_t> tokens, const PrefixScope& scope = {},
                        bool partial_blocks = false) const {
    scope.validate();
    match_.clear();
    if (!tokens.empty())
      match_prefix(store_.tree(), detail::scope_key(scope), tokens, scope.extras, allocator_.block_size(),
                   partial_blocks, match_);
    return match_.num_tokens;
  }

  /// Keeps the cached full blocks that `tokens` begin with from being evicted until unpin(). nullopt, and no change, if
  /// there are none or more than the budget allows. Pins beyond the budget drop the oldest ones. O(all pinned blocks).
  std::optional<PinId> pin(std::span<const std::int32_t> tokens, const PrefixScope& scope = {}) {
    return recorded([&] { return find_and_pin(tokens, scope); },
                    [&](Trace& trace, std::optional<PinId> pin) {
                      detail::write_pin(trace, tokens, scope, pin ? static_cast<std::uint64_t>(*pin) : 0);
                    });
  }

  /// False if the pin is gone already: the budget or reset() has dropped it.
  bool unpin(PinId pin) {
    return recorded(
        [&] { return pins_.unpin(pin); },
        [&](Trace& trace, bool unpinned) { detail::write_unpin(trace, static_cast<std::uint64_t>(pin), unpinned); });
  }

  /// Blocks that the pin keeps; 0 if it is gone. Without an argument: that any pin keeps.
  int num_pinned_blocks(PinId pin) const { return pins_.num_blocks(pin); }
  int num_pinned_blocks() const { return pins_.num_blocks(); }

  /// Time passes, for policies that know deadlines. The unit is the caller's.
  void advance(std::int64_t now) {
    store_.eviction().advance(now);
    if (Trace* const trace = allocator_.recorder(); trace != nullptr) detail::write_advance(*trace, now);
  }

  /// From now on nothing that is cached can be found, e.g. because the weights have changed. Pins are dropped. Blocks
  /// with owners stay with them, and sequences that have published blocks publish none behind them; the blocks are
  /// evicted in their turn. A sequence that was computed before but has published nothing yet is not known here: what
  /// it publishes is found again, so forbid it to publish if its rows have become wrong. O(1), and O(pinned blocks).
  void reset() {
    pins_.clear();
    store_.start_epoch();
    if (Trace* const trace = allocator_.recorder(); trace != nullptr) trace->write({.op = TraceOp::reset});
  }

  /// The same, and all blocks without owners are free at once. O(blocks that are cached).
  void clear() {
    pins_.clear();
    store_.clear();
    if (Trace* const trace = allocator_.recorder(); trace != nullptr) trace->write({.op = TraceOp::clear});
  }

  const PrefixStats& stats() const { return store_.stats(); }

  /// What was stored and removed since the last call; see CacheEvents.
  CacheEvents drain_events() { return store_.events().drain(); }

  /// A `stored` event for everything that can be found, parents first. Events that were not drained are forgotten: the
  /// snapshot knows their outcome. O(cached blocks).
  std::vector<CacheEvent> snapshot_events() { return store_.events().snapshot(store_.tree()); }

  /// Of the cache and its allocator. For tests: O(everything).
  void check_invariants() const {
    store_.check_invariants();
    pins_.check_invariants();
  }

  /// Of the cache and its allocator; statistics and events do not count.
  std::uint64_t state_hash() const {
    return detail::hash_mix(detail::hash_mix(store_.state_hash(), pins_.state_hash()), pending_.state_hash());
  }

 private:
  using Store = detail::PrefixStore<Eviction, Hash>;
  using Duplicate = typename Store::Duplicate;

  void check_sequence(const Sequence& sequence, const char* what) const {
    require(&sequence.allocator() == &allocator_, what, "of the same allocator", "of another");
  }

  // Does `call` without a trace of its parts, and writes it as one operation.
  template <class Call, class Write>
  auto recorded(Call call, Write write) {
    Trace* const trace = allocator_.recorder();
    if (trace == nullptr) [[likely]]
      return call();
    auto result = [&] {
      const Trace::Pause pause(trace);
      return call();
    }();
    write(*trace, result);
    return result;
  }

  // A publication that finds no newly full block does nothing and is not written.
  template <class Call>
  void record_publish(std::span<const std::int32_t> tokens, const Sequence& sequence, const PrefixScope& scope,
                      const Retention& retention, bool remaps, Call call) {
    Trace* const trace = allocator_.recorder();
    if (trace == nullptr) [[likely]]
      return call();
    const int block_size = allocator_.block_size();
    const int num_full = sequence.num_committed() / block_size;
    int first = num_full;
    while (first > 0 && sequence.table()[first - 1] != BlockId::none &&
           !allocator_.is_published(sequence.table()[first - 1]))
      --first;
    {
      const Trace::Pause pause(trace);
      call();
    }
    if (first < num_full)
      detail::write_publish(*trace, sequence.table().id(),
                            tokens.first(static_cast<std::size_t>(num_full) * static_cast<std::size_t>(block_size)),
                            max(first - 1, 0) * block_size, scope, retention, remaps);
  }

  Admission start(std::span<const std::int32_t> tokens, Sequence& sequence, StepPlan& plan,
                  const AdmitOptions& options) {
    check_sequence(sequence, "PrefixCache::admit: sequence");
    require(sequence.size() == 0, "PrefixCache::admit: sequence.size()", 0, sequence.size());
    require(!tokens.empty(), "PrefixCache::admit: tokens", "at least 1", 0);
    require(std::ssize(tokens) <= std::numeric_limits<int>::max(), "PrefixCache::admit: tokens", "below 2^31",
            tokens.size());
    require(options.max_append >= 1, "PrefixCache::admit: max_append", "at least 1", options.max_append);
    require(options.watermark >= 0, "PrefixCache::admit: watermark", "at least 0", options.watermark);
    options.retention.validate();
    const PrefixScope scope = options.scope();
    scope.validate();
    static_cast<void>(sequence.append(0, plan));  // throws now, not half-way, if this plan is not for this sequence
    const int num_tokens = static_cast<int>(tokens.size());
    const int block_size = allocator_.block_size();
    if (ceil_div(num_tokens, block_size) > allocator_.num_blocks()) return refuse(Refusal::never);

    detail::write_scope_key(scope, scope_key_);
    match_.clear();
    if (!options.no_read)
      match_prefix(store_.tree(), scope_key_, tokens, scope.extras, block_size, options.partial_blocks, match_);
    const int next = match_.num_tokens / block_size;  // the first block to be computed
    const bool is_known = std::ssize(match_.entries) > next && match_.num_tokens % block_size == 0;
    const bool gains_by_waiting =
        options.partial_blocks ? match_.num_tokens + 1 < num_tokens : std::int64_t{next + 1} * block_size < num_tokens;
    if (options.twins == Twins::wait && !options.no_read && !is_known && gains_by_waiting && has_block(tokens, next) &&
        pending_.contains(pending_key(next, tokens, scope.extras))) {
      ++store_.stats().rejected_twins;
      return refuse(Refusal::twin);
    }
    if (const std::optional<Refusal> refusal = find_room(num_tokens, options)) return refuse(*refusal);

    const int to_compute = num_tokens - match_.num_tokens;
    const int appended = min(to_compute, options.max_append);
    const auto length = static_cast<std::size_t>(match_.num_tokens + appended);
    std::optional<detail::PendingKey> pending;
    if (!options.no_write && !is_known && has_block(tokens.first(length), next)) {
      pending = pending_key(next, tokens, scope.extras);
      pending_.prepare();
    }
    sequence.prepare(static_cast<int>(match_.blocks.size()), appended, plan);  // from here on memory is not short
    sequence.adopt(match_.blocks, match_.num_tokens);
    detail::undo_on_failure(
        [&] {
          [[maybe_unused]] const bool has_room = sequence.append(appended, plan);  // copies a partly used last block
          PAGEDKV_ASSERT(has_room);
        },
        [&] { sequence.truncate(0); });  // too many holds of one block

    for (const BlockId block : match_.blocks) store_.eviction().touched(block, options.retention);
    if (pending) pending_.add(sequence.table()[next], plan.serial(), std::move(*pending));
    if (options.no_write) sequence.forbid_publishing();
    PrefixStats& stats = store_.stats();
    ++stats.admitted;
    if (!options.no_read) {
      stats.hit_tokens += match_.num_tokens;
      stats.missed_tokens += to_compute;
    }
    return Admitted{.cached = match_.num_tokens, .to_compute = to_compute, .appended = appended};
  }

  std::optional<PinId> find_and_pin(std::span<const std::int32_t> tokens, const PrefixScope& scope) {
    scope.validate();
    match_.clear();
    const detail::EntryId root = store_.tree().find_root(detail::scope_key(scope));
    if (root == detail::EntryId::none) return std::nullopt;
    match_blocks(store_.tree(), root, tokens, scope.extras, allocator_.block_size(), match_.entries);
    if (match_.entries.empty()) return std::nullopt;
    match_.num_tokens = static_cast<int>(match_.entries.size()) * allocator_.block_size();
    choose_blocks(store_.tree(), allocator_, match_);
    if (match_.num_idle > allocator_.num_available()) return std::nullopt;  // reserved
    return pins_.pin(match_.blocks, store_.stats().dropped_pins);
  }

  Refusal refuse(Refusal refusal) {
    ++store_.stats().rejected;
    return refusal;
  }

  void publish(std::span<const std::int32_t> tokens, const Sequence& sequence, const PrefixScope& scope,
               const Retention& retention, std::vector<Duplicate>* duplicates) {
    check_sequence(sequence, "PrefixCache::publish: sequence");
    const int block_size = allocator_.block_size();
    const int num_full = sequence.num_committed() / block_size;
    require(std::ssize(tokens) >= static_cast<std::ptrdiff_t>(num_full) * block_size,
            "PrefixCache::publish: tokens at least", num_full * block_size, std::ssize(tokens));
    if (sequence.may_publish()) store_.publish(tokens, sequence.table(), num_full, scope, retention, duplicates);
  }

  bool has_block(std::span<const std::int32_t> tokens, int index) const {
    return (index + 1) * std::int64_t{allocator_.block_size()} <= std::ssize(tokens);
  }

  // What a twin of the block behind the match can be told by. The scope is in scope_key_.
  detail::PendingKey pending_key(int index, std::span<const std::int32_t> tokens,
                                 std::span<const PrefixExtra> extras) const {
    const int block_size = allocator_.block_size();
    detail::PendingKey key{.parent = detail::EntryId::none,
                           .generation = store_.tree().epoch(),
                           .tokens = detail::block_tokens(tokens, index, block_size),
                           .extra = detail::extras_key(extras, index * block_size, block_size)};
    if (index == 0) {
      key.extra.insert(0, scope_key_);
    } else {
      key.parent = match_.entries[static_cast<std::size_t>(index) - 1];
      key.generation = store_.tree().generation(key.parent);
    }
    return key;
  }

  // Chooses the blocks of the match, or says why the request does not fit.
  std::optional<Refusal> find_room(int num_tokens, const AdmitOptions& options) {
    choose_blocks(store_.tree(), allocator_, match_);
    int num_missing = missing_blocks(num_tokens, options);
    if (num_missing > 0 && allocator_.has_dead_tables()) {
      allocator_.drain();
      choose_blocks(store_.tree(), allocator_, match_);
      num_missing = missing_blocks(num_tokens, options);
    }
    if (num_missing > 0 && match_.num_tokens % allocator_.block_size() > 0) {
      // A partial hit keeps its source from being evicted until the commit; without it there is one block more.
      match_.num_tokens = detail::whole_blocks(options.extras, match_.num_tokens, allocator_.block_size());
      choose_blocks(store_.tree(), allocator_, match_);
      num_missing = missing_blocks(num_tokens, options);
    }
    if (num_missing <= 0) return std::nullopt;
    return pins_.num_freeable(match_.blocks) >= num_missing ? Refusal::pinned : Refusal::later;
  }

  // Exact: idle hits are no longer available, and a partly used last block costs the block it is copied to.
  int missing_blocks(int num_tokens, const AdmitOptions& options) const {
    const int block_size = allocator_.block_size();
    const int end = match_.num_tokens + min(num_tokens - match_.num_tokens, options.max_append);
    const int num_new = ceil_div(end, block_size) - match_.num_tokens / block_size;
    const std::int64_t num_left = std::int64_t{allocator_.num_available()} - match_.num_idle - options.watermark;
    return static_cast<int>(min<std::int64_t>(num_new - num_left, std::numeric_limits<int>::max()));
  }

  BlockAllocator& allocator_;
  mutable detail::PrefixMatch match_;  // of the call under way, kept for its memory
  std::string scope_key_;              // the same
  detail::PendingBlocks pending_;
  detail::PrefixPins pins_;
  Store store_;
};

using PrefixCache = BasicPrefixCache<>;

}  // namespace v0
}  // namespace pagedkv
