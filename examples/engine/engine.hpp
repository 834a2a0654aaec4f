// Engine: requests in, tokens out. One step: schedule, compute, commit, choose tokens, and fork or drop branches.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/language_model.hpp"
#include "engine/model_config.hpp"
#include "engine/request.hpp"
#include "engine/sampler.hpp"
#include "engine/scheduler.hpp"
#include "engine/stats.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace engine {

struct EngineOptions {
  int num_blocks = 512;
  int block_size = 16;
  bool prefix_cache = true;
  SchedulerOptions scheduler = {};
};

/// What one step brought to the user. Beams change their mind, so a beam search brings only its end.
struct Event {
  const Request* request;
  int sample;  // index of the branch
  std::int32_t token;
  Finish finish;  // of the sample; the closing token is an event, too
};

/// Owns blocks, cache and requests; the model computes. Not thread-safe.
class Engine {
 public:
  /// `model` was made for the same number of blocks and their size, and for the scheduler's rows and sequences.
  Engine(const ModelConfig& config, LanguageModel& model, const EngineOptions& options)
      : config_(config),
        model_(model),
        options_(options),
        blocks_({.num_blocks = options.num_blocks, .block_size = options.block_size}),
        prefixes_(blocks_),
        scheduler_(blocks_, prefixes_, options.scheduler),
        tables_({.max_seqs = scheduler_.options().max_seqs,
                 .max_blocks_per_seq = max_blocks_per_seq(config, options.block_size),
                 .block_size = options.block_size}) {
    stats_.block_size = options.block_size;
    stats_.num_blocks = options.num_blocks;
    stats_.max_positions = config.max_positions;
    stats_.kv_bytes_per_token = model.kv_bytes_per_token();
  }

  static int max_blocks_per_seq(const ModelConfig& config, int block_size) {
    return pagedkv::ceil_div(config.max_positions, block_size);
  }

  /// Queues a prompt and returns the request's id. The position limit shortens max_tokens. Throws BadInput where the
  /// request can never be served; then nothing has changed.
  int submit(std::vector<std::int32_t> prompt, SamplingParams params) {
    params.validate();
    const int prompt_len = static_cast<int>(prompt.size());
    if (prompt.empty()) throw BadInput("prompt", "at least 1 token", "0");
    if (prompt_len >= config_.max_positions)
      throw BadInput("prompt tokens", "fewer than the model's " + std::to_string(config_.max_positions) + " positions",
                     std::to_string(prompt_len));
    for (const std::int32_t token : prompt)
      if (token < 0 || token >= config_.vocab)
        throw BadInput("prompt token", "0 to " + std::to_string(config_.vocab - 1), std::to_string(token));
    params.max_tokens = std::min(params.max_tokens, config_.max_positions - prompt_len);

    auto request = std::make_unique<Request>();
    request->id = next_id_;
    request->prompt_len = prompt_len;
    request->params = params;
    request->branches.push_back({.kv = pagedkv::Sequence{blocks_}, .tokens = std::move(prompt)});
    if (params.beam_width > 0) request->beam.emplace(params.beam_width, params.max_tokens, config_.eos_ids);
    scheduler_.submit(*request);
    requests_.emplace(next_id_, std::move(request));
    return next_id_++;
  }

  bool is_idle() const { return scheduler_.is_idle(); }

  /// Computes one batch. The events are in order of requests and samples, and valid until the next step.
  std::span<const Event> step() {
    const auto start = std::chrono::steady_clock::now();
    events_.clear();
    pagedkv::StepPlan plan;
    const std::vector<Work> work = scheduler_.schedule(plan);
    PAGEDKV_ASSERT(!work.empty() || is_idle() || scheduler_.num_preemptions() > stats_.num_preemptions);
    stats_.observe(scheduler_.running(), blocks_.num_used());
    stats_.block_copies += std::ssize(plan.copies());
    if (!work.empty()) {
      const std::span<const float> logits = compute(work, plan);
      plan.commit();
      if (options_.prefix_cache)
        for (const Work& item : work) prefixes_.publish(item.request->branches[index(item.branch)].tokens, kv_of(item));
      for (std::size_t first = 0, last = 0, row = 0; first < work.size(); first = last) {
        while (last < work.size() && work[last].request == work[first].request) ++last;
        advance(*work[first].request, logits, row);
      }
    }
    ++stats_.num_steps;
    stats_.num_preemptions = scheduler_.num_preemptions();
    stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return events_;
  }

  /// Steps until every request is finished; `on_event(const Event&)` sees each token as it comes.
  template <class OnEvent>
  void run(OnEvent&& on_event) {
    while (!is_idle())
      for (const Event& event : step()) on_event(event);
  }
  void run() {
    run([](const Event&) {});
  }

  /// Throws std::out_of_range for an id that submit() has not returned. Finished requests stay until `forget`.
  const Request& request(int id) const { return *requests_.at(id); }
  void forget(int id) {
    pagedkv::require(request(id).state == State::finished, "Engine::forget: request", "finished", "running");
    requests_.erase(id);
  }

  const EngineStats& stats() const { return stats_; }
  const pagedkv::BlockAllocator& blocks() const { return blocks_; }

  /// Between steps: free, cached and owned blocks are all the blocks there are. O(everything), for tests.
  void check_integrity() const {
    prefixes_.check_invariants();
    std::vector<pagedkv::BlockId> owned;
    for (const auto& [id, request] : requests_)
      for (const Branch& branch : request->branches)
        owned.insert(owned.end(), branch.kv.blocks().begin(), branch.kv.blocks().end());
    std::sort(owned.begin(), owned.end());
    const auto num_owned = std::unique(owned.begin(), owned.end()) - owned.begin();
    pagedkv::require(blocks_.num_free() + blocks_.num_idle() + num_owned == blocks_.num_blocks(),
                     "Engine: free + cached + owned blocks", blocks_.num_blocks(),
                     blocks_.num_free() + blocks_.num_idle() + num_owned);
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  static const pagedkv::Sequence& kv_of(const Work& item) { return item.request->branches[index(item.branch)].kv; }

  std::span<const float> compute(const std::vector<Work>& work, const pagedkv::StepPlan& plan) {
    tokens_.clear();
    positions_.clear();
    logit_rows_.clear();
    tables_.clear();
    for (const Work& item : work) {
      const Branch& branch = item.request->branches[index(item.branch)];
      tables_.add(branch.kv, item.num_tokens);
      for (int position = branch.kv.size() - item.num_tokens; position < branch.kv.size(); ++position) {
        tokens_.push_back(branch.tokens[index(position)]);
        positions_.push_back(position);
      }
      if (branch.num_lacking() == 0) logit_rows_.push_back(static_cast<std::int32_t>(tokens_.size()) - 1);
    }
    // Rows of a request that was pushed out while it was being scheduled are the plan's last ones, and dead.
    tokens_.resize(index(plan.num_rows()), 0);
    positions_.resize(index(plan.num_rows()), 0);
    return model_.forward({.tokens = tokens_,
                           .positions = positions_,
                           .plan = plan,
                           .tables = tables_.view(),
                           .logit_rows = logit_rows_});
  }

  // Moves a request on after its rows were computed. `row`: its first row of logits, if it has any.
  void advance(Request& request, std::span<const float> logits, std::size_t& row) {
    if (request.state == State::trunk && request.leader().kv.size() == request.trunk_len) {
      if (request.leader().num_lacking() == 0)
        request.state = State::decode;
      else
        fork_tails(request);
    }
    if (request.state == State::tails) {
      const auto lacks_more = [](const Branch& b) { return b.finish == Finish::none && b.num_lacking() > 1; };
      if (std::none_of(request.branches.begin(), request.branches.end(), lacks_more)) request.state = State::decode;
    }
    std::vector<std::span<const float>> rows;
    for (const Branch& branch : request.branches)
      if (branch.finish == Finish::none && branch.kv.size() > 0 && branch.num_lacking() == 0)
        rows.push_back(logits.subspan(index(config_.vocab) * row++, index(config_.vocab)));
    if (rows.empty()) return;
    if (request.beam)
      grow_beams(request, rows);
    else
      grow_samples(request, rows);
    if (request.num_unfinished() > 0) return;
    request.state = State::finished;
    scheduler_.remove(request);
    stats_.prompt_tokens += request.prompt_len;
    stats_.cached_tokens += request.num_cached;
  }

  static void fork_tails(Request& request) {
    const pagedkv::Sequence& trunk = request.leader().kv;
    for (Branch& branch : request.branches)
      if (branch.finish == Finish::none && &branch.kv != &trunk) branch.kv = trunk.fork();
    request.state = State::tails;
  }

  // The first row of logits of several samples is one row: the prompt's. There they are forked.
  void grow_samples(Request& request, std::span<const std::span<const float>> rows) {
    const bool is_first = request.branches.size() < index(request.params.n);
    if (is_first) {
      for (int i = 1; i < request.params.n; ++i)
        request.branches.push_back(
            {.kv = request.branches[0].kv.fork(), .tokens = request.branches[0].tokens, .index = i});
    }
    std::size_t next = 0;
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      const auto choice = sampler_.choose(rows[is_first ? 0 : next++], branch.tokens, request.params, branch.index);
      branch.tokens.push_back(choice.token);
      branch.sum_logprob += choice.logprob;
      const int num_generated = static_cast<int>(branch.tokens.size()) - request.prompt_len;
      branch.score = branch.sum_logprob / num_generated;
      if (is_eos(choice.token))
        branch.finish = Finish::eos;
      else if (num_generated == request.params.max_tokens)
        branch.finish = Finish::length;
      if (branch.finish != Finish::none) branch.kv = pagedkv::Sequence{blocks_};
      ++stats_.generated_tokens;
      events_.push_back({&request, branch.index, choice.token, branch.finish});
    }
  }

  // Beams that nobody continues are dropped before the next append, so that their blocks are free and the last heir of
  // a shared tail writes in place.
  void grow_beams(Request& request, std::span<const std::span<const float>> rows) {
    const std::vector<BeamSearch::Choice> choices = request.beam->advance(rows);
    std::vector<Branch> next;
    for (const auto& [parent, token] : choices) {
      const Branch& from = request.branches[index(parent)];
      next.push_back({.kv = from.kv.fork(), .tokens = from.tokens, .index = static_cast<int>(next.size())});
      next.back().tokens.push_back(token);
      ++stats_.generated_tokens;
    }
    if (request.beam->is_over()) {
      const std::span prompt = std::span(request.branches[0].tokens).first(index(request.prompt_len));
      for (const BeamSearch::Hypothesis& hypothesis : request.beam->finished()) {
        Branch& branch = next.emplace_back(Branch{.kv = pagedkv::Sequence{blocks_},
                                                  .tokens = {prompt.begin(), prompt.end()},
                                                  .index = static_cast<int>(next.size()),
                                                  .sum_logprob = hypothesis.sum_logprob,
                                                  .score = hypothesis.score,
                                                  .finish = hypothesis.ends_with_eos ? Finish::eos : Finish::length});
        branch.tokens.insert(branch.tokens.end(), hypothesis.tokens.begin(), hypothesis.tokens.end());
        events_.push_back({&request, branch.index, branch.tokens.back(), branch.finish});
      }
    }
    request.branches = std::move(next);
  }

  bool is_eos(std::int32_t token) const {
    return std::find(config_.eos_ids.begin(), config_.eos_ids.end(), token) != config_.eos_ids.end();
  }

  ModelConfig config_;
  LanguageModel& model_;
  EngineOptions options_;
  pagedkv::BlockAllocator blocks_;
  pagedkv::PrefixCache prefixes_;
  std::unordered_map<int, std::unique_ptr<Request>> requests_;  // their sequences die before the cache
  Scheduler scheduler_;
  pagedkv::BatchTables tables_;
  Sampler sampler_;
  EngineStats stats_;
  int next_id_ = 0;
  std::vector<std::int32_t> tokens_, positions_, logit_rows_;  // of the step that is running
  std::vector<Event> events_;
};

}  // namespace engine
