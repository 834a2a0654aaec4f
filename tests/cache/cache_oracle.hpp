// CacheOracle: the naive oracle of the prefix cache; hits, refusals, pins and events, foretold by lists and checked.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/cache_oracle_state.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

namespace pagedkv_test {

/// Runs like CoreOracle, with a prefix cache beside.
template <class Cache = PrefixCache>
class CacheOracle : public CacheOracleState {
 public:
  CacheOracle(int num_blocks, int block_size, std::size_t num_sequences = 8)
      : CacheOracleState(num_blocks, block_size, num_sequences),
        cache_(std::make_unique<Cache>(*blocks_,
                                       PrefixCacheOptions{.pin_budget = num_blocks / 3, .event_capacity = 32})) {}
  ~CacheOracle() override { close(); }

  void apply(const Operation& op) override {
    const std::size_t s = op.sequence % sequences_.size();
    const auto amount = static_cast<int>(op.amount);
    switch (op.kind) {
      case Kind::admit:
        admit(s, op.other % 8 == 0 ? 1 : 0, random_prompt(op), random_options(op));
        break;
      case Kind::announce:
        announce(s);
        break;
      case Kind::publish:
        publish(s, op.seed % 3 == 0, {.priority = static_cast<std::uint8_t>(op.amount % 3)});
        break;
      case Kind::pin:
        if (sequences_[s]) pin(s, amount % (sequences_[s]->is.size() + 1));
        break;
      case Kind::unpin:
        if (!pins_.empty()) unpin(op.amount % pins_.size());
        break;
      case Kind::advance:
        if (op.seed % 2 == 0) {
          time_ += amount % 5;
          call([&] { return cache_->advance(time_ - (op.seed % 16 == 0 ? 3 : 0)), true; });
        } else {
          drain_events();
        }
        break;
      case Kind::reset:
        if (op.seed % 4 == 0) reset();
        break;
      case Kind::clear:
        if (op.seed % 4 == 0) clear();
        break;
      default:
        CoreOracle::apply(op);
    }
  }

  std::uint64_t state_hash() const override { return cache_->state_hash(); }

  void admit(std::size_t s, std::size_t p, const Prompt& prompt, AdmitOptions options) {
    drop(s);
    Plan& plan = plans_[p];
    if (plan.executed) commit(p);
    Seq& seq = sequences_[s].emplace(Seq{Sequence{*blocks_}});
    start(seq.is, prompt.scope);
    options.salt = scope_of(prompt.scope).salt;
    options.extras = scope_of(prompt.scope).extras;
    NaiveSequence all = seq.is;
    for (const std::int32_t token : prompt.tokens) all.push(naive_token(all, token));

    const int num_tokens = all.size();
    const int best = options.no_read ? 0 : longest_hit(all, options.partial_blocks);
    const int whole = options.no_read ? 0 : longest_hit(all, false);
    const int num_missing = missing_blocks(all, whole, options);
    const bool fits = num_missing <= 0;
    const bool is_too_large = blocks_for(num_tokens) > blocks_->num_blocks();
    forget_pending();
    const bool may_wait =
        options.twins == Twins::wait && !options.no_read && gains_by_waiting(best, num_tokens, options.partial_blocks);
    const bool may_be_twin = may_wait && is_being_computed(all, best, false);
    const bool is_twin = may_wait && is_being_computed(all, best, true);
    const auto call_library = [&] { return cache_->admit(prompt.tokens, seq.sequence, *plan.step, options); };
    if (AllocationFailures::is_on && fits && !may_be_twin && options.watermark == 0)
      squeeze(blocks_for(whole + std::min(num_tokens - whole, options.max_append)) - whole / block_size_ +
                  num_idle_hits(all, whole),
              [&] { return static_cast<bool>(call_library()); });

    const std::uint64_t before = everything();
    const bool had_dead = blocks_->has_dead_tables();
    const Admission admission = call(call_library);
    if (!admission) {
      expect(had_dead || before == everything(), "a refusal changes nothing, not even the eviction order");
      expect((admission.refusal() == Refusal::never) == is_too_large, "never means larger than the pool");
      expect(is_too_large || !is_twin || admission.refusal() == Refusal::twin, "a twin is told while it is computed");
      expect(admission.refusal() != Refusal::twin || may_be_twin, "nobody waits for what nobody computes");
      expect(is_too_large || may_be_twin || !fits, "a request that fits is admitted");
      expect(admission.refusal() != Refusal::pinned || num_freeable_pins(all, whole, true) >= num_missing,
             "pinned means that pins are in the way");
      expect(admission.refusal() != Refusal::later || num_freeable_pins(all, whole, false) < num_missing,
             "later means that it would not fit without pins either");
      sequences_[s].reset();
      return;
    }
    const int cached = admission->cached;
    expect(!is_twin && !is_too_large, "a twin that asked to wait waits");
    expect(cached == best || cached == whole, "the longest prefix is hit");
    expect(fits || cached > whole, "a request that does not fit is refused");
    expect(!scope_of(prompt.scope).extras.empty() ? cached <= extra_begin || cached >= extra_end : true,
           "no hit ends inside an image");
    expect(cached < num_tokens && cached + admission->to_compute == num_tokens, "the last token is computed");
    expect(admission->appended == std::min(admission->to_compute, options.max_append), "appended is bounded");
    expect(had_dead || blocks_->num_available() >= options.watermark, "the watermark remains");
    seq.is.may_publish = !options.no_write;
    for (int i = 0; i < cached; ++i) seq.is.push(all.tokens[static_cast<std::size_t>(i)]);
    seq.is.committed = cached;
    const int end = cached + admission->appended;
    for (int i = 0; i < blocks_for(end); ++i) own_chunk(s, i);
    for (int i = cached / block_size_; i < blocks_for(end); ++i) naive_[seq.sequence.table()[i]].is_sealed = false;
    write(seq, p, {prompt.tokens.begin() + cached, prompt.tokens.begin() + end}, false);
    if (!options.no_write) note_pending(seq, cached / block_size_);
    recount();
  }

  void announce(std::size_t s) {
    if (!sequences_[s]) return;
    Seq& seq = *sequences_[s];
    call([&] { return cache_->announce(real_tokens(seq.is), seq.sequence, scope_of(seq.is.scope)), true; });
    const int next = seq.is.committed / block_size_;
    if (!seq.is.may_publish) return;
    if (next > 0) {
      const BlockId before = seq.sequence.table()[next - 1];
      if (before == BlockId::none || !published_[before] || published_[before]->epoch != published_.epoch()) return;
    }
    note_pending(seq, next);
  }

  void publish(std::size_t s, bool remap, const Retention& retention) {
    if (!sequences_[s]) return;
    Seq& seq = *sequences_[s];
    std::vector<BlockId> ids(seq.sequence.blocks().begin(), seq.sequence.blocks().end());
    const int num_full = seq.is.committed / block_size_;
    int first = num_full;
    while (first > 0 && ids[static_cast<std::size_t>(first) - 1] != BlockId::none &&
           !published_[ids[static_cast<std::size_t>(first) - 1]])
      --first;
    bool can = seq.is.may_publish;
    if (can && first > 0) {
      const BlockId before = ids[static_cast<std::size_t>(first) - 1];
      can = before != BlockId::none && published_[before]->epoch == published_.epoch();
    }
    const bool has_room = num_idle_hits(seq.is, num_full * block_size_) <= num_available();
    const Tokens tokens = real_tokens(seq.is);
    call([&] {
      if (remap) return cache_->publish_and_remap(tokens, seq.sequence, scope_of(seq.is.scope), retention), true;
      return cache_->publish(tokens, seq.sequence, scope_of(seq.is.scope), retention), true;
    });
    for (int i = first; can && i < num_full; ++i) {
      const BlockId block = ids[static_cast<std::size_t>(i)];
      const std::uint64_t value = published_.value_behind(seq.is.values, i);
      const std::vector<BlockId> copies = published_.copies(value);
      if (!remap || copies.empty()) {
        note_published(seq, i, block);
        continue;
      }
      const BlockId now = seq.sequence.table()[i];
      if (now == block && !has_room) continue;  // reserved blocks cannot be revived
      expect(std::ranges::find(copies, now) != copies.end(), "a duplicate gives way to a block that was there");
      own_chunk(s, i);
    }
    recount();
  }

  void pin(std::size_t s, int num_tokens) {
    const NaiveSequence is = sequences_[s]->is.beginning(num_tokens, block_size_);
    const int count = published_.num_hit_blocks(is.values);
    const std::uint64_t before = everything();
    std::vector<int> owners;
    for (int i = 0; i < blocks_->num_blocks(); ++i) owners.push_back(-blocks_->ref_count(BlockId{i}));
    if (blocks_->has_dead_tables()) return;
    const bool fits =
        count > 0 && count <= blocks_->num_blocks() / 3 && num_idle_hits(is, count * block_size_) <= num_available();
    const std::optional<PinId> id = call([&] { return cache_->pin(real_tokens(is), scope_of(is.scope)); });
    expect(id.has_value() == fits, "what is cached can be pinned within the budget");
    if (!id) return expect(before == everything(), "a refused pin changes nothing");
    for (int i = 0; i < blocks_->num_blocks(); ++i)
      owners[static_cast<std::size_t>(i)] += blocks_->ref_count(BlockId{i});
    forget_dropped_pins(owners);
    std::vector<BlockId> pinned;
    for (int i = 0; i < count; ++i) {
      for (const BlockId copy : published_.copies(published_.value_behind(is.values, i)))
        if (owners[static_cast<std::size_t>(to_index(copy))] == 1) pinned.push_back(copy);
      expect(std::ssize(pinned) == i + 1, "one copy of each block of the prefix is pinned");
    }
    expect(std::ranges::count(owners, 0) == blocks_->num_blocks() - count, "nothing else changes its owners");
    expect(cache_->num_pinned_blocks(*id) == count, "a pin knows its blocks");
    pins_.push_back({*id, std::move(pinned)});
    recount();
  }

  void unpin(std::size_t i) {
    expect(call([&] { return cache_->unpin(pins_[i].first); }), "a pin that is there can be taken off");
    expect(!cache_->unpin(pins_[i].first), "but once");
    pins_.erase(pins_.begin() + static_cast<std::ptrdiff_t>(i));
    recount();
  }

  void reset() {
    call([&] { return cache_->reset(), true; });
    published_.start_epoch();
    pins_.clear();
    recount();
  }

  void clear() {
    call([&] { return cache_->clear(), true; });
    expect(blocks_->num_idle() == 0 || blocks_->has_dead_tables(), "a cleared cache keeps no block");
    pins_.clear();
    for (Pending& pending : pending_) pending.is_sure = false;
    recount();
  }

  void check() override {
    forget_pending();
    CoreOracle::check();
    const std::vector<const BlockCopy*> copies = pending_copies();
    published_.check(*blocks_, [&](BlockId block, int row) { return read(block, row, copies); });
    std::set<BlockId> pinned;
    for (const auto& pin : pins_) pinned.insert(pin.second.begin(), pin.second.end());
    expect(cache_->num_pinned_blocks() == std::ssize(pinned), "a block in several pins counts once");
  }

 protected:
  void check_library() const override { cache_->check_invariants(); }

 private:
  // ---- pins ----

  // Adds to the change of owners what the pins that gave way had.
  void forget_dropped_pins(std::vector<int>& owners) {
    std::erase_if(pins_, [&](const auto& pin) {
      if (cache_->num_pinned_blocks(pin.first) > 0) return false;
      for (const BlockId id : pin.second) ++owners[static_cast<std::size_t>(to_index(id))];
      return true;
    });
  }

  // ---- events ----

  void drain_events() {
    const CacheEvents drained = cache_->drain_events();
    std::vector<CacheEvent> events = drained.events;
    if (drained.num_lost > 0) {
      told_.clear();
      events = cache_->snapshot_events();
    }
    for (const CacheEvent& event : events) {
      if (event.kind == CacheEventKind::cleared) told_.clear();
      if (event.kind == CacheEventKind::removed) expect(told_.erase(event.key) == 1, "what is removed was stored");
      if (event.kind != CacheEventKind::stored) continue;
      expect(event.parent == event.scope || told_.count(event.parent) == 1, "parents are stored first");
      expect(told_.insert(event.key).second, "a key is stored once");
    }
    std::set<ContentKey> cached;
    for (const auto& entry : published_.entries()) {
      if (!entry || entry->epoch != published_.epoch()) continue;
      Tokens tokens = entry->tokens;
      for (std::int32_t& token : tokens) token %= 1000;
      cached.insert(content_keys(tokens, scope_of(entry->scope), block_size_).back());
    }
    expect(told_ == cached, "the events add up to what is cached");
  }

  std::unique_ptr<Cache> cache_;
  std::set<ContentKey> told_;
};

}  // namespace pagedkv_test
