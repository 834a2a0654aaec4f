// Drafts: where they come from, and that texts are the same with them, only sooner.
#include "engine/drafts.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "support/fake_engine.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

constexpr float habit = 6;
constexpr DraftOptions options{.max_drafts = 4, .min_ngram = 1, .max_ngram = 3};

Tokens draft(const Tokens& tokens, int max_drafts = 4, const DraftOptions& with = options) {
  return NgramDrafter(with).draft(tokens, max_drafts);
}

// The definition: the longest n-gram, then its latest place, then what followed it, and the drafts behind that.
Tokens slow_draft(const Tokens& tokens, int max_drafts, const DraftOptions& with) {
  const int length = static_cast<int>(tokens.size());
  for (int n = std::min(with.max_ngram, length - 1); n >= with.min_ngram; --n)
    for (int end = length - 1; end >= n; --end) {
      if (!std::equal(tokens.end() - n, tokens.end(), tokens.begin() + end - n)) continue;
      Tokens all = tokens;
      for (int i = end; std::ssize(all) < length + max_drafts; ++i) all.push_back(all[static_cast<std::size_t>(i)]);
      return {all.begin() + length, all.end()};
    }
  return {};
}

}  // namespace

TEST_CASE("what stood behind the newest tokens before is guessed to come again") {
  CHECK(draft({7, 8, 9, 5, 6, 7, 8}) == Tokens{9, 5, 6, 7});
  CHECK(draft({7, 8, 9, 5, 6, 7, 8}, 2) == Tokens{9, 5});
  CHECK(draft({1, 2, 3, 4}).empty());
  CHECK(draft({1, 9, 2, 9, 3, 9}) == Tokens{3, 9, 3, 9});        // the latest of equals
  CHECK(draft({5, 1, 9, 2, 1, 8, 5, 1}) == Tokens{9, 2, 1, 8});  // the longer match, though the shorter is later
  CHECK(draft({4, 4}) == Tokens{4, 4, 4, 4});                    // a text that repeats itself goes on doing so
  CHECK(draft({3}).empty());
  CHECK(draft({1, 9, 2, 9}, 4, {.max_drafts = 4, .min_ngram = 2, .max_ngram = 3}).empty());
}

TEST_CASE("an index that grows with the text finds what a search of all of it finds") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const int min_ngram = random.between(1, 3);
    const DraftOptions with{.max_drafts = 5, .min_ngram = min_ngram, .max_ngram = min_ngram + random.between(0, 3)};
    NgramDrafter drafter(with);
    Tokens tokens;
    while (tokens.size() < 200) {
      for (int i = random.between(1, 5); i > 0; --i) tokens.push_back(random.between(0, 3));
      CHECK(drafter.draft(tokens, 5) == slow_draft(tokens, 5, with));
    }
  }
}

TEST_CASE("greedy and sampled texts are the same with drafts, in fewer steps") {
  for (const float temperature : {0.f, 0.7f}) {
    FakeEngine plain({.num_blocks = 64, .block_size = 4}, true);
    FakeEngine drafting({.num_blocks = 64, .block_size = 4, .drafts = options}, true);
    for (int first = 2; first < 22; ++first) {
      const auto seed = static_cast<std::uint64_t>(first);
      const SamplingParams params{.max_tokens = 40, .temperature = temperature, .seed = seed};
      for (FakeEngine* engine : {&plain, &drafting}) {
        engine->model.habit = habit;
        const int id = (*engine)->submit(prompt_of(8, first), params);
        Tokens seen;
        (*engine)->run([&](const Event& event) { seen.push_back(event.token); });
        CHECK(engine->generated(id) == expected_of(prompt_of(8, first), params, 0, true, habit));
        CHECK(seen == engine->generated(id));
      }
    }
    const EngineStats& stats = drafting->stats();
    CHECK(stats.generated_tokens == plain->stats().generated_tokens);
    CHECK(stats.accepted_drafts > 50);
    CHECK(stats.drafted_tokens > stats.accepted_drafts);
    CHECK(stats.num_steps <= plain->stats().num_steps - stats.accepted_drafts);
  }
}

TEST_CASE("drafts share the budget of a step with those who decode, and its rows of logits") {
  for (const int max_logit_rows : {3, 5, 40}) {
    FakeEngine engine({.num_blocks = 64,
                       .block_size = 4,
                       .scheduler = {.max_batched_tokens = 8, .max_seqs = 3},
                       .drafts = {.max_drafts = 4, .min_ngram = 1, .max_ngram = 3}},
                      false, max_logit_rows);
    engine.model.habit = 20;
    for (int first = 2; first < 5; ++first) engine->submit(prompt_of(6, first), {.max_tokens = 40});
    engine->run();
    int most = 0;
    for (const auto& pass : engine.model.passes()) {
      CHECK(pass.num_rows <= 8);
      CHECK(pass.num_logit_rows <= max_logit_rows);
      if (std::ssize(pass.q_len) == 3) most = std::max(most, pass.num_logit_rows);
    }
    CHECK(most == std::min(max_logit_rows, 8));
    CHECK((engine->stats().accepted_drafts > 0) == (max_logit_rows > 3));
  }
}

TEST_CASE("nobody is pushed out for a guess, and wrong ones leave no block behind") {
  // 10 blocks of 2: two requests that need 5 each at their longest.
  FakeEngine engine({.num_blocks = 10, .block_size = 2, .prefix_cache = false, .drafts = options});
  engine.model.habit = habit;
  for (const int first : {3, 4}) engine->submit(prompt_of(3, first), {.max_tokens = 8});
  while (!engine->is_idle()) {
    engine->step();
    for (const int id : {0, 1})
      for (const Branch& branch : engine->request(id).branches) {
        CHECK(branch.kv.num_drafts() == 0);
        CHECK(branch.kv.size() <= std::ssize(branch.tokens));
        CHECK(std::ssize(branch.kv.blocks()) == pagedkv::ceil_div(branch.kv.size(), 2));
      }
  }
  CHECK(engine->stats().num_preemptions == 0);
  CHECK(engine->stats().drafted_tokens > 0);
  CHECK(engine->blocks().num_free() == 10);
}

TEST_CASE("no guess goes behind the last token that was asked for, nor behind the last position") {
  for (const int max_tokens : {3, 1000}) {
    FakeEngine engine({.num_blocks = 200, .block_size = 1, .drafts = options});
    engine.model.habit = 20;
    const Tokens prompt = prompt_of(max_positions - 25);
    const int id = engine->submit(prompt, {.max_tokens = max_tokens});
    engine->run();
    const int length = std::min(max_tokens, 25);
    CHECK(engine.generated(id) == expected_of(prompt, {.max_tokens = length}, 0, false, 20));
    for (const auto& pass : engine.model.passes()) CHECK(pass.kv_len[0] <= max_positions - 25 + length - 1);
    CHECK((max_tokens == 3 || engine->stats().accepted_drafts > 0));
  }
}

TEST_CASE("drafts that make no sense are refused by name") {
  const auto refusal = [](const DraftOptions& drafts) -> std::string {
    try {
      FakeEngine engine({.drafts = drafts});
    } catch (const BadInput& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK(refusal({.max_drafts = -1}) == "drafts: at least 0 expected, -1 found");
  CHECK(refusal({.max_drafts = 1, .min_ngram = 0}).starts_with("n-grams of drafts: 1 or longer"));
  CHECK(refusal({.max_drafts = 1, .min_ngram = 4, .max_ngram = 3}).ends_with("4 to 3 found"));
  CHECK(refusal(options) == "accepted");
}
