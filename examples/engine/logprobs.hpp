// Log-probabilities out of one row of logits: of a token, of the likeliest ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cpu/lanes.hpp"

namespace engine {

/// What one pass over a row of logits finds.
struct LogitSummary {
  std::int32_t likeliest;  // the lower id of equals
  double log_sum_exp;      // log p of a token is its logit less this
};

/// Throws BadInput if a logit is NaN or plus infinity, or all are minus infinity: weights can be so, and no token
/// follows from it. The sum goes on in pieces that stay in the cache, relative to the highest logit so far; to 2^-22 of
/// it.
inline LogitSummary summarize(std::span<const float> logits) {
  constexpr std::size_t piece_len = 1024;
  float highest = -std::numeric_limits<float>::infinity();
  double sum = 0;
  std::size_t likeliest = 0;
  for (std::size_t first = 0; first < logits.size(); first += piece_len) {
    const auto piece = logits.subspan(first, std::min(piece_len, logits.size() - first));
    const auto top = std::max_element(piece.begin(), piece.end());
    if (*top > highest) {
      sum *= std::exp(static_cast<double>(highest) - *top);
      highest = *top;
      likeliest = first + static_cast<std::size_t>(top - piece.begin());
    }
    const float shift = std::isinf(highest) && highest < 0 ? 0 : highest;
    pagedkv::cpu::Lanes sums{};
    std::size_t i = 0;
    for (; i + pagedkv::cpu::num_lanes <= piece.size(); i += pagedkv::cpu::num_lanes)
      sums += pagedkv::cpu::exp2_of_negative((pagedkv::cpu::load_lanes(piece.data() + i) - shift) * pagedkv::log2_e);
    for (int lane = 0; lane < pagedkv::cpu::num_lanes; ++lane) sum += static_cast<double>(sums[lane]);
    for (; i < piece.size(); ++i) sum += std::exp(static_cast<double>(piece[i] - shift));
  }
  if (!(sum > 0)) throw BadInput("logits of the model", "finite numbers", "not a number");
  return {static_cast<std::int32_t>(likeliest), highest + std::log(sum)};
}

inline double log_sum_exp(std::span<const float> logits) { return summarize(logits).log_sum_exp; }

inline TokenLogprob logprob_of(std::span<const float> logits, double log_sum, std::int32_t token) {
  return {token, static_cast<float>(logits[static_cast<std::size_t>(token)] - log_sum)};
}

/// The `count` likeliest tokens (all, if there are fewer), descending, ties to the lower id. O(vocab) for few.
inline std::vector<std::int32_t> likeliest_tokens(std::span<const float> logits, int count) {
  std::vector<std::int32_t> top;  // sorted
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  };
  for (std::int32_t token = 0; token < std::ssize(logits) && count > 0; ++token) {
    const bool is_full = std::ssize(top) == count;
    if (is_full && !likelier(token, top.back())) continue;
    if (is_full) top.pop_back();
    top.insert(std::upper_bound(top.begin(), top.end(), token, likelier), token);
  }
  return top;
}

/// The same with their log-probabilities.
inline std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, double log_sum, int count) {
  std::vector<TokenLogprob> top;
  for (const std::int32_t token : likeliest_tokens(logits, count)) top.push_back(logprob_of(logits, log_sum, token));
  return top;
}

}  // namespace engine
