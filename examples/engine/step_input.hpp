// StepInput: a step's work as the model reads it: tokens, positions, block tables, whose logits and draws are wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/language_model.hpp"
#include "engine/prompt_scores.hpp"
#include "engine/request.hpp"
#include "engine/scheduler.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/step_plan.hpp"

namespace engine {

/// A token that a step brings: it follows `position` tokens of a branch.
struct Awaited {
  Request* request;  // null if the request has gone
  int branch;
  int position;
  std::int32_t draft = -1;  // the guess in front of it: where that was wrong, the token does not count
};

/// Keeps its memory from step to step.
class StepInput {
 public:
  explicit StepInput(const pagedkv::BatchTablesOptions& options) : tables_(options) {}

  void fill(std::span<const Work> work, const pagedkv::StepPlan& plan) {
    tokens_.clear();
    positions_.clear();
    logit_rows_.clear();
    draws_.clear();
    awaited_.clear();
    scoring_.clear();
    for (const Work& item : work) add_rows(item);
    // Rows of a request that was pushed out while it was being scheduled are the plan's last ones, and dead.
    tokens_.resize(index(plan.num_rows()), 0);
    positions_.resize(index(plan.num_rows()), 0);
    fill_tables(work);
  }

  Batch batch(const pagedkv::StepPlan& plan) const {
    return {.tokens = tokens_,
            .positions = positions_,
            .plan = plan,
            .tables = tables_.view(),
            .logit_rows = logit_rows_,
            .draws = draws_};
  }

  /// What the draws bring, in their order.
  std::span<const Awaited> awaited() const { return awaited_; }
  std::span<const ScoringRows> scoring() const { return scoring_; }
  int logit_row(std::size_t draw) const { return draws_[draw].logit_row; }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }

  void add_rows(const Work& item) {
    Request& request = *item.request;
    const Branch& branch = request.branches[index(item.branch)];
    const int num_known = static_cast<int>(branch.tokens.size());
    const int num_scored = request.lacks_scores() ? static_cast<int>(request.prompt_scores.size()) : num_known;
    for (int position = branch.kv.size() - item.num_tokens; position < branch.kv.size(); ++position) {
      const bool is_draft = position >= num_known;
      const std::int32_t token =
          is_draft ? request.drafts[index(position - num_known)] : branch.tokens[index(position)];
      const int row = static_cast<int>(tokens_.size());
      tokens_.push_back(token);
      positions_.push_back(position);
      if (position + 1 >= num_known)
        add_draws(request, item.branch, position + 1, is_draft ? token : -1);
      else if (position >= num_scored)
        add_scoring_row(request);
      else
        continue;
      logit_rows_.push_back(row);
    }
  }

  // All from the row of logits that comes next. The first row of several samples is one row: the prompt's.
  void add_draws(Request& request, int branch, int position, std::int32_t draft) {
    const bool is_first = !request.beam && request.branches.size() < index(request.params.n);
    const int last = is_first ? request.params.n - 1 : branch;
    for (int sample = is_first ? 0 : branch; sample <= last; ++sample) {
      draws_.push_back({.logit_row = static_cast<int>(logit_rows_.size()),
                        .params = &request.params,
                        .sample = sample,
                        .position = position});
      awaited_.push_back({&request, sample, position, draft});
    }
  }

  void add_scoring_row(Request& request) {
    if (scoring_.empty() || scoring_.back().request != &request)
      scoring_.push_back({&request, static_cast<int>(logit_rows_.size()), 0});
    ++scoring_.back().num_rows;
  }

  // While the same sequences decode they keep their rows, and only what has changed is written: a copy of the tables on
  // a device follows by little.
  void fill_tables(std::span<const Work> work) {
    if (std::ssize(work) < tables_.num_seqs()) tables_.clear();
    int row = 0;
    for (const Work& item : work) {
      const pagedkv::Sequence& kv = item.request->branches[index(item.branch)].kv;
      if (row < tables_.num_seqs())
        tables_.update(row, kv, item.num_tokens);
      else
        tables_.add(kv, item.num_tokens);
      ++row;
    }
  }

  pagedkv::BatchTables tables_;
  std::vector<std::int32_t> tokens_, positions_, logit_rows_;
  std::vector<Draw> draws_;
  std::vector<Awaited> awaited_;
  std::vector<ScoringRows> scoring_;
};

}  // namespace engine
