// Everything at once, at random: priorities, samples, beams, scores, drafts, swapping, running ahead, aborts and stops.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_engine.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

constexpr float habit = 6;

struct Asked {
  Tokens prompt;
  SamplingParams params;
  SubmitOptions options;
  bool is_aborted = false;
};

EngineOptions random_options(Random& random) {
  const int block_size = random.between(1, 9);
  EngineOptions options{.num_blocks = std::max(4, random.between(20, 160) / block_size), .block_size = block_size};
  options.prefix_cache = random.between(0, 1) == 1;
  options.run_ahead = random.between(0, 1) == 1;
  options.scheduler = {
      .max_batched_tokens = random.between(1, 40), .max_seqs = random.between(1, 8), .watermark = random.between(0, 3)};
  if (random.between(0, 2) > 0) {
    options.scheduler.preemption = Preemption::swap;
    options.num_host_blocks = random.between(1, 2 * options.num_blocks);
  }
  if (random.between(0, 1) == 1)
    options.drafts = {.max_drafts = random.between(1, 5), .min_ngram = random.between(1, 2), .max_ngram = 3};
  return options;
}

SamplingParams random_params(Random& random) {
  SamplingParams params{.max_tokens = random.between(1, 30), .seed = 3};
  const int width = random.between(0, 3) == 0 ? random.between(2, 4) : 1;
  if (width > 1 && random.between(0, 1) == 1) {
    params.beam_width = width;
    return params;
  }
  params.n = width;
  if (random.between(0, 1) == 1) params.temperature = 0.7f;
  if (random.between(0, 5) == 0) params.stop_ids = {5, 6};
  if (random.between(0, 3) > 0) return params;
  params.min_tokens = random.between(0, params.max_tokens);
  params.repetition_penalty = random.between(0, 1) == 1 ? 1.2f : 1;
  params.presence_penalty = random.between(0, 1) == 1 ? 0.5f : 0;
  params.frequency_penalty = random.between(0, 1) == 1 ? 0.25f : 0;
  if (random.between(0, 1) == 1) params.logit_bias = {{3, 2.f}, {1, -3.f}};
  params.top_logprobs = random.between(-1, 3);
  params.prompt_logprobs = random.between(0, 1) == 1;
  return params;
}

// Tokens of each sample, or beam, without company and with room for all.
std::vector<Tokens> oracle(const Asked& asked) {
  std::vector<Tokens> texts;
  if (asked.params.beam_width == 0) {
    for (int sample = 0; sample < asked.params.n; ++sample)
      texts.push_back(expected_of(asked.prompt, asked.params, sample, true, habit));
    return texts;
  }
  FakeEngine roomy({.num_blocks = 4096, .block_size = 1}, true);
  roomy.model.habit = habit;
  const int id = roomy->submit(asked.prompt, asked.params);
  roomy->run();
  for (int beam = 0; beam < asked.params.beam_width; ++beam)
    texts.push_back(roomy.generated(id, static_cast<std::size_t>(beam)));
  return texts;
}

void check_scores(const Request& request) {
  if (!request.params.prompt_logprobs) {
    CHECK(request.prompt_scores.empty());
    return;
  }
  const std::span tokens = request.branches[0].tokens;
  const bool is_stopped = request.branches[0].finish == Finish::stop;  // perhaps in the middle of its prompt
  CHECK((is_stopped || std::ssize(request.prompt_scores) == request.prompt_len - 1));
  for (std::size_t i = 0; i < request.prompt_scores.size(); ++i) {
    const auto logits = FakeModel::logits_of(tokens.first(i + 1), vocab, habit);
    const TokenScore& score = request.prompt_scores[i];
    CHECK(score.own.token == tokens[i + 1]);
    CHECK(score.own.logprob == logprob_of(logits, log_sum_exp(logits), tokens[i + 1]).logprob);
    CHECK(std::ssize(score.top) == std::max(0, request.params.top_logprobs));
  }
}

}  // namespace

TEST_CASE("random loads with aborts and stops end, with the oracle's texts, and every block comes home") {
  EngineStats sum;
  int num_aborted = 0, num_stopped = 0;
  for (std::uint64_t load = 0; load < 700; ++load) {
    CAPTURE(load);
    Random random(load);
    const EngineOptions options = random_options(random);
    const int max_seqs = std::min(options.scheduler.max_seqs, options.scheduler.max_batched_tokens);
    FakeEngine engine(options, true, max_seqs + random.between(0, 6));
    engine.model.habit = habit;
    std::map<int, Asked> asked;
    int num_steps = 0;
    std::map<std::pair<int, int>, Tokens> seen;
    const auto step = [&] {
      REQUIRE(++num_steps < 20000);
      for (const Event& event : engine->step()) {
        REQUIRE_FALSE(asked.at(event.request->id).is_aborted);
        if (!event.request->beam) seen[{event.request->id, event.sample}].push_back(event.token);
        const auto num_top = event.request->beam ? 0 : std::max(0, event.request->params.top_logprobs);
        CHECK(std::ssize(event.top) == num_top);
      }
      CHECK_NOTHROW(engine->check_integrity());
      if (asked.empty() || random.between(0, 9) > 0) return;
      const int id = random.between(0, static_cast<int>(asked.size()) - 1);
      if (!asked.contains(id) || asked[id].is_aborted) return;
      if (random.between(0, 1) == 0) {
        engine->abort(id);
        asked[id].is_aborted = true;
        ++num_aborted;
      } else if (const Request& live = engine->request(id); !live.beam) {
        const int sample = random.between(0, live.params.n - 1);
        if (std::ssize(live.branches) < live.params.n) {
          CHECK_THROWS_AS(engine->stop(id, sample), pagedkv::InvalidArgument);
        } else {
          engine->stop(id, sample);
          ++num_stopped;
        }
      }
      CHECK_NOTHROW(engine->check_integrity());
    };
    for (int i = 0, num_requests = random.between(1, 12); i < num_requests; ++i) {
      Asked request{prompt_of(random.between(1, 40), random.between(0, 2)), random_params(random), {}};
      request.options.priority = random.between(0, 2);
      request.options.cache_salt = static_cast<std::uint64_t>(random.between(0, 1));
      try {
        asked[engine->submit(request.prompt, request.params, request.options)] = request;
      } catch (const BadInput&) {  // never fits
      }
      for (int steps = random.between(0, 4); steps > 0 && !engine->is_idle(); --steps) step();
    }
    while (!engine->is_idle()) step();
    for (const auto& [id, request] : asked) {
      if (request.is_aborted) continue;
      const std::vector<Tokens> expected = oracle(request);
      const Request& served = engine->request(id);
      CHECK(served.state == State::finished);
      check_scores(served);
      for (const Branch& branch : served.branches) {
        Tokens whole = expected.at(static_cast<std::size_t>(branch.index));
        const Tokens text(branch.tokens.begin() + served.prompt_len, branch.tokens.end());
        if (branch.finish == Finish::stop) whole.resize(text.size());
        CHECK(text == whole);
        if (!served.beam) CHECK(seen[{id, branch.index}] == text);
      }
    }
    for (const auto& pass : engine.model.passes()) CHECK(pass.num_rows <= options.scheduler.max_batched_tokens);
    CHECK(engine->blocks().num_used() == 0);
    CHECK(engine->swap_space().num_free() == options.num_host_blocks);
    sum.num_preemptions += engine->stats().num_preemptions;
    sum.num_swaps += engine->stats().num_swaps;
    sum.cached_tokens += engine->stats().cached_tokens;
    sum.drafted_tokens += engine->stats().drafted_tokens;
    sum.accepted_drafts += engine->stats().accepted_drafts;
  }
  CHECK(sum.num_preemptions - sum.num_swaps > 100);
  CHECK(sum.num_swaps > 100);
  CHECK(sum.cached_tokens > 1000);
  CHECK(sum.accepted_drafts > 300);
  CHECK(sum.drafted_tokens > sum.accepted_drafts + 100);
  CHECK(num_aborted > 100);
  CHECK(num_stopped > 100);
}
