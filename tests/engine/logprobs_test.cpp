// Log-probabilities: of a row, of the tokens that are generated, of the prompt's own.
#include "engine/logprobs.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "support/fake_engine.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

bool same(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return std::ranges::equal(
      a, b, [](const TokenLogprob& x, const TokenLogprob& y) { return x.token == y.token && x.logprob == y.logprob; });
}

void check_scores(const Request& request, int num_top) {
  const std::span<const std::int32_t> tokens = request.branches[0].tokens;
  REQUIRE(std::ssize(request.prompt_scores) == request.prompt_len - 1);
  for (std::size_t i = 0; i < request.prompt_scores.size(); ++i) {
    const auto logits = FakeModel::logits_of(tokens.first(i + 1), vocab);
    const double log_sum = log_sum_exp(logits);
    CHECK(request.prompt_scores[i].own.token == tokens[i + 1]);
    CHECK(request.prompt_scores[i].own.logprob == logprob_of(logits, log_sum, tokens[i + 1]).logprob);
    CHECK(same(request.prompt_scores[i].top, top_logprobs(logits, log_sum, num_top)));
  }
}

}  // namespace

TEST_CASE("one pass finds the likeliest token and the sum of exponentials, however the logits climb") {
  Random random(3);
  for (const int length : {1, 2, 1023, 1024, 1025, 5000})
    for (const float slope : {0.f, 0.01f, -0.01f, 1.f}) {
      std::vector<float> logits;
      for (int i = 0; i < length; ++i) logits.push_back(random.real(5) + slope * static_cast<float>(i));
      const double highest = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float x : logits) sum += std::exp(x - highest);
      const LogitSummary summary = summarize(logits);
      CHECK(std::abs(summary.log_sum_exp - (highest + std::log(sum))) < 1e-6);
      CHECK(summary.likeliest == std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
  std::vector<float> equal(3000, -INFINITY);
  equal[1500] = equal[2900] = 7;
  CHECK(summarize(equal).likeliest == 1500);
  CHECK(summarize(equal).log_sum_exp == doctest::Approx(7 + std::log(2.0)));
  equal[2999] = NAN;
  CHECK_THROWS_AS(summarize(equal), BadInput);
}

TEST_CASE("the likeliest tokens come in order, equals by their ids, and never more than there are") {
  const std::vector<float> logits{1, 3, 2, 3, -INFINITY};
  const auto tokens = [&](int count) {
    std::vector<std::int32_t> likeliest;
    for (const TokenLogprob& top : top_logprobs(logits, log_sum_exp(logits), count)) likeliest.push_back(top.token);
    return likeliest;
  };
  CHECK(tokens(0).empty());
  CHECK(tokens(-1).empty());
  CHECK(tokens(1) == Tokens{1});
  CHECK(tokens(3) == Tokens{1, 3, 2});
  CHECK(tokens(9) == Tokens{1, 3, 2, 0, 4});
  CHECK(top_logprobs(logits, log_sum_exp(logits), 9)[2].logprob == static_cast<float>(2 - log_sum_exp(logits)));
}

TEST_CASE("each token comes with its own logarithm and the likeliest ones, before any of the parameters") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .run_ahead = true});
  const SamplingParams params{
      .max_tokens = 9, .n = 2, .temperature = 0.8f, .repetition_penalty = 1.5f, .seed = 4, .top_logprobs = 3};
  const int id = engine->submit(prompt_of(6), params);
  engine->submit(prompt_of(6), {.max_tokens = 9, .top_logprobs = 0});
  engine->run([&](const Event& event) {
    const Branch& branch = event.request->branches.at(static_cast<std::size_t>(event.sample));
    const std::span<const std::int32_t> tokens = branch.tokens;
    const auto logits = FakeModel::logits_of(tokens.first(tokens.size() - 1), vocab);
    const double log_sum = log_sum_exp(logits);
    CHECK(event.token == tokens.back());
    CHECK(event.logprob == doctest::Approx(logits[static_cast<std::size_t>(event.token)] - log_sum));
    CHECK(same(event.top, top_logprobs(logits, log_sum, event.request->id == id ? 3 : 0)));
  });
  for (int sample = 0; sample < 2; ++sample)
    CHECK(engine.generated(id, static_cast<std::size_t>(sample)) == expected_of(prompt_of(6), params, sample));
}

TEST_CASE("a prompt is scored whole: in chunks, beside a cache that has it, through preemptions, with any room") {
  for (const int max_logit_rows : {4, 5, 100})
    for (const int max_batched_tokens : {4, 7, 64})
      for (const Preemption preemption : {Preemption::recompute, Preemption::swap}) {
        FakeEngine engine(
            {.num_blocks = 14,
             .block_size = 4,
             .scheduler = {.max_batched_tokens = max_batched_tokens, .max_seqs = 4, .preemption = preemption},
             .num_host_blocks = 20},
            false, max_logit_rows);
        const int warm = engine->submit(prompt_of(21), {.max_tokens = 1});
        engine->run();
        CHECK(engine->request(warm).prompt_scores.empty());
        const SamplingParams params{
            .max_tokens = 14, .n = 2, .temperature = 1, .top_logprobs = 2, .prompt_logprobs = true};
        const int first = engine->submit(prompt_of(5, 9), {.max_tokens = 20, .prompt_logprobs = true});
        const int scored = engine->submit(prompt_of(21), params);
        const int single = engine->submit(prompt_of(1), {.max_tokens = 2, .prompt_logprobs = true});
        engine->run();
        CHECK(engine->request(scored).num_cached == 0);
        check_scores(engine->request(scored), 2);
        check_scores(engine->request(first), 0);
        check_scores(engine->request(single), 0);
        for (const int sample : {0, 1})
          CHECK(engine.generated(scored, sample == 1) == expected_of(prompt_of(21), params, sample));
        // Every row but the last of each prompt yielded logits for its scores once, preempted or not.
        int num_logit_rows = 0;
        for (const auto& pass : engine.model.passes()) num_logit_rows += pass.num_logit_rows;
        CHECK(num_logit_rows == 1 + (4 + 20) + (20 + 27) + 2);
        // What it computed others may find.
        const int after = engine->submit(prompt_of(21), {.max_tokens = 1});
        engine->run();
        CHECK(engine->request(after).num_cached == 20);
      }
}
