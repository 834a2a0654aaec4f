// Engine: requests in, tokens out. One step: schedule, launch, commit, fork; then collect the tokens of a step, which may
// be the one before.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
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
#include "engine/sampling.hpp"
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
  bool run_ahead = false;  // schedule and launch a step while the one before computes; for models that compute elsewhere
  SchedulerOptions scheduler = {};
};

/// What one step brought to the user. Beams change their mind, so a beam search brings only its end.
struct Event {
  const Request* request;
  int sample;  // index of the branch
  std::int32_t token;
  Finish finish;   // of the sample; the closing token is an event, too
  double logprob;  // of the token under the model's own distribution; 0 at the end of a beam search
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
    num_host_choosers_ += params.needs_logits();
    requests_.emplace(next_id_, std::move(request));
    return next_id_++;
  }

  bool is_idle() const { return scheduler_.is_idle() && launched_.empty(); }

  /// Launches one batch and collects the tokens of one: the same, or if it runs ahead the one before. The events are in
  /// order of requests and samples, and valid until the next step.
  std::span<const Event> step() {
    const auto start = std::chrono::steady_clock::now();
    events_.clear();
    if (!may_run_ahead()) collect(0);
    const bool is_ahead = launch() && may_run_ahead();
    collect(is_ahead ? 1 : 0);
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
    erase(id);
  }

  /// Ends a request between two steps and forgets it: its blocks are back at once, no later event names it, and those of
  /// the last step that do must not be read any more. Throws std::out_of_range for an id that is not there.
  void abort(int id) {
    Request& request = *requests_.at(id);
    if (request.state != State::finished) leave(request);
    erase(id);
  }

  /// Ends one sample, whose text holds what the user wanted it to stop at. Nothing happens if it has ended already.
  void stop(int id, int sample) {
    Request& request = *requests_.at(id);
    Branch& branch = request.branches.at(index(sample));
    if (branch.finish != Finish::none && branch.tokens.back() >= 0) return;
    branch.tokens.resize(branch.known_tokens().size());
    end(branch, Finish::stop);
    if (request.is_complete()) finish(request);
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
  // A token that a launched step brings: it follows `position` tokens of a branch.
  struct Awaited {
    Request* request;  // null if the request has gone
    int branch;
    int position;
  };

  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  static Branch& branch_of(const Work& item) { return item.request->branches[index(item.branch)]; }
  static Branch& branch_of(const Awaited& token) { return token.request->branches[index(token.branch)]; }

  // Who chooses on the host must know all tokens. Who is pushed out need not: they are collected in the same step.
  bool may_run_ahead() const { return options_.run_ahead && num_host_choosers_ == 0; }

  // False if there was nothing to compute.
  bool launch() {
    pagedkv::StepPlan plan;
    const std::vector<Work> work = scheduler_.schedule(plan);
    PAGEDKV_ASSERT(!work.empty() || is_idle() || scheduler_.num_preemptions() > stats_.num_preemptions ||
                   !launched_.empty());
    stats_.observe(scheduler_.running(), blocks_.num_used());
    stats_.block_copies += std::ssize(plan.copies());
    if (work.empty()) return false;
    fill_batch(work, plan);
    const Batch batch{.tokens = tokens_,
                      .positions = positions_,
                      .plan = plan,
                      .tables = tables_.view(),
                      .logit_rows = logit_rows_,
                      .draws = draws_};
    const bool on_host = num_host_choosers_ > 0;
    std::span<const float> logits;
    if (on_host)
      logits = model_.forward(batch);
    else
      model_.launch(batch);
    plan.commit();
    for (const Work& item : work) publish(branch_of(item));
    advance(work);
    std::vector<Awaited> awaited = await_tokens();
    if (on_host)
      choose(awaited, logits);
    else
      launched_.push_back(std::move(awaited));
    return true;
  }

  void fill_batch(const std::vector<Work>& work, const pagedkv::StepPlan& plan) {
    tokens_.clear();
    positions_.clear();
    logit_rows_.clear();
    draws_.clear();
    drawing_.clear();
    tables_.clear();
    for (const Work& item : work) {
      const Branch& branch = branch_of(item);
      tables_.add(branch.kv, item.num_tokens);
      for (int position = branch.kv.size() - item.num_tokens; position < branch.kv.size(); ++position) {
        tokens_.push_back(branch.tokens[index(position)]);
        positions_.push_back(position);
      }
      if (branch.num_lacking() > 0) continue;
      // The first row of logits of several samples is one row: the prompt's.
      Request& request = *item.request;
      const bool is_first = !request.beam && request.branches.size() < index(request.params.n);
      for (int sample = is_first ? 0 : item.branch; sample < (is_first ? request.params.n : item.branch + 1); ++sample) {
        draws_.push_back({.logit_row = static_cast<int>(logit_rows_.size()),
                          .params = &request.params,
                          .sample = sample,
                          .position = static_cast<int>(branch.tokens.size())});
        drawing_.push_back(&request);
      }
      logit_rows_.push_back(static_cast<std::int32_t>(tokens_.size()) - 1);
    }
    // Rows of a request that was pushed out while it was being scheduled are the plan's last ones, and dead.
    tokens_.resize(index(plan.num_rows()), 0);
    positions_.resize(index(plan.num_rows()), 0);
  }

  // Moves requests on behind the rows that they have got.
  void advance(const std::vector<Work>& work) {
    for (const Work& item : work) {
      Request& request = *item.request;
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
    }
  }

  static void fork_tails(Request& request) {
    const pagedkv::Sequence& trunk = request.leader().kv;
    for (Branch& branch : request.branches)
      if (branch.finish == Finish::none && &branch.kv != &trunk) branch.kv = trunk.fork();
    request.state = State::tails;
  }

  // Gives each drawing branch a place for its token, and the prompt's samples their branches. Who has no token to come
  // after it takes no part in the next step.
  std::vector<Awaited> await_tokens() {
    std::vector<Awaited> awaited;
    for (std::size_t i = 0; i < draws_.size(); ++i) {
      Request& request = *drawing_[i];
      const Draw& draw = draws_[i];
      awaited.push_back({&request, draw.sample, draw.position});
      if (request.beam) continue;
      if (request.branches.size() == index(draw.sample))
        request.branches.push_back({.kv = request.branches[0].kv.fork(),
                                    .tokens = {request.branches[0].tokens.begin(),
                                               request.branches[0].tokens.begin() + draw.position},
                                    .index = draw.sample});
      Branch& branch = branch_of(awaited.back());
      branch.tokens.push_back(token_of_draw(static_cast<int>(i)));
      if (draw.position + 1 - request.prompt_len == request.params.max_tokens) branch.finish = Finish::length;
    }
    return awaited;
  }

  void choose(const std::vector<Awaited>& awaited, std::span<const float> logits) {
    const auto row = [&](std::size_t i) {
      return logits.subspan(index(config_.vocab) * index(draws_[i].logit_row), index(config_.vocab));
    };
    for (std::size_t i = 0; i < awaited.size();) {
      Request& request = *awaited[i].request;
      if (request.beam) {
        std::vector<std::span<const float>> rows;
        for (; i < awaited.size() && awaited[i].request == &request; ++i) rows.push_back(row(i));
        grow_beams(request, rows);
        if (request.num_unfinished() == 0) finish(request);
      } else {
        const std::span history = std::span(branch_of(awaited[i]).tokens).first(index(awaited[i].position));
        const Choice choice = sampler_.choose(row(i), history, request.params, awaited[i].branch);
        accept(awaited[i++], choice);
      }
    }
  }

  // Waits until no more than `num_left` launched steps are not collected.
  void collect(std::size_t num_left) {
    while (launched_.size() > num_left) {
      const std::span<const Choice> choices = model_.collect();
      const std::vector<Awaited> awaited = std::move(launched_.front());
      launched_.pop_front();
      for (std::size_t i = 0; i < awaited.size(); ++i)
        if (awaited[i].request != nullptr) accept(awaited[i], choices[i]);
    }
  }

  void accept(const Awaited& token, const Choice& choice) {
    Request& request = *token.request;
    Branch& branch = branch_of(token);
    if (index(token.position) >= branch.tokens.size()) return;  // the branch ended before this
    branch.tokens[index(token.position)] = choice.token;
    branch.sum_logprob += choice.logprob;
    branch.score = branch.sum_logprob / (token.position + 1 - request.prompt_len);
    if (ends_text(request, choice.token)) {
      branch.tokens.resize(index(token.position) + 1);
      end(branch, Finish::eos);
    } else if (branch.finish != Finish::none) {
      end(branch, branch.finish);
    }
    ++stats_.generated_tokens;
    events_.push_back({&request, token.branch, choice.token, branch.finish, choice.logprob});
    if (request.is_complete()) finish(request);
  }

  // Full blocks whose tokens are all known.
  void publish(const Branch& branch) {
    const std::span known = branch.known_tokens();
    const int block_size = options_.block_size;
    if (options_.prefix_cache && branch.kv.size() / block_size * block_size <= std::ssize(known))
      prefixes_.publish(known, branch.kv);
  }

  void end(Branch& branch, Finish finish) {
    publish(branch);
    branch.finish = finish;
    branch.kv = pagedkv::Sequence{blocks_};
  }

  void finish(Request& request) {
    leave(request);
    stats_.prompt_tokens += request.prompt_len;
    stats_.cached_tokens += request.num_cached;
  }

  // The request takes part in nothing any more.
  void leave(Request& request) {
    scheduler_.remove(request);
    num_host_choosers_ -= request.params.needs_logits();
    for (Branch& branch : request.branches) {
      if (branch.finish == Finish::none) branch.finish = Finish::aborted;
      branch.kv = pagedkv::Sequence{blocks_};
    }
    request.state = State::finished;
  }

  void erase(int id) {
    for (std::vector<Awaited>& awaited : launched_)
      for (Awaited& token : awaited)
        if (token.request == requests_.at(id).get()) token.request = nullptr;
    requests_.erase(id);
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
        events_.push_back({&request, branch.index, branch.tokens.back(), branch.finish, 0});
      }
    }
    request.branches = std::move(next);
  }

  bool ends_text(const Request& request, std::int32_t token) const {
    const auto holds = [&](const std::vector<std::int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    return (!request.params.ignore_eos && holds(config_.eos_ids)) || holds(request.params.stop_ids);
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
  int num_host_choosers_ = 0;                   // unfinished requests whose tokens the host must choose
  std::deque<std::vector<Awaited>> launched_;   // steps that were not collected, oldest first: a token for each draw
  std::vector<std::int32_t> tokens_, positions_, logit_rows_;  // of the step that is being launched
  std::vector<Draw> draws_;
  std::vector<Request*> drawing_;  // whose draws those are
  std::vector<Event> events_;
};

}  // namespace engine
