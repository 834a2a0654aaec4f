// CacheOracleState: what the naive oracle knows of the prefix cache and of requests, and what follows from it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/naive_cache.hpp"
#include "cache/operations.hpp"
#include "cache/oracle.hpp"
#include "pagedkv/cache/admission.hpp"
#include "pagedkv/cache/prefix_pins.hpp"
#include "pagedkv/cache/prefix_scope.hpp"

namespace pagedkv_test {

/// A sequence of this oracle belongs to a scope: 0 is the plain one, 1 has a salt, and in 2 and 3 some tokens stand for
/// an image. Such tokens are other numbers here, so that equal lists may share and others may not.
class CacheOracleState : public CoreOracle {
 public:
  static constexpr int extra_begin = 2;
  static constexpr int extra_end = 5;
  static constexpr int num_scopes = 4;

  CacheOracleState(int num_blocks, int block_size, std::size_t num_sequences)
      : CoreOracle(num_blocks, block_size, num_sequences), published_(num_blocks, block_size) {}

  /// What a request wants: real tokens, and what they are worth in its scope.
  struct Prompt {
    int scope;
    Tokens tokens;
  };

  std::size_t num_pins() const { return pins_.size(); }

  void commit(std::size_t p) override {
    std::erase_if(pending_, [p](const Pending& pending) { return pending.plan == static_cast<int>(p); });
    CoreOracle::commit(p);
  }

 protected:
  void observe() override { published_.forget_unpublished(*blocks_); }

  void count_owners(NaiveBlocks& naive) const override {
    CoreOracle::count_owners(naive);
    for (const auto& pin : pins_)
      for (const BlockId id : pin.second) ++naive[id].owners;
  }

  std::int32_t naive_token(const NaiveSequence& is, std::int32_t token) const override {
    const bool is_image = is.scope >= 2 && is.size() >= extra_begin && is.size() < extra_end;
    return is_image ? token + 1000 * is.scope : token;
  }

  struct Pending {
    BlockId block;
    int index;
    std::uint64_t value;
    int epoch;
    int plan;
    bool is_sure;  // not of a block that was cached at the time, nor followed by a clear() or given up since
  };

  static PrefixScope scope_of(int scope) {
    static constexpr std::array images{
        PrefixExtra{extra_begin, extra_end, "cat"},
        PrefixExtra{extra_begin, extra_end, "dog, with a name longer than a short string"}};
    if (scope < 2) return {.salt = static_cast<std::uint64_t>(scope)};
    return {.extras = std::span(images).subspan(static_cast<std::size_t>(scope) - 2, 1)};
  }

  static void start(NaiveSequence& is, int scope) {
    is.scope = scope;
    is.salt = scope_of(scope).salt;
  }

  static Tokens real_tokens(const NaiveSequence& is) {
    Tokens tokens = is.tokens;
    for (std::int32_t& token : tokens) token %= 1000;
    return tokens;
  }

  bool has_extra(int scope, int block) const {
    return scope >= 2 && block * block_size_ < extra_end && (block + 1) * block_size_ > extra_begin;
  }

  // At most all tokens but the last, and not ending inside an image.
  int longest_hit(const NaiveSequence& all, bool partial_blocks) const {
    const int num_blocks = published_.num_hit_blocks(all.values);
    int end = num_blocks * block_size_;
    if (partial_blocks && !has_extra(all.scope, num_blocks))
      end += published_.num_hit_rows(all.values, all.salt, num_blocks);
    end = std::min(end, all.size() - 1);
    if (!partial_blocks) end -= end % block_size_;
    if (all.scope >= 2 && end > extra_begin && end < extra_end) end = extra_begin;
    return partial_blocks ? end : end - end % block_size_;
  }

  // Blocks of a hit that nobody owns: their last copy leaves what is available.
  int num_idle_hits(const NaiveSequence& all, int cached) const {
    int count = 0;
    for (int i = 0; i < cached / block_size_; ++i)
      if (const auto copies = published_.copies(published_.value_behind(all.values, i)); !copies.empty())
        count += std::ranges::all_of(copies, [this](BlockId id) { return naive_[id].state() == BlockState::idle; });
    return count;
  }

  int missing_blocks(const NaiveSequence& all, int cached, const AdmitOptions& options) const {
    const int end = cached + std::min(all.size() - cached, options.max_append);
    return blocks_for(end) - cached / block_size_ - (num_available() - options.watermark - num_idle_hits(all, cached));
  }

  // Blocks that nobody owns but pins, those that the request hits not counted; a hold or a guard may keep them.
  int num_freeable_pins(const NaiveSequence& all, int cached, bool kept_ones_too) const {
    std::set<BlockId> freeable;
    for (const auto& pin : pins_)
      for (const BlockId id : pin.second) {
        int num_pins = 0;
        for (const auto& other : pins_) num_pins += static_cast<int>(std::ranges::count(other.second, id));
        const bool is_kept = naive_[id].holds + naive_[id].guards > 0;
        if (naive_[id].owners == num_pins && (kept_ones_too || !is_kept)) freeable.insert(id);
      }
    for (int i = 0; i < cached / block_size_; ++i)
      for (const BlockId id : published_.copies(published_.value_behind(all.values, i))) freeable.erase(id);
    return static_cast<int>(freeable.size());
  }

  // ---- twins ----

  void note_pending(const Seq& seq, int index) {
    if ((index + 1) * block_size_ > seq.is.size() - seq.is.drafts) return;
    const std::uint64_t value = published_.value_behind(seq.is.values, index);
    pending_.push_back({.block = seq.sequence.table()[index],
                        .index = index,
                        .value = value,
                        .epoch = published_.epoch(),
                        .plan = seq.is.plan,
                        .is_sure = published_.copies(value).empty()});
  }

  void forget_pending() {
    std::erase_if(pending_, [this](const Pending& pending) { return pending.epoch != published_.epoch(); });
    for (Pending& pending : pending_) {
      pending.is_sure = pending.is_sure && std::ranges::any_of(sequences_, [&](const auto& seq) {
                          return seq && pending.index < seq->sequence.table().num_blocks() && seq->is.may_publish &&
                                 seq->sequence.table()[pending.index] == pending.block &&
                                 seq->is.committed < (pending.index + 1) * block_size_ &&
                                 seq->is.size() - seq->is.drafts >= (pending.index + 1) * block_size_ &&
                                 published_.value_behind(seq->is.values, pending.index) == pending.value;
                        });
    }
  }

  // Does an open step fill, for some sequence, the block behind the first `cached` tokens with the prompt's? One that
  // has given up since may be told until its step is committed.
  bool is_being_computed(const NaiveSequence& all, int cached, bool surely) {
    const int index = cached / block_size_;
    if ((index + 1) * block_size_ > all.size()) return false;
    const std::uint64_t value = published_.value_behind(all.values, index);
    return (published_.copies(value).empty() || !surely) && std::ranges::any_of(pending_, [&](const Pending& pending) {
             const bool is_written = blocks_->state(pending.block) == BlockState::writing;
             return pending.value == value && is_written && (pending.is_sure || !surely);
           });
  }

  bool gains_by_waiting(int cached, int num_tokens, bool partial_blocks) const {
    return partial_blocks ? cached + 1 < num_tokens : (cached / block_size_ + 1) * block_size_ < num_tokens;
  }

  // ---- publishing ----

  void note_published(const Seq& seq, int index, BlockId block) {
    const auto begin = static_cast<std::ptrdiff_t>(index) * block_size_;
    const auto& is = seq.is;
    published_[block] =
        NaiveCache::Entry{.epoch = published_.epoch(),
                          .parent = index == 0 ? is.salt : published_.value_behind(is.values, index - 1),
                          .rows = {is.values.begin() + begin, is.values.begin() + begin + block_size_},
                          .has_extra = has_extra(is.scope, index),
                          .tokens = {is.tokens.begin(), is.tokens.begin() + begin + block_size_},
                          .scope = is.scope};
  }

  // ---- random requests ----

  // Mostly the beginning of a sequence that is there, and some tokens more.
  Prompt random_prompt(const Operation& op) const {
    Prompt prompt{.scope = static_cast<int>(op.seed / 16 % num_scopes), .tokens = {}};
    const auto& like = sequences_[op.other % sequences_.size()];
    if (like && op.seed % 4 != 0) {
      if (op.seed % 5 != 0) prompt.scope = like->is.scope;
      const auto length = op.seed % 3 == 0 ? like->is.tokens.size() : op.amount % (like->is.tokens.size() + 1);
      prompt.tokens = real_tokens(like->is);
      prompt.tokens.resize(length);
    }
    const int num_more = op.amount % 3 == 0 ? 0 : static_cast<int>(op.amount / 64) % (3 * block_size_);
    for (const std::int32_t token : random_tokens(op.seed, num_more)) prompt.tokens.push_back(token);
    if (prompt.tokens.empty()) prompt.tokens.push_back(0);
    return prompt;
  }

  AdmitOptions random_options(const Operation& op) const {
    AdmitOptions options{.partial_blocks = op.seed % 2 == 0};
    options.no_read = op.seed % 11 == 0;
    options.no_write = op.seed % 13 == 0;
    options.twins = op.seed % 5 < 2 ? Twins::wait : Twins::compute;
    options.retention.priority = static_cast<std::uint8_t>(op.seed / 8 % 3);
    if (op.seed % 9 == 0) options.retention.expires_at = time_ + static_cast<int>(op.amount % 16);
    if (op.seed % 7 == 0) options.max_append = 1 + static_cast<int>(op.amount % 5);
    if (op.seed % 17 == 0) options.watermark = 2;
    return options;
  }

  NaiveCache published_;
  std::vector<std::pair<PinId, std::vector<BlockId>>> pins_;  // the oldest first
  std::vector<Pending> pending_;
  std::int64_t time_ = 0;
};

}  // namespace pagedkv_test
