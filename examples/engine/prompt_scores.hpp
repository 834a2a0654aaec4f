// Scores of a prompt's own tokens, out of the rows that stand in front of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/logprobs.hpp"
#include "engine/request.hpp"

namespace engine {

/// Rows of logits that score the next tokens of a prompt.
struct ScoringRows {
  Request* request;
  int first_logit_row;
  int num_rows;
};

/// `logits` are [logit rows, vocab].
inline void add_prompt_scores(const ScoringRows& rows, std::span<const float> logits, int vocab) {
  Request& request = *rows.request;
  for (int i = 0; i < rows.num_rows; ++i) {
    const auto width = static_cast<std::size_t>(vocab);
    const auto row = logits.subspan(static_cast<std::size_t>(rows.first_logit_row + i) * width, width);
    const std::int32_t token = request.branches[0].tokens[request.prompt_scores.size() + 1];
    const double log_sum = log_sum_exp(row);
    request.prompt_scores.push_back(
        {logprob_of(row, log_sum, token), top_logprobs(row, log_sum, request.params.top_logprobs)});
  }
}

}  // namespace engine
