// BeamSearch: which hypotheses to keep; it sees scores and tokens, never a block. Agrees with transformers 5.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/logprobs.hpp"

namespace engine {

/// Keeps the `width` likeliest running beams, and a pool of the `width` best finished ones by sum_logprob / length (Wu
/// et al. 2016, arXiv:1609.08144, sec. 7, with length penalty 1), length counting the generated tokens with the closing
/// one. It is over when no running beam could enter the pool if it ended now.
class BeamSearch {
 public:
  struct Hypothesis {
    std::vector<std::int32_t> tokens;  // generated ones
    double sum_logprob = 0;
    double score = 0;
    bool ends_with_eos = false;
  };
  /// The next step's beam i continues this step's beam `parent` with `token`.
  struct Choice {
    int parent;
    std::int32_t token;
  };

  BeamSearch(int width, int max_tokens, std::span<const std::int32_t> eos_ids)
      : width_(width), max_tokens_(max_tokens), eos_ids_(eos_ids.begin(), eos_ids.end()), running_(1) {}

  int width() const { return width_; }
  std::span<const Hypothesis> running() const { return running_; }
  bool is_over() const { return over_; }
  /// Best first.
  std::span<const Hypothesis> finished() const { return finished_; }

  /// `logits[i]` follow running beam i. Returns the next beams, best first; none when the search is over.
  std::vector<Choice> advance(std::span<const std::span<const float>> logits) {
    const std::vector<Candidate> candidates = best_candidates(logits);
    const int length = static_cast<int>(running_.front().tokens.size()) + 1;
    std::vector<Hypothesis> next;
    std::vector<Choice> choices;
    for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
      const Candidate& candidate = candidates[rank];
      const bool is_eos = std::find(eos_ids_.begin(), eos_ids_.end(), candidate.token) != eos_ids_.end();
      const bool ends = is_eos || length == max_tokens_;
      if (ends ? static_cast<int>(rank) >= width_ : static_cast<int>(next.size()) >= width_) continue;
      Hypothesis hypothesis = running_[static_cast<std::size_t>(candidate.parent)];
      hypothesis.tokens.push_back(candidate.token);
      hypothesis.sum_logprob = candidate.sum_logprob;
      hypothesis.score = candidate.sum_logprob / length;
      hypothesis.ends_with_eos = is_eos;
      if (ends) {
        finish(std::move(hypothesis));
      } else {
        next.push_back(std::move(hypothesis));
        choices.push_back({candidate.parent, candidate.token});
      }
    }
    running_ = std::move(next);
    over_ = running_.empty() ||
            (static_cast<int>(finished_.size()) == width_ && running_.front().score <= finished_.back().score);
    if (over_) choices.clear();
    return choices;
  }

 private:
  struct Candidate {
    double sum_logprob;
    int parent;
    std::int32_t token;
  };

  // Enough that `width` of them go on even if every beam's likeliest token ends the text.
  std::vector<Candidate> best_candidates(std::span<const std::span<const float>> logits) const {
    const int kept = width_ * std::max(2, 1 + static_cast<int>(eos_ids_.size()));
    const auto better = [](const Candidate& a, const Candidate& b) {
      if (a.sum_logprob != b.sum_logprob) return a.sum_logprob > b.sum_logprob;
      return a.parent != b.parent ? a.parent < b.parent : a.token < b.token;
    };
    std::vector<Candidate> best;
    for (std::size_t beam = 0; beam < logits.size(); ++beam) {
      const double shift = running_[beam].sum_logprob - log_sum_exp(logits[beam]);
      for (const std::int32_t token : likeliest_tokens(logits[beam], kept))
        best.push_back({logits[beam][static_cast<std::size_t>(token)] + shift, static_cast<int>(beam), token});
    }
    std::sort(best.begin(), best.end(), better);
    best.resize(std::min(static_cast<std::size_t>(kept), best.size()));
    return best;
  }

  void finish(Hypothesis hypothesis) {
    const auto place = std::upper_bound(finished_.begin(), finished_.end(), hypothesis,
                                        [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
    finished_.insert(place, std::move(hypothesis));
    if (static_cast<int>(finished_.size()) > width_) finished_.pop_back();
  }

  int width_;
  int max_tokens_;
  std::vector<std::int32_t> eos_ids_;
  std::vector<Hypothesis> running_;   // best first
  std::vector<Hypothesis> finished_;  // best first
  bool over_ = false;
};

}  // namespace engine
