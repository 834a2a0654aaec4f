// SamplingParams: how many tokens a user wants behind a prompt, and how each is chosen.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"

namespace engine {

/// A token and the logarithm of its probability under the model's own distribution, before any of the parameters.
struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

/// What the model thought of a token, and which ones it thought likeliest: descending, ties to the lower id.
struct TokenScore {
  TokenLogprob own;
  std::vector<TokenLogprob> top;
};

struct SamplingParams {
  int max_tokens = 128;          // at most; the position limit may end a text earlier
  int min_tokens = 0;            // so many come before a token that ends the text may
  int n = 1;                     // parallel samples of one prompt
  int beam_width = 0;            // 0: sample; else beam search, which draws nothing
  float temperature = 0;         // 0: greedy
  int top_k = 0;                 // keep the k likeliest tokens; 0: all
  float top_p = 1;               // keep the smallest set of the likeliest tokens that holds this probability; 1: all
  float min_p = 0;               // drop what is less likely than this times the likeliest; 0: nothing
  float repetition_penalty = 1;  // divides positive logits, multiplies negative ones, of every token seen before
  float presence_penalty = 0;    // is taken from the logit of every token generated before
  float frequency_penalty = 0;   // the same, as often as the token was generated
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};  // (token, added to its logit)
  std::uint64_t seed = 0;  // equal seeds give equal texts, whatever else runs in the batch

  bool ignore_eos = false;                  // the model's own end tokens are tokens like any other
  std::vector<std::int32_t> stop_ids = {};  // end a text as the model's own end tokens do
  int top_logprobs = -1;                    // so many of the likeliest tokens are told beside each token; below 1: none
  bool prompt_logprobs = false;             // the prompt's tokens are scored, too

  int width() const { return beam_width > 0 ? beam_width : n; }

  /// Is a row of logits changed before a token is chosen from it?
  bool changes_logits() const {
    return min_tokens > 0 || repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0 ||
           !logit_bias.empty();
  }

  /// Does choosing, or telling, look at more than one row of logits and these numbers? Then the host chooses, else the
  /// model may.
  bool needs_logits() const { return beam_width > 0 || changes_logits() || top_logprobs > 0 || prompt_logprobs; }

  /// Throws BadInput, naming the field.
  void validate() const {
    const auto check = [](bool ok, const char* name, const char* expected, auto found) {
      if (!ok) throw BadInput(name, expected, std::to_string(found));
    };
    check(max_tokens >= 1, "max-tokens", "at least 1", max_tokens);
    check(n >= 1, "n", "at least 1", n);
    check(beam_width >= 0, "beam", "at least 0", beam_width);
    check(beam_width == 0 || n == 1, "n", "1 with beam search", n);
    check(temperature >= 0 && temperature <= 1e6f, "temperature", "0 to 1e6", temperature);
    check(top_k >= 0, "top-k", "at least 0", top_k);
    check(top_p > 0 && top_p <= 1, "top-p", "above 0 and at most 1", top_p);
    check(min_p >= 0 && min_p <= 1, "min-p", "0 to 1", min_p);
    check(repetition_penalty > 0 && repetition_penalty <= 1e6f, "repetition-penalty", "above 0 and at most 1e6",
          repetition_penalty);
    check(std::abs(presence_penalty) <= 1e6f, "presence-penalty", "-1e6 to 1e6", presence_penalty);
    check(std::abs(frequency_penalty) <= 1e6f, "frequency-penalty", "-1e6 to 1e6", frequency_penalty);
    for (const auto& [token, bias] : logit_bias) check(std::abs(bias) <= 1e6f, "logit-bias", "-1e6 to 1e6", bias);
    check(min_tokens >= 0, "min-tokens", "at least 0", min_tokens);
    check(min_tokens <= max_tokens, "min-tokens", "at most max-tokens", min_tokens);
    check(top_logprobs >= -1 && top_logprobs <= 1000, "top-logprobs", "-1 to 1000", top_logprobs);
    check(beam_width == 0 || (!changes_logits() && top_logprobs <= 0 && !prompt_logprobs), "beam",
          "0 with penalties, biases, min-tokens or logprobs", beam_width);
  }
};

}  // namespace engine
