// Sampler: one row of logits -> one token. Depends on the logits, the tokens so far and the seed; never on the batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/beam.hpp"
#include "engine/philox.hpp"
#include "engine/sampling.hpp"

namespace engine {

struct Choice {
  std::int32_t token;
  double logprob;  // under the model's own distribution, before any of the parameters
};

/// Reuses its scratch memory; results carry nothing from call to call.
class Sampler {
 public:
  /// The rules in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. `history` is prompt
  /// and text so far, so its length is the position of the token to choose. Ties go to the lower id. Throws BadInput
  /// where the logits are no numbers. O(vocab log vocab).
  Choice choose(std::span<const float> logits, std::span<const std::int32_t> history, const SamplingParams& params,
                int sample) {
    logits_.assign(logits.begin(), logits.end());
    penalise(history, params.repetition_penalty);
    return choose_among_logits(logits, params, sample, static_cast<int>(history.size()));
  }

  /// The same where the parameters ask for no look back: the token for `position`.
  Choice choose(std::span<const float> logits, const SamplingParams& params, int sample, int position) {
    logits_.assign(logits.begin(), logits.end());
    return choose_among_logits(logits, params, sample, position);
  }

 private:
  // `logits` are the model's own; logits_ are what the parameters have made of them.
  Choice choose_among_logits(std::span<const float> logits, const SamplingParams& params, int sample, int position) {
    const double log_sum = log_sum_exp(logits);
    const std::int32_t token =
        params.temperature == 0
            ? static_cast<std::int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin())
            : draw(params, uniform(params.seed, static_cast<std::uint32_t>(sample),
                                   static_cast<std::uint32_t>(position)));
    return {.token = token, .logprob = logits[static_cast<std::size_t>(token)] - log_sum};
  }

  struct Candidate {
    double weight;  // probability times a constant
    std::int32_t token;
  };

  // Keskar et al. 2019, arXiv:1909.05858, sec. 4.1; each token once, however often it came.
  void penalise(std::span<const std::int32_t> history, float penalty) {
    if (penalty == 1) return;
    seen_.assign(logits_.size(), false);
    for (const std::int32_t token : history) {
      const auto i = static_cast<std::size_t>(token);
      if (seen_[i]) continue;
      seen_[i] = true;
      logits_[i] = logits_[i] > 0 ? logits_[i] / penalty : logits_[i] * penalty;
    }
  }

  std::int32_t draw(const SamplingParams& params, double random) {
    keep_likely(params);
    double total = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    double rest = random * total;
    for (const Candidate& candidate : candidates_) {
      if (rest < candidate.weight) return candidate.token;
      rest -= candidate.weight;
    }
    return candidates_.front().token;  // rounding used up the last candidate
  }

  // Fills candidates_, likeliest first.
  void keep_likely(const SamplingParams& params) {
    const float highest = *std::max_element(logits_.begin(), logits_.end());
    const auto weight_of = [&](float logit) {  // a penalty may have made the highest infinite
      return logit == highest ? 1 : std::exp((static_cast<double>(logit) - highest) / params.temperature);
    };
    candidates_.clear();
    for (std::size_t i = 0; i < logits_.size(); ++i)
      candidates_.push_back({.weight = weight_of(logits_[i]), .token = static_cast<std::int32_t>(i)});
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
    });
    if (params.top_k > 0 && params.top_k < std::ssize(candidates_))
      candidates_.resize(static_cast<std::size_t>(params.top_k));
    if (params.top_p < 1) keep_nucleus(params.top_p);
    // Weights are relative to the likeliest, whose own is 1.
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < static_cast<double>(params.min_p); });
  }

  // Holtzman et al. 2019, arXiv:1904.09751, sec. 3.1.
  void keep_nucleus(double top_p) {
    double total = 0, sum = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    const auto last = std::find_if(candidates_.begin(), candidates_.end(),
                                   [&](const Candidate& c) { return (sum += c.weight) >= top_p * total; });
    if (last != candidates_.end()) candidates_.erase(last + 1, candidates_.end());
  }

  std::vector<float> logits_;
  std::vector<bool> seen_;
  std::vector<Candidate> candidates_;  // likeliest first
};

}  // namespace engine
