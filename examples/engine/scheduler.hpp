// Scheduler: which tokens of which requests the next step computes, and who must wait when blocks run out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/drafts.hpp"
#include "engine/request.hpp"
#include "engine/swap_space.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"

namespace engine {

/// What becomes of the K and V of a request that is pushed out: computed again, or kept in host memory while there is
/// room.
enum class Preemption { recompute, swap };

struct SchedulerOptions {
  int max_batched_tokens = 512;  // rows of one step
  int max_seqs = 32;             // branches that run at once; never more than max_batched_tokens
  int watermark = 0;             // blocks that an admission leaves to those who run already
  Preemption preemption = Preemption::recompute;
};

/// The next tokens of one branch, perhaps with guesses behind them; its logits are wanted when nothing is lacking
/// behind them.
struct Work {
  Request* request;
  int branch;
  int num_tokens;  // drafts included
  int num_drafts = 0;
};

/// Iteration-level batching (Orca, Yu et al., OSDI 2022) under a token budget: every step first gives each decoding
/// branch its row, then chunks of prompts (Sarathi, arXiv:2308.16369) to those admitted, soonest first, then admits.
/// Who does not find blocks pushes out the last request in the order of service, which later recomputes what it had or
/// fetches it from host memory (vLLM, arXiv:2309.06180, sec. 4.5). The order of service: by priority, then by arrival.
///
/// Among requests of one priority none starves: a running one is only pushed out by sooner ones, and an admissible one
/// fits into the empty pool. Sustained arrivals of a higher priority do starve lower ones.
class Scheduler {
 public:
  /// A step yields at most `max_logit_rows` rows of logits; those beyond max_seqs are for drafts and prompt scores.
  Scheduler(pagedkv::BlockAllocator& blocks, pagedkv::PrefixCache& prefixes, SwapSpace& swap,
            const SchedulerOptions& options, const DraftOptions& drafts, int max_logit_rows)
      : blocks_(blocks), prefixes_(prefixes), swap_(swap), options_(options), drafts_(drafts) {
    options_.max_seqs = std::min(options.max_seqs, options.max_batched_tokens);
    num_extra_logit_rows_ = std::max(0, max_logit_rows - options_.max_seqs);
  }

  const SchedulerOptions& options() const { return options_; }
  std::span<Request* const> running() const { return running_; }
  std::size_t num_waiting() const { return waiting_.size(); }
  bool is_idle() const { return running_.empty() && waiting_.empty(); }
  std::int64_t num_preemptions() const { return num_preemptions_; }
  std::int64_t num_swaps() const { return num_swaps_; }  // of those preemptions

  /// Queues a request. Throws BadInput, with both numbers, if it could not even run alone.
  void submit(Request& request) {
    const int width = request.params.width();
    if (width > options_.max_seqs)
      throw BadInput("continuations of one request", "at most " + std::to_string(options_.max_seqs),
                     std::to_string(width));
    const std::int64_t needed = Request::max_blocks(request.prompt_len, request.params, blocks_.block_size());
    if (needed > blocks_.num_blocks())
      throw BadInput("KV blocks that the request needs (" + std::to_string(request.prompt_len) + " prompt tokens, " +
                         std::to_string(request.params.max_tokens) + " more, " + std::to_string(width) +
                         " wide, block size " + std::to_string(blocks_.block_size()) + ")",
                     "at most the pool's " + std::to_string(blocks_.num_blocks()), std::to_string(needed));
    if (drafts_.max_drafts > 0) request.drafter.emplace(drafts_);
    insert(waiting_, &request);
  }

  /// Appends the next step's tokens to their sequences, and so to `plan`, soonest request first within each kind of
  /// work. What must be swapped for it stands in the swap space.
  // [schedule]
  const std::vector<Work>& schedule(pagedkv::StepPlan& plan) {
    swap_.begin_step();
    work_.clear();
    budget_ = options_.max_batched_tokens;
    extra_logit_rows_ = num_extra_logit_rows_;
    num_due_ = 0;
    for (const Request* request : running_)
      if (request->state == State::decode) num_due_ += request->num_unfinished();
    bool has_room = true;
    for (std::size_t i = 0; i < running_.size(); ++i)  // preemption shortens the list behind i, or at i
      if (running_[i]->state == State::decode) has_room &= decode(*running_[i], plan);
    // After a preemption the step ends here: dead rows stay the plan's last ones, and freed blocks with the soonest.
    for (std::size_t i = 0; has_room && i < running_.size(); ++i)
      if (running_[i]->state != State::decode) has_room &= prefill(*running_[i], plan);
    if (has_room) admit(plan);
    return work_;
  // [schedule]
  }

  /// Forgets a request, wherever it stands.
  void remove(Request& request) {
    std::erase(running_, &request);
    std::erase(waiting_, &request);
  }

 private:
  // One row for each branch. False if blocks were short: somebody was pushed out, perhaps the request itself.
  bool decode(Request& request, pagedkv::StepPlan& plan) {
    bool has_room = true;
    const std::size_t num_work = work_.size();
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      while (!branch.kv.append(1, plan)) {
        has_room = false;
        if (preempt_last() != &request) continue;
        work_.resize(num_work);  // its rows in the plan are dead, and the last ones
        return false;
      }
      --budget_;
      --num_due_;
      const int num_drafts = has_room && request.drafter && request.can_draft() ? draft(request, plan) : 0;
      work_.push_back({&request, index_of(request, branch), 1 + num_drafts, num_drafts});
    }
    return has_room;
  }

  // Guesses behind the last token of a text. Nobody waits or is pushed out for them.
  int draft(Request& request, pagedkv::StepPlan& plan) {
    Branch& branch = request.branches[0];
    const int num_useful = request.num_left(branch) - 1;
    const int most = std::min({drafts_.max_drafts, budget_ - num_due_, extra_logit_rows_, num_useful});
    request.drafts.clear();
    if (most <= 0) return 0;
    request.drafts = request.drafter->draft(branch.tokens, most);
    const int num_drafts = static_cast<int>(request.drafts.size());
    const int num_blocks = pagedkv::ceil_div(num_drafts, blocks_.block_size());
    if (num_drafts == 0 || blocks_.num_available() < num_due_ + num_blocks || !branch.kv.reserve(num_drafts, plan)) {
      request.drafts.clear();
      return 0;
    }
    budget_ -= num_drafts;
    extra_logit_rows_ -= num_drafts;
    return num_drafts;
  }

  // Chunks up to the request's goal. False if blocks were short. Nobody who works in this step is pushed out for a
  // prompt, nor who is fetched in it, for what leaves is copied before what comes: it waits for a step without them.
  bool prefill(Request& request, pagedkv::StepPlan& plan) {
    bool has_room = true;
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      const int chunk =
          std::min({budget_, request.goal(branch) - branch.kv.size(), max_scored_chunk(request, branch.kv.size())});
      if (chunk <= 0) continue;
      while (!branch.kv.append(chunk, plan)) {
        has_room = false;
        if (!work_.empty() || !swap_.incoming().empty()) return false;
        if (preempt_last() == &request) return false;
      }
      add_chunk(request, branch, chunk);
    }
    return has_room;
  }

  // First come, first served: who does not fit now holds up those behind.
  void admit(pagedkv::StepPlan& plan) {
    int num_rows = 0;
    for (const Request* request : running_) num_rows += request->num_rows();
    while (!waiting_.empty() && budget_ > 0) {
      Request& request = *waiting_.front();
      num_rows += request.num_rows();
      if (num_rows > options_.max_seqs) return;
      const bool is_swapped = request.interrupted != State::waiting;
      if (is_swapped ? !fetch(request) : !begin(request, plan)) return;
      waiting_.pop_front();
      insert(running_, &request);
      if (is_swapped && !(request.state == State::decode ? decode(request, plan) : prefill(request, plan))) return;
    }
  }

  bool begin(Request& request, pagedkv::StepPlan& plan) {
    request.start();
    Branch& leader = request.leader();
    const pagedkv::Admission admission =
        prefixes_.admit(std::span(leader.tokens).first(static_cast<std::size_t>(request.trunk_len)), leader.kv, plan,
                        {.salt = request.cache_salt,
                         .no_read = request.lacks_scores(),
                         .max_append = std::min(budget_, max_scored_chunk(request, 0)),
                         .watermark = running_.empty() ? 0 : options_.watermark});
    if (!admission) {
      request.state = State::waiting;
      return false;
    }
    if (request.num_preempted == 0) request.num_cached = admission->cached;
    add_chunk(request, leader, leader.kv.size() - admission->cached);
    return true;
  }

  // Back from host memory, with room for the next row of each branch.
  bool fetch(Request& request) {
    if (request.num_unfinished() > budget_) return false;
    if (!swap_.move_in(request, running_.empty() ? 0 : request.num_rows() + options_.watermark)) return false;
    request.state = std::exchange(request.interrupted, State::waiting);
    request.advance();
    num_due_ += request.state == State::decode ? request.num_unfinished() : 0;
    return true;
  }

  Request* preempt_last() {
    Request* victim = running_.back();
    running_.pop_back();
    ++victim->num_preempted;
    ++num_preemptions_;
    if (victim->state == State::decode) num_due_ -= victim->num_unfinished();
    if (options_.preemption == Preemption::swap && swap_.move_out(*victim)) {
      victim->interrupted = victim->state;
      ++num_swaps_;
    } else {
      victim->drop_blocks(blocks_);
    }
    victim->state = State::waiting;
    insert(waiting_, victim);
    return victim;
  }

  // Rows of a prompt whose scores are wanted yield logits: a chunk of as many as there is room for, at least one.
  int max_scored_chunk(const Request& request, int num_computed) const {
    if (!request.lacks_scores()) return options_.max_batched_tokens;
    return std::max(0, static_cast<int>(request.prompt_scores.size()) - num_computed) + 1 + extra_logit_rows_;
  }

  void add_chunk(Request& request, const Branch& branch, int num_tokens) {
    const int first_scored = static_cast<int>(request.prompt_scores.size());
    if (request.lacks_scores())
      extra_logit_rows_ -= std::max(0, branch.kv.size() - std::max(first_scored, branch.kv.size() - num_tokens) - 1);
    work_.push_back({&request, index_of(request, branch), num_tokens});
    budget_ -= num_tokens;
  }

  template <class Queue>
  static void insert(Queue& queue, Request* request) {
    queue.insert(std::upper_bound(queue.begin(), queue.end(), request, Request::is_sooner), request);
  }

  static int index_of(const Request& request, const Branch& branch) {
    return static_cast<int>(&branch - request.branches.data());
  }

  pagedkv::BlockAllocator& blocks_;
  pagedkv::PrefixCache& prefixes_;
  SwapSpace& swap_;
  SchedulerOptions options_;
  DraftOptions drafts_;
  int num_extra_logit_rows_ = 0;
  std::deque<Request*> waiting_;   // soonest first
  std::vector<Request*> running_;  // soonest first
  std::int64_t num_preemptions_ = 0, num_swaps_ = 0;

  // Of the step that is being scheduled.
  std::vector<Work> work_;
  int budget_ = 0;            // rows that are left
  int extra_logit_rows_ = 0;  // rows of logits that are left for drafts and scores
  int num_due_ = 0;           // rows that those who decode are still to get
};

}  // namespace engine
