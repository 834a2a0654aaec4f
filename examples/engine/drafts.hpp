// Drafts: guesses of a request's next tokens, from what stood behind the same words before; the model verifies them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace engine {

/// Speculative decoding without a second model: prompt lookup (Saxena 2023; LLMA, Yang et al., arXiv:2304.04487). A
/// draw depends on logits, seed, sample and position alone, so guesses are accepted as long as they equal the draws in
/// their places, and texts, greedy or sampled, are those without guessing wherever a row's logits do not depend on its
/// batch.
struct DraftOptions {
  int max_drafts = 0;  // guessed tokens a step and request; 0: none
  int min_ngram = 2;   // so many of the newest tokens must have stood somewhere before
  int max_ngram = 4;   // no more are compared
};

/// Finds where the newest tokens of one text stood before, with all tokens seen so far in an index: the longest n-gram
/// decides, then the latest place. A token costs max_ngram - min_ngram + 1 entries of the index, and their time.
class NgramDrafter {
 public:
  explicit NgramDrafter(const DraftOptions& options) : options_(options) {}

  /// At most `max_drafts` tokens that may follow `tokens`, which begin with those of the calls before.
  std::vector<std::int32_t> draft(std::span<const std::int32_t> tokens, int max_drafts) {
    for (; num_indexed_ + 1 < tokens.size(); ++num_indexed_)
      for (int n = options_.min_ngram; n <= options_.max_ngram; ++n)
        if (const auto ngram = ending_behind(tokens, num_indexed_ + 1, n); !ngram.empty())
          newest_[hash_of(ngram)] = num_indexed_ + 1;
    for (int n = options_.max_ngram; n >= options_.min_ngram; --n) {
      const auto ngram = ending_behind(tokens, tokens.size(), n);
      const auto found = ngram.empty() ? newest_.end() : newest_.find(hash_of(ngram));
      if (found == newest_.end() || !std::ranges::equal(ngram, ending_behind(tokens, found->second, n))) continue;
      // What followed there, and then the drafts themselves: a text that repeats itself goes on doing so.
      std::vector<std::int32_t> drafts;
      for (std::size_t i = found->second; std::ssize(drafts) < max_drafts; ++i)
        drafts.push_back(i < tokens.size() ? tokens[i] : drafts[i - tokens.size()]);
      return drafts;
    }
    return {};
  }

 private:
  // The `n` tokens in front of position `end`; none where there are not so many.
  static std::span<const std::int32_t> ending_behind(std::span<const std::int32_t> tokens, std::size_t end, int n) {
    const auto count = static_cast<std::size_t>(n);
    return count <= end ? tokens.subspan(end - count, count) : std::span<const std::int32_t>{};
  }

  static std::uint64_t hash_of(std::span<const std::int32_t> ngram) {
    std::uint64_t hash = ngram.size() << 32;
    for (const std::int32_t token : ngram) {
      hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return hash;
  }

  DraftOptions options_;
  std::unordered_map<std::uint64_t, std::size_t> newest_;  // n-gram -> the position behind its latest place
  std::size_t num_indexed_ = 0;  // tokens that ends of n-grams in the index were looked for among
};

}  // namespace engine
