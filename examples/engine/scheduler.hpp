// Scheduler: which tokens of which requests the next step computes, and who must wait when blocks run out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/request.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace engine {

struct SchedulerOptions {
  int max_batched_tokens = 512;  // rows of one step
  int max_seqs = 32;             // branches that run at once; never more than max_batched_tokens
  int watermark = 0;             // blocks that an admission leaves to those who run already
};

/// The next tokens of one branch; its logits are wanted when nothing is lacking behind them.
struct Work {
  Request* request;
  int branch;
  int num_tokens;
};

/// Iteration-level batching (Orca, Yu et al., OSDI 2022) under a token budget: every step first gives each decoding
/// branch its row, then chunks of prompts (Sarathi, arXiv:2308.16369) to those admitted, oldest first, then admits. Who
/// does not find blocks pushes out the newest request, which later recomputes what it had (vLLM, arXiv:2309.06180,
/// sec. 4.5).
///
/// No request starves: a running one is only pushed out by older ones, and an admissible one fits into the empty pool.
class Scheduler {
 public:
  Scheduler(pagedkv::BlockAllocator& blocks, pagedkv::PrefixCache& prefixes, const SchedulerOptions& options)
      : blocks_(blocks), prefixes_(prefixes), options_(options) {
    options_.max_seqs = std::min(options.max_seqs, options.max_batched_tokens);
  }

  const SchedulerOptions& options() const { return options_; }
  std::span<Request* const> running() const { return running_; }
  std::size_t num_waiting() const { return waiting_.size(); }
  bool is_idle() const { return running_.empty() && waiting_.empty(); }
  std::int64_t num_preemptions() const { return num_preemptions_; }

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
    waiting_.push_back(&request);
  }

  /// Appends the next step's tokens to their sequences, and so to `plan`, oldest request first within each kind of
  /// work.
  std::vector<Work> schedule(pagedkv::StepPlan& plan) {
    std::vector<Work> work;
    int budget = options_.max_batched_tokens;
    bool has_room = true;
    for (std::size_t i = 0; i < running_.size(); ++i)  // preemption shortens the list behind i, or at i
      if (running_[i]->state == State::decode) has_room &= decode(*running_[i], plan, work, budget);
    // After a preemption the step ends here: dead rows stay the plan's last ones, and freed blocks with the oldest.
    for (std::size_t i = 0; has_room && i < running_.size(); ++i)
      if (running_[i]->state != State::decode) has_room &= prefill(*running_[i], plan, work, budget);
    if (has_room) admit(plan, work, budget);
    return work;
  }

  /// Forgets a request, wherever it stands.
  void remove(Request& request) {
    std::erase(running_, &request);
    std::erase(waiting_, &request);
  }

 private:
  // One row for each branch. False if blocks were short: somebody was pushed out, perhaps the request itself.
  bool decode(Request& request, pagedkv::StepPlan& plan, std::vector<Work>& work, int& budget) {
    bool has_room = true;
    const std::size_t num_work = work.size();
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      while (!branch.kv.append(1, plan)) {
        has_room = false;
        if (preempt_newest() != &request) continue;
        work.resize(num_work);  // its rows in the plan are dead, and the last ones
        return false;
      }
      work.push_back({&request, index_of(request, branch), 1});
      --budget;
    }
    return has_room;
  }

  // Chunks up to the request's goal. False if blocks were short. Nobody who works in this step is pushed out for a
  // prompt: it waits until they have finished.
  bool prefill(Request& request, pagedkv::StepPlan& plan, std::vector<Work>& work, int& budget) {
    bool has_room = true;
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      const int chunk = std::min(budget, request.goal(branch) - branch.kv.size());
      if (chunk <= 0) continue;
      while (!branch.kv.append(chunk, plan)) {
        has_room = false;
        if (!work.empty()) return false;
        if (preempt_newest() == &request) return false;
      }
      work.push_back({&request, index_of(request, branch), chunk});
      budget -= chunk;
    }
    return has_room;
  }

  // First come, first served: who does not fit now holds up those behind.
  void admit(pagedkv::StepPlan& plan, std::vector<Work>& work, int& budget) {
    int num_rows = 0;
    for (const Request* request : running_) num_rows += request->num_rows();
    while (!waiting_.empty() && budget > 0) {
      Request& request = *waiting_.front();
      if (num_rows + request.num_rows() > options_.max_seqs) return;
      request.start();
      Branch& leader = request.leader();
      const pagedkv::Admission admission =
          prefixes_.admit(std::span(leader.tokens).first(static_cast<std::size_t>(request.trunk_len)), leader.kv, plan,
                          {.max_append = budget, .watermark = running_.empty() ? 0 : options_.watermark});
      if (!admission) {
        request.state = State::waiting;
        return;
      }
      if (request.num_preempted == 0) request.num_cached = admission->cached;
      const int chunk = leader.kv.size() - admission->cached;
      num_rows += request.num_rows();
      budget -= chunk;
      work.push_back({&request, index_of(request, leader), chunk});
      waiting_.pop_front();
      running_.push_back(&request);
      std::sort(running_.begin(), running_.end(), [](const Request* a, const Request* b) { return a->id < b->id; });
    }
  }

  Request* preempt_newest() {
    Request* victim = running_.back();
    running_.pop_back();
    victim->preempt(blocks_);
    waiting_.push_front(victim);
    ++num_preemptions_;
    return victim;
  }

  static int index_of(const Request& request, const Branch& branch) {
    return static_cast<int>(&branch - request.branches.data());
  }

  pagedkv::BlockAllocator& blocks_;
  pagedkv::PrefixCache& prefixes_;
  SchedulerOptions options_;
  std::deque<Request*> waiting_;   // oldest first
  std::vector<Request*> running_;  // oldest first
  std::int64_t num_preemptions_ = 0;
};

}  // namespace engine
