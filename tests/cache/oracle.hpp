// The naive oracle of the cache: the library beside lists of tokens, every promise checked after every operation.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/naive_memory.hpp"
#include "cache/naive_prefixes.hpp"
#include "cache/trace.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

namespace pagedkv_test {

/// Runs operations on the library and on lists of tokens side by side. The K and V of a token depend on all tokens
/// before it, so what a row must hold is a number made from the whole prefix: a wrong hit is a wrong number.
template <class Cache = PrefixCache>
class Oracle {
 public:
  Oracle(int num_blocks, int block_size)
      : block_size_(block_size),
        blocks_(std::make_unique<BlockAllocator>(BlockAllocatorOptions{num_blocks, block_size})),
        cache_(std::make_unique<Cache>(*blocks_)),
        prefixes_(block_size),
        memory_(num_blocks, block_size) {
    for (Plan& plan : plans_) plan.step = std::make_unique<StepPlan>();
  }

  ~Oracle() {
    for (auto& s : sequences_) s.reset();
    for (Plan& plan : plans_) plan.step->commit();
  }

  void run(const Operation& op) {
    std::optional<Seq>& seq = sequences_[op.sequence % sequences_.size()];
    Plan& plan = plans_[op.other % 8 == 0 ? 1 : 0];
    switch (op.kind) {
      case Kind::append:
        append(seq, plan, op);
        break;
      case Kind::fork:
        fork(seq, sequences_[op.other % sequences_.size()]);
        break;
      case Kind::truncate:
        truncate(seq, op);
        break;
      case Kind::release_before:
        release_before(seq, op);
        break;
      case Kind::drop:
        drop(seq);
        break;
      case Kind::admit:
        admit(seq, plan, op);
        break;
      case Kind::publish:
        publish(seq);
        break;
      case Kind::execute:
        execute(plan);
        break;
      case Kind::commit:
        commit(plan);
        break;
      case Kind::clear:
        if (op.seed % 8 == 0) cache_->clear();
        break;
    }
    prefixes_.forget_unpublished(*blocks_);
    poison_free_blocks();
    check();
  }

  std::uint64_t state_hash() const { return cache_->state_hash(); }

 private:
  using Tokens = std::vector<std::int32_t>;

  struct Seq {
    Sequence sequence;
    std::uint64_t salt = 0;
    Tokens tokens;
    int committed = 0;
    int released_blocks = 0;
    int plan = -1;          // of the uncommitted tokens
    std::vector<int> rows;  // in that plan, of the uncommitted tokens
  };

  struct Plan {
    std::unique_ptr<StepPlan> step;
    std::vector<std::uint64_t> rows;  // what each row writes; NaiveMemory::dead for killed rows
    bool executed = false;
  };

  // ---- operations ----

  void append(std::optional<Seq>& seq, Plan& plan, const Operation& op) {
    if (!seq) seq.emplace(Seq{Sequence{*blocks_}, 0, {}, 0, 0, -1, {}});
    if (plan.executed) commit(plan);
    if (is_in_another_step(*seq, plan)) return expect_throw([&] { return seq->sequence.append(1, *plan.step); });
    const int count = static_cast<int>(op.amount) % (op.seed % 4 == 0 ? 3 * block_size_ + 1 : 3);
    const int size = static_cast<int>(seq->tokens.size());
    const int num_new = blocks_for(size + count) - blocks_for(size) + (count > 0 && must_copy(*seq) ? 1 : 0);
    const bool fits = num_new <= blocks_->num_available();
    const int expected_idle = blocks_->num_idle() - std::max(0, num_new - blocks_->num_free());
    const auto before = snapshot(seq->sequence, *plan.step);
    const bool appended = seq->sequence.append(count, *plan.step);
    expect(appended == fits, "append succeeds exactly when the blocks are there");
    if (!appended) return expect(before == snapshot(seq->sequence, *plan.step), "a failed append changes nothing");
    expect(blocks_->num_idle() == expected_idle, "append evicts exactly what it needs");
    write(*seq, plan, random_tokens(op.seed, count));
  }

  void fork(std::optional<Seq>& parent, std::optional<Seq>& child) {
    if (!parent || &parent == &child) return;
    Seq copy{parent->sequence.fork(), parent->salt, {}, parent->committed, 0, -1, {}};
    copy.tokens.assign(parent->tokens.begin(), parent->tokens.begin() + parent->committed);
    copy.released_blocks = std::min(parent->released_blocks, blocks_for(copy.committed));
    drop(child);
    child.emplace(std::move(copy));
  }

  void truncate(std::optional<Seq>& seq, const Operation& op) {
    if (!seq) return;
    const int size = static_cast<int>(seq->tokens.size());
    const int target = op.seed % 3 == 0 ? static_cast<int>(op.amount) % (size + 1)
                                        : std::max(0, size - static_cast<int>(op.amount) % (block_size_ + 2));
    if (target > 0 && target < seq->released_blocks * block_size_)
      return expect_throw([&] { return seq->sequence.truncate(target), true; });
    kill_rows(*seq, target);
    seq->sequence.truncate(target);
    seq->tokens.resize(static_cast<std::size_t>(target));
    seq->committed = std::min(seq->committed, target);
    seq->released_blocks = std::min(seq->released_blocks, blocks_for(target));
  }

  void release_before(std::optional<Seq>& seq, const Operation& op) {
    if (!seq) return;
    const int position = static_cast<int>(op.amount) % (seq->committed + 1);
    seq->sequence.release_before(position);
    seq->released_blocks = std::max(seq->released_blocks, position / block_size_);
  }

  void drop(std::optional<Seq>& seq) {
    if (!seq) return;
    kill_rows(*seq, 0);
    seq.reset();
  }

  void admit(std::optional<Seq>& slot, Plan& plan, const Operation& op) {
    const Tokens tokens = random_prompt(op);
    drop(slot);
    if (plan.executed) commit(plan);
    AdmitOptions options{.salt = op.seed % 5 == 0 ? 1u : 0u};
    options.partial_blocks = op.seed % 2 == 0;
    options.skip_lookup = op.seed % 11 == 0;
    if (op.seed % 7 == 0) options.max_append = 1 + static_cast<int>(op.amount % 5);
    options.watermark = op.seed % 13 == 0 ? 2 : 0;

    Seq seq{Sequence{*blocks_}, options.salt, {}, 0, 0, -1, {}};
    const int num_tokens = static_cast<int>(tokens.size());
    const auto before = snapshot(seq.sequence, *plan.step);
    const int whole = options.skip_lookup ? 0 : prefixes_.cached_tokens(options.salt, tokens, false);
    const int partial = options.skip_lookup ? 0 : prefixes_.cached_tokens(options.salt, tokens, options.partial_blocks);
    const bool fits = fits_after_hit(options, tokens, whole);
    const Admission admission = cache_->admit(tokens, seq.sequence, *plan.step, options);
    if (!admission) {
      expect(before == snapshot(seq.sequence, *plan.step), "a refusal changes nothing, not even the eviction order");
      expect((admission.refusal() == Refusal::never) == (blocks_for(num_tokens) > blocks_->num_blocks()),
             "never means larger than the pool");
      expect(admission.refusal() == Refusal::never || !fits, "a request that fits is admitted");
      return;
    }
    expect(admission->cached == partial || (admission->cached == whole && partial > whole),
           "the longest prefix is hit");
    expect(fits || admission->cached > whole, "a request that does not fit is refused");
    expect(admission->cached < num_tokens && admission->cached + admission->to_compute == num_tokens,
           "the last token is computed");
    expect(admission->appended == std::min(admission->to_compute, options.max_append), "appended is bounded");
    expect(blocks_->num_available() >= options.watermark, "the watermark remains");
    seq.committed = admission->cached;
    seq.tokens.assign(tokens.begin(), tokens.begin() + admission->cached);
    write(seq, plan, {tokens.begin() + admission->cached, tokens.begin() + admission->cached + admission->appended});
    slot.emplace(std::move(seq));
  }

  void publish(std::optional<Seq>& seq) {
    if (!seq) return;
    cache_->publish(seq->tokens, seq->sequence, {.salt = seq->salt});
    prefixes_.publish(seq->salt, seq->tokens, seq->sequence.blocks().first(seq->committed / block_size_));
  }

  void execute(Plan& plan) {
    if (!plan.executed) memory_.execute(*plan.step, plan.rows);
    plan.executed = true;
  }

  void commit(Plan& plan) {
    execute(plan);
    plan.step->commit();
    plan.executed = false;
    plan.rows.clear();
    for (auto& seq : sequences_) {
      if (!seq || seq->plan != index_of(plan)) continue;
      seq->plan = -1;
      seq->rows.clear();
      seq->committed = static_cast<int>(seq->tokens.size());
    }
    expect(plan.step->empty() && plan.step->num_rows() == 0, "a committed plan is empty");
  }

  // ---- what must be true after every operation ----

  void check() const {
    cache_->check_invariants();
    std::map<BlockId, int> owners;
    std::set<Slot> written;
    for (const auto& seq : sequences_) {
      if (!seq) continue;
      const Sequence& s = seq->sequence;
      expect(s.size() == static_cast<int>(seq->tokens.size()), "size");
      expect(s.num_committed() == seq->committed, "num_committed");
      expect(std::ssize(s.blocks()) == blocks_for(s.size()), "no block more than the tokens need");
      std::set<BlockId> own;
      for (int i = 0; i < std::ssize(s.blocks()); ++i) {
        const BlockId block = s.blocks()[static_cast<std::size_t>(i)];
        expect((block == BlockId::none) == (i < seq->released_blocks), "exactly the released blocks are none");
        if (block == BlockId::none) continue;
        expect(own.insert(block).second, "no two positions share a block");
        ++owners[block];
      }
      for (std::size_t i = 0; i < seq->rows.size(); ++i) {
        const int position = seq->committed + static_cast<int>(i);
        const Slot slot = s.table().slot(position);
        expect(
            plans_[static_cast<std::size_t>(seq->plan)].step->slots()[static_cast<std::size_t>(seq->rows[i])] == slot,
            "the plan writes where the sequence reads");
        expect(written.insert(slot).second, "one writer for each slot");
        expect(!blocks_->is_published(s.blocks()[static_cast<std::size_t>(position / block_size_)]),
               "nobody writes into a published block");
      }
      std::uint64_t value = seq->salt;
      for (int i = 0; i < seq->committed; ++i) {
        value = next_value(value, seq->tokens[static_cast<std::size_t>(i)]);
        if (i < seq->released_blocks * block_size_) continue;
        const BlockId block = s.blocks()[static_cast<std::size_t>(i / block_size_)];
        expect(s.table().slot(i) == memory_.slot(block, i % block_size_), "slots follow the table");
        expect(read(block, i % block_size_) == value, "a sequence reads back exactly its own tokens");
      }
    }
    std::set<BlockId> in_use;
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies()) in_use.insert(copy.source);
    for (int i = 0; i < blocks_->num_blocks(); ++i) {
      const auto found = owners.find(BlockId{i});
      expect(blocks_->ref_count(BlockId{i}) == (found == owners.end() ? 0 : found->second), "owners are counted");
      if (found != owners.end()) in_use.insert(BlockId{i});
    }
    expect(blocks_->num_used() == static_cast<int>(in_use.size()), "used blocks have owners or pending copies");
    expect(blocks_->num_used() + blocks_->num_idle() + blocks_->num_free() == blocks_->num_blocks(), "conservation");
    prefixes_.check(*blocks_, [this](BlockId block, int row) { return read(block, row); });
  }

  // ---- the naive side ----

  // A row as it will be once the pending copies are made.
  std::uint64_t read(BlockId block, int row) const {
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies())
        if (!plan.executed && copy.destination == block && row < copy.num_rows) return memory_.read(copy.source, row);
    return memory_.read(block, row);
  }

  void write(Seq& seq, Plan& plan, const Tokens& tokens) {
    std::uint64_t value = seq.salt;
    for (const std::int32_t token : seq.tokens) value = next_value(value, token);
    for (const std::int32_t token : tokens) {
      value = next_value(value, token);
      seq.tokens.push_back(token);
      seq.rows.push_back(static_cast<int>(plan.rows.size()));
      seq.plan = index_of(plan);
      plan.rows.push_back(value);
    }
  }

  void kill_rows(Seq& seq, int num_kept_tokens) {
    const int num_kept = std::max(0, num_kept_tokens - seq.committed);
    while (static_cast<int>(seq.rows.size()) > num_kept) {
      plans_[static_cast<std::size_t>(seq.plan)].rows[static_cast<std::size_t>(seq.rows.back())] = NaiveMemory::dead;
      seq.rows.pop_back();
    }
  }

  bool has_pending_copy(const Seq& seq, const Plan& plan) const {
    for (const BlockCopy& copy : plan.step->copies())
      for (const BlockId block : seq.sequence.blocks())
        if (copy.destination == block) return true;
    return false;
  }

  bool is_in_another_step(const Seq& seq, const Plan& plan) const {
    const Plan& other = plans_[index_of(plan) == 0 ? 1 : 0];
    return has_pending_copy(seq, other) || (!seq.rows.empty() && seq.plan == index_of(other));
  }

  bool must_copy(const Seq& seq) const {
    const int rows = static_cast<int>(seq.tokens.size()) % block_size_;
    if (rows == 0 || !seq.rows.empty()) return false;
    const BlockId tail = seq.sequence.blocks().back();
    int num_owners = 0;
    for (const auto& other : sequences_)
      if (other) num_owners += static_cast<int>(std::ranges::count(other->sequence.blocks(), tail));
    int frozen = blocks_->is_published(tail) ? block_size_ : 0;
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies())
        if (copy.source == tail) frozen = std::max(frozen, copy.num_rows);
    return num_owners > 1 || rows < std::max(frozen, blocks_->num_frozen_rows(tail));
  }

  bool fits_after_hit(const AdmitOptions& options, const Tokens& tokens, int cached) const {
    const int end = cached + std::min(static_cast<int>(tokens.size()) - cached, options.max_append);
    int num_available = blocks_->num_available() - options.watermark;
    for (int length = block_size_; length <= cached; length += block_size_) {
      const bool is_idle =
          prefixes_.is_idle(options.salt, std::span(tokens).first(static_cast<std::size_t>(length)), *blocks_);
      num_available -= is_idle ? 1 : 0;
    }
    return blocks_for(end) - cached / block_size_ <= num_available;
  }

  // What nobody owns, publishes or copies may hold anything.
  void poison_free_blocks() {
    std::set<BlockId> copied;
    for (const Plan& plan : plans_)
      for (const BlockCopy& copy : plan.step->copies()) copied.insert(copy.source);
    for (int i = 0; i < blocks_->num_blocks(); ++i) {
      const BlockId block{i};
      if (blocks_->ref_count(block) == 0 && !blocks_->is_idle(block) && copied.count(block) == 0) memory_.poison(block);
    }
  }

  template <class Action>
  static void expect_throw(Action action) {
    try {
      static_cast<void>(action());
    } catch (const InvalidArgument&) {
      return;
    }
    throw OracleFailure("a wrong call is refused");
  }

  struct Snapshot {
    std::uint64_t hash;
    int size;
    std::size_t num_blocks;
    int num_rows;
    std::size_t num_copies;
    bool operator==(const Snapshot&) const = default;
  };

  Snapshot snapshot(const Sequence& sequence, const StepPlan& plan) const {
    return {cache_->state_hash(), sequence.size(), sequence.blocks().size(), plan.num_rows(), plan.copies().size()};
  }

  static Tokens random_tokens(unsigned seed, int count) {
    std::minstd_rand random{seed + 1};
    Tokens tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(random() / 7 % 2));
    return tokens;
  }

  // Mostly the beginning of a sequence that is there, and some tokens more.
  Tokens random_prompt(const Operation& op) const {
    Tokens tokens;
    const auto& like = sequences_[op.other % sequences_.size()];
    if (like && op.seed % 4 != 0) {
      const auto length = op.seed % 3 == 0 ? like->tokens.size() : op.amount % (like->tokens.size() + 1);
      tokens.assign(like->tokens.begin(), like->tokens.begin() + static_cast<std::ptrdiff_t>(length));
    }
    for (const std::int32_t token : random_tokens(op.seed, static_cast<int>(op.amount / 64) % (3 * block_size_)))
      tokens.push_back(token);
    if (tokens.empty()) tokens.push_back(0);
    return tokens;
  }

  int blocks_for(int num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }
  int index_of(const Plan& plan) const { return &plan == &plans_[0] ? 0 : 1; }

  int block_size_;
  std::unique_ptr<BlockAllocator> blocks_;
  std::unique_ptr<Cache> cache_;
  std::array<Plan, 2> plans_;
  std::array<std::optional<Seq>, 8> sequences_;
  NaivePrefixes prefixes_;
  NaiveMemory memory_;
};

}  // namespace pagedkv_test
