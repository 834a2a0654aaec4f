// Sampler: one row of logits -> one token. Depends on the logits, the tokens so far and the seed; never on the batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "engine/logprobs.hpp"
#include "engine/philox.hpp"
#include "engine/sampling.hpp"

namespace engine {

struct Choice {
  std::int32_t token;
  double logprob;  // under the model's own distribution, before any of the parameters
};

/// What stands in front of the token to be chosen.
struct Context {
  std::span<const std::int32_t> tokens;        // prompt and text so far: their number is the position of the next one
  int prompt_len = 0;                          // of them; what comes behind was generated
  std::span<const std::int32_t> end_ids = {};  // what would end the text
};

/// The rules in order: logit bias; repetition penalty, over prompt and text; frequency and presence penalty, over the
/// text (so far as in vLLM); no end before min_tokens; temperature, top-k, top-p, min-p (as in transformers). Ties go
/// to the lower id. Reuses its scratch memory; results carry nothing from call to call.
class Sampler {
 public:
  /// Throws BadInput where the logits are no numbers. O(vocab + context).
  Choice choose(std::span<const float> logits, const Context& context, const SamplingParams& params, int sample) {
    const int position = static_cast<int>(context.tokens.size());
    if (!params.changes_logits()) return choose(logits, params, sample, position);
    changed_.assign(logits.begin(), logits.end());
    for (const auto& [token, bias] : params.logit_bias) changed_[index(token)] += bias;
    penalise(context, params);
    if (position - context.prompt_len < params.min_tokens)
      for (const std::int32_t token : context.end_ids)
        if (token < std::ssize(changed_)) changed_[index(token)] = -std::numeric_limits<float>::infinity();
    const double log_sum = log_sum_exp(logits);
    const std::int32_t token =
        params.temperature == 0 ? likeliest_of(changed_) : draw(changed_, params, sample, position);
    return {.token = token, .logprob = logits[index(token)] - log_sum};
  }

  /// The same where the parameters change no logits: the token for `position`. Greedy: one pass over the logits.
  Choice choose(std::span<const float> logits, const SamplingParams& params, int sample, int position) {
    const LogitSummary summary = summarize(logits);
    const std::int32_t token = params.temperature == 0 ? summary.likeliest : draw(logits, params, sample, position);
    return {.token = token, .logprob = logits[index(token)] - summary.log_sum_exp};
  }

 private:
  struct Candidate {
    double weight;  // probability times a constant: the likeliest one's is 1
    std::int32_t token;
  };

  static std::size_t index(std::int32_t i) { return static_cast<std::size_t>(i); }
  static std::int32_t likeliest_of(std::span<const float> logits) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }

  // Repetition: Keskar et al. 2019, arXiv:1909.05858, sec. 4.1; each token once, however often it came.
  void penalise(const Context& context, const SamplingParams& params) {
    count_.resize(changed_.size(), 0);
    for (const std::int32_t token : context.tokens) {
      if (count_[index(token)]++ > 0) continue;
      float& logit = changed_[index(token)];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    for (const std::int32_t token : context.tokens) count_[index(token)] = 0;
    const auto text = context.tokens.subspan(index(context.prompt_len));
    for (const std::int32_t token : text) ++count_[index(token)];
    for (const std::int32_t token : text) {
      const int count = std::exchange(count_[index(token)], 0);
      if (count > 0)
        changed_[index(token)] -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
    }
  }

  std::int32_t draw(std::span<const float> logits, const SamplingParams& params, int sample, int position) {
    weigh(logits, params);
    const std::size_t num_kept = keep_likely(params);
    double total = 0;
    for (std::size_t i = 0; i < num_kept; ++i) total += candidates_[i].weight;
    const auto sample_index = static_cast<std::uint32_t>(sample);
    double rest = total * uniform(params.seed, sample_index, static_cast<std::uint32_t>(position));
    for (std::size_t i = 0; i < num_kept; ++i) {
      const Candidate& candidate = likeliest(i);
      if (rest < candidate.weight) return candidate.token;
      rest -= candidate.weight;
    }
    return likeliest(0).token;  // rounding used up the last candidate
  }

  void weigh(std::span<const float> logits, const SamplingParams& params) {
    const float highest = *std::max_element(logits.begin(), logits.end());
    candidates_.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i)  // a penalty may have made the highest infinite
      candidates_[i] = {.weight = logits[i] == highest
                                      ? 1
                                      : std::exp((static_cast<double>(logits[i]) - highest) / params.temperature),
                        .token = static_cast<std::int32_t>(i)};
    num_sorted_ = 0;
  }

  // Only as many candidates are sorted as are looked at: a draw rarely goes far.
  const Candidate& likeliest(std::size_t i) {
    if (i >= num_sorted_) {
      const auto likelier = [](const Candidate& a, const Candidate& b) {
        return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
      };
      const std::size_t end = std::min(std::max<std::size_t>(64, 4 * (i + 1)), candidates_.size());
      const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(num_sorted_);
      const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
      if (last != candidates_.end()) std::nth_element(first, last, candidates_.end(), likelier);
      std::sort(first, last, likelier);
      num_sorted_ = end;
    }
    return candidates_[i];
  }

  // How many of the likeliest candidates may be drawn. Top-p: Holtzman et al. 2019, arXiv:1904.09751, sec. 3.1.
  std::size_t keep_likely(const SamplingParams& params) {
    std::size_t num_kept = candidates_.size();
    if (params.top_k > 0) num_kept = std::min(num_kept, index(params.top_k));
    if (num_kept < candidates_.size()) likeliest(num_kept - 1);
    if (params.top_p < 1) {
      double total = 0, sum = 0;
      for (std::size_t i = 0; i < num_kept; ++i) total += candidates_[i].weight;
      for (std::size_t i = 0; i < num_kept; ++i)
        if ((sum += likeliest(i).weight) >= static_cast<double>(params.top_p) * total) num_kept = i + 1;
    }
    if (params.min_p > 0)
      for (std::size_t i = 0; i < num_kept; ++i)
        if (likeliest(i).weight < static_cast<double>(params.min_p)) num_kept = i;
    return num_kept;
  }

  std::vector<float> changed_;  // logits
  std::vector<std::int32_t> count_;
  std::vector<Candidate> candidates_;  // the first num_sorted_ of them likeliest first
  std::size_t num_sorted_ = 0;
};

}  // namespace engine
