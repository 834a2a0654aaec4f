// Engine: requests in, tokens out. One step: schedule, launch, commit, fork; then collect the tokens of a step, which
// may be the one before.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/beam_branches.hpp"
#include "engine/engine_options.hpp"
#include "engine/files/model_config.hpp"
#include "engine/language_model.hpp"
#include "engine/logprobs.hpp"
#include "engine/prompt_scores.hpp"
#include "engine/request.hpp"
#include "engine/sampler.hpp"
#include "engine/sampling.hpp"
#include "engine/scheduler.hpp"
#include "engine/stats.hpp"
#include "engine/step_input.hpp"
#include "engine/submission.hpp"
#include "engine/swap_space.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace engine {

/// What one step brought to the user. Beams change their mind, so a beam search brings only its end.
struct Event {
  const Request* request;
  int sample;  // index of the branch
  std::int32_t token;
  Finish finish;                       // of the sample; the closing token is an event, too
  double logprob;                      // of the token under the model's own distribution; 0 at the end of a beam search
  std::vector<TokenLogprob> top = {};  // params.top_logprobs likeliest tokens in its place, descending
};

/// Owns blocks, cache and requests; the model computes. Not thread-safe.
class Engine {
 public:
  /// `model` was made for the same number of blocks and their size, and for the scheduler's rows and sequences.
  Engine(const ModelConfig& config, LanguageModel& model, const EngineOptions& options)
      : config_(config),
        model_(model),
        options_(checked(options)),
        blocks_({.num_blocks = options.num_blocks, .block_size = options.block_size}),
        prefixes_(blocks_),
        swap_(blocks_, options.num_host_blocks),
        scheduler_(blocks_, prefixes_, swap_, options.scheduler, options.drafts, model.max_logit_rows()),
        input_({.max_seqs = scheduler_.options().max_seqs,
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
  int submit(std::vector<std::int32_t> prompt, SamplingParams params, const SubmitOptions& options = {}) {
    std::unique_ptr<Request> request = make_request(std::move(prompt), std::move(params), options, config_, blocks_);
    request->id = next_id_;
    scheduler_.submit(*request);
    num_host_choosers_ += request->params.needs_logits();
    requests_.emplace(next_id_, std::move(request));
    return next_id_++;
  }

  bool is_idle() const { return scheduler_.is_idle() && launched_.empty(); }

  /// Launches one batch and collects the tokens of one: the same, or if it runs ahead the one before. The events are in
  /// the order of service and of samples, and valid until the next step.
  // [step]
  std::span<const Event> step() {
    const auto start = std::chrono::steady_clock::now();
    events_.clear();
    if (!may_run_ahead()) collect(0);
    const bool is_ahead = launch() && may_run_ahead();
    collect(is_ahead ? 1 : 0);
    ++stats_.num_steps;
    stats_.num_preemptions = scheduler_.num_preemptions();
    stats_.num_swaps = scheduler_.num_swaps();
    stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return events_;
    // [step]
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

  /// Ends a request between two steps and forgets it: its blocks are back at once, no later event names it, and those
  /// of the last step that do must not be read any more. Throws std::out_of_range for an id that is not there.
  void abort(int id) {
    Request& request = *requests_.at(id);
    if (request.state != State::finished) leave(request);
    erase(id);
  }

  /// Ends one sample, whose text holds what the user wanted it to stop at. Nothing happens if it has ended already.
  /// Throws std::out_of_range for an id or a sample that is not there, and InvalidArgument while a beam search runs, or
  /// where several samples have not parted yet: until the prompt is computed there is one branch, which all of them
  /// need. abort() ends them all at any time.
  void stop(int id, int sample) {
    Request& request = *requests_.at(id);
    pagedkv::require(std::ssize(request.branches) >= request.params.n, "Engine::stop: samples behind a computed prompt",
                     request.params.n, std::ssize(request.branches));
    Branch& branch = request.branches.at(index(sample));
    if (branch.finish != Finish::none && branch.tokens.back() >= 0) return;
    pagedkv::require(!request.beam, "Engine::stop: request", "samples", "a beam search");
    branch.tokens.resize(branch.known_tokens().size());
    end(request, branch, Finish::stop);
    if (request.is_complete())
      finish(request);
    else
      request.advance();
  }

  const EngineStats& stats() const { return stats_; }
  const pagedkv::BlockAllocator& blocks() const { return blocks_; }
  const SwapSpace& swap_space() const { return swap_; }

  /// Between steps: free, cached and owned blocks are all the blocks there are, on the device and on the host.
  /// O(everything), for tests.
  void check_integrity() const {
    prefixes_.check_invariants();
    std::vector<pagedkv::BlockId> owned, swapped;
    for (const auto& [id, request] : requests_)
      for (const Branch& branch : request->branches) {
        auto& ids = &branch.kv.allocator() == &blocks_ ? owned : swapped;
        ids.insert(ids.end(), branch.kv.blocks().begin(), branch.kv.blocks().end());
      }
    const auto num_different = [](std::vector<pagedkv::BlockId>& ids) {
      std::sort(ids.begin(), ids.end());
      return static_cast<int>(std::unique(ids.begin(), ids.end()) - ids.begin());
    };
    const int num_here = blocks_.num_free() + blocks_.num_idle() + num_different(owned);
    const int num_there = swap_.num_free() + num_different(swapped);
    pagedkv::require(num_here == blocks_.num_blocks(), "Engine: free + cached + owned blocks", blocks_.num_blocks(),
                     num_here);
    pagedkv::require(num_there == swap_.num_blocks(), "Engine: free + owned blocks of the host", swap_.num_blocks(),
                     num_there);
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  static Branch& branch_of(const Work& item) { return item.request->branches[index(item.branch)]; }
  static Branch& branch_of(const Awaited& token) { return token.request->branches[index(token.branch)]; }

  static const EngineOptions& checked(const EngineOptions& options) {
    options.validate();
    return options;
  }

  // Who chooses on the host must know all tokens. Who is pushed out need not: they are collected in the same step.
  bool may_run_ahead() const {
    return options_.run_ahead && num_host_choosers_ == 0 && options_.drafts.max_drafts == 0;
  }

  // False if there was nothing to compute.
  // [launch]
  bool launch() {
    pagedkv::StepPlan plan;
    const std::vector<Work>& work = scheduler_.schedule(plan);
    PAGEDKV_ASSERT(!work.empty() || is_idle() || scheduler_.num_preemptions() > stats_.num_preemptions ||
                   !launched_.empty() || !swap_.incoming().empty());
    stats_.observe(scheduler_.running(), blocks_.num_used());
    stats_.block_copies += std::ssize(plan.copies());
    if (!swap_.outgoing().empty()) model_.swap_out(swap_.outgoing());
    if (!swap_.incoming().empty()) model_.swap_in(swap_.incoming());
    if (work.empty()) return false;
    input_.fill(work, plan);
    const Batch batch = input_.batch(plan);
    if (options_.on_launch) options_.on_launch(batch);
    const bool on_host = num_host_choosers_ > 0;
    std::span<const float> logits;
    if (on_host)
      logits = model_.forward(batch);
    else
      model_.launch(batch);
    plan.commit();
    for (const Work& item : work) {
      publish(*item.request, branch_of(item));
      item.request->advance();
      stats_.drafted_tokens += item.num_drafts;
    }
    await_tokens();
    if (on_host) {
      for (const ScoringRows& rows : input_.scoring()) add_prompt_scores(rows, logits, config_.vocab);
      choose(logits);
    } else {
      launched_.emplace_back(input_.awaited().begin(), input_.awaited().end());
    }
    return true;
    // [launch]
  }

  // Gives each drawing branch a place for its token, and the prompt's samples their branches. Who has no token to come
  // after it takes no part in the next step. Behind a guess no place is sure.
  void await_tokens() {
    const std::span<const Awaited> awaited = input_.awaited();
    for (std::size_t i = 0; i < awaited.size(); ++i) {
      Request& request = *awaited[i].request;
      if (request.beam || awaited[i].draft >= 0) continue;
      const int position = awaited[i].position;
      if (request.branches.size() == index(awaited[i].branch)) {
        const Branch& first = request.branches[0];
        request.branches.push_back({.kv = first.kv.fork(),
                                    .tokens = {first.tokens.begin(), first.tokens.begin() + position},
                                    .index = awaited[i].branch,
                                    .num_published = first.num_published});
      }
      Branch& branch = branch_of(awaited[i]);
      branch.tokens.push_back(token_of_draw(static_cast<int>(i)));
      if (is_last(request, position)) branch.finish = Finish::length;
    }
  }

  static bool is_last(const Request& request, int position) {
    return position + 1 - request.prompt_len == request.params.max_tokens;
  }

  std::span<const float> row_of(std::span<const float> logits, int row) const {
    return logits.subspan(index(config_.vocab) * index(row), index(config_.vocab));
  }

  void choose(std::span<const float> logits) {
    const std::span<const Awaited> awaited = input_.awaited();
    const auto row = [&](std::size_t i) { return row_of(logits, input_.logit_row(i)); };
    for (std::size_t i = 0; i < awaited.size();) {
      Request& request = *awaited[i].request;
      if (request.beam) {
        std::vector<std::span<const float>> rows;
        for (; i < awaited.size() && awaited[i].request == &request; ++i) rows.push_back(row(i));
        search_on(request, rows);
      } else {
        const Choice choice = choose_one(awaited[i], row(i));
        const double log_sum = row(i)[index(choice.token)] - choice.logprob;
        accept(awaited[i], choice, top_logprobs(row(i), log_sum, request.params.top_logprobs));
        ++i;
      }
    }
    forget_wrong_drafts(awaited);
  }

  Choice choose_one(const Awaited& awaited, std::span<const float> logits) {
    const Request& request = *awaited.request;
    if (!request.params.changes_logits())
      return sampler_.choose(logits, request.params, awaited.branch, awaited.position);
    const Context context{branch_of(awaited).known_tokens(), request.prompt_len, request.end_ids};
    return sampler_.choose(logits, context, request.params, awaited.branch);
  }

  void search_on(Request& request, std::span<const std::span<const float>> rows) {
    grow_beams(request, rows, blocks_);
    stats_.generated_tokens += std::ssize(request.branches);
    if (!request.beam->is_over()) return;
    for (const Branch& branch : request.branches)
      events_.push_back({&request, branch.index, branch.tokens.back(), branch.finish, 0});
    finish(request);
  }

  // Waits until no more than `num_left` launched steps are not collected.
  void collect(std::size_t num_left) {
    while (launched_.size() > num_left) {
      const std::span<const Choice> choices = model_.collect();
      const std::vector<Awaited> awaited = std::move(launched_.front());
      launched_.pop_front();
      for (std::size_t i = 0; i < awaited.size(); ++i)
        if (awaited[i].request != nullptr) accept(awaited[i], choices[i], {});
      forget_wrong_drafts(awaited);
    }
  }

  // A draw depends on logits, seed, sample and position alone: a guess that equals the draw in its place is what would
  // have come without guessing, and so is the draw behind it.
  void accept(const Awaited& awaited, const Choice& choice, std::vector<TokenLogprob> top) {
    Request& request = *awaited.request;
    Branch& branch = branch_of(awaited);
    const std::size_t place = index(awaited.position);
    if (awaited.draft >= 0) {
      const bool is_right = branch.tokens.size() == place && branch.tokens.back() == awaited.draft;
      if (!is_right || branch.finish != Finish::none) return;
      branch.tokens.push_back(choice.token);
      ++stats_.accepted_drafts;
    }
    if (place >= branch.tokens.size()) return;  // the branch ended before this
    branch.tokens[place] = choice.token;
    branch.sum_logprob += choice.logprob;
    branch.score = branch.sum_logprob / (awaited.position + 1 - request.prompt_len);
    ++stats_.generated_tokens;
    Finish finished = Finish::none;  // of this token; the branch may know already that the one behind it is its last
    if (std::find(request.end_ids.begin(), request.end_ids.end(), choice.token) != request.end_ids.end()) {
      branch.tokens.resize(place + 1);
      finished = Finish::eos;
    } else if (is_last(request, awaited.position)) {
      finished = Finish::length;
    }
    if (finished != Finish::none) end(request, branch, finished);
    events_.push_back({&request, awaited.branch, choice.token, finished, choice.logprob, std::move(top)});
    if (request.is_complete()) finish(request);
  }

  static void forget_wrong_drafts(std::span<const Awaited> awaited) {
    for (const Awaited& token : awaited) {
      if (token.draft < 0 || token.request == nullptr) continue;
      Branch& branch = branch_of(token);
      if (branch.kv.num_drafts() > 0)
        branch.kv.accept(static_cast<int>(branch.tokens.size()) - 1 - branch.kv.num_committed());
    }
  }

  // Full blocks whose tokens are all known.
  void publish(const Request& request, Branch& branch) {
    if (!options_.prefix_cache || &branch.kv.allocator() != &blocks_) return;
    const std::span<const std::int32_t> known = branch.known_tokens();
    const int num_full = branch.kv.num_committed() / options_.block_size;
    if (num_full <= branch.num_published || num_full * std::ptrdiff_t{options_.block_size} > std::ssize(known)) return;
    prefixes_.publish(known, branch.kv, {.salt = request.cache_salt});
    branch.num_published = num_full;
  }

  void end(const Request& request, Branch& branch, Finish finish) {
    publish(request, branch);
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

  ModelConfig config_;
  LanguageModel& model_;
  EngineOptions options_;
  pagedkv::BlockAllocator blocks_;
  pagedkv::PrefixCache prefixes_;
  SwapSpace swap_;
  std::unordered_map<int, std::unique_ptr<Request>> requests_;  // their sequences die before cache and swap space
  Scheduler scheduler_;
  StepInput input_;  // of the step that was launched last
  Sampler sampler_;
  EngineStats stats_;
  int next_id_ = 0;
  int num_host_choosers_ = 0;                  // unfinished requests whose tokens the host must choose
  std::deque<std::vector<Awaited>> launched_;  // steps that were not collected, oldest first: a token for each draw
  std::vector<Event> events_;
};

}  // namespace engine
