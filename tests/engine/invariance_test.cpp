// The same tokens however the work is cut and whatever happens on the way: the invariance table.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "support/austen.hpp"
#include "support/fake_model.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;
using Tokens = std::vector<std::int32_t>;

namespace {

// A row of the table: which of its values each setting has.
constexpr std::array block_sizes{16, 1, 8, 64};
constexpr std::array budgets{512, 7, 64};    // 7 and 64 cut prompts into chunks; 512 takes the longest, of 303, whole
enum class Pool { roomy, recompute, swap };  // the latter two so small that requests push each other out
enum class Order { as_listed, reversed, one_by_one };
constexpr std::array<int, 9> num_values{4, 3, 2, 3, 2, 2, 3, 3, 2};

struct Case {
  std::array<int, 9> values{};

  int block_size() const { return block_sizes[static_cast<std::size_t>(values[0])]; }
  int max_batched_tokens() const { return budgets[static_cast<std::size_t>(values[1])]; }
  bool prefix_cache() const { return values[2] == 0; }
  Pool pool() const { return static_cast<Pool>(values[3]); }
  bool run_ahead() const { return values[4] == 1; }
  int max_drafts() const { return 3 * values[5]; }
  Order order() const { return static_cast<Order>(values[6]); }
  int n() const { return 1 + values[7]; }
  bool is_greedy() const { return values[8] == 0; }

  std::string name() const {
    std::string name = "block size, tokens a step, no prefix cache, pool, running ahead, drafts, order, n, sampled:";
    for (const int value : values) name += " " + std::to_string(value);
    return name;
  }
};

// Every `stride`-th row of the whole table of 10,368.
std::vector<Case> product(int stride) {
  std::vector<Case> cases;
  int num_rows = 1;
  for (const int count : num_values) num_rows *= count;
  for (int row = 0; row < num_rows; row += stride) {
    Case& c = cases.emplace_back();
    for (std::size_t i = 0, rest = static_cast<std::size_t>(row); i < num_values.size(); ++i) {
      c.values[i] = static_cast<int>(rest) % num_values[i];
      rest /= static_cast<std::size_t>(num_values[i]);
    }
  }
  return cases;
}

// Few rows, in one of which any two values of any two settings meet.
std::vector<Case> pairwise() {
  using Pair = std::tuple<std::size_t, int, std::size_t, int>;
  const auto pairs_of = [](const Case& c) {
    std::vector<Pair> pairs;
    for (std::size_t i = 0; i < num_values.size(); ++i)
      for (std::size_t k = i + 1; k < num_values.size(); ++k) pairs.emplace_back(i, c.values[i], k, c.values[k]);
    return pairs;
  };
  std::set<Pair> missing;
  for (const Case& c : product(1))
    for (const Pair& pair : pairs_of(c)) missing.insert(pair);
  std::vector<Case> cases;
  for (Random random(1); !missing.empty();) {  // the best of some random rows
    Case best;
    std::ptrdiff_t most = 0;
    for (int i = 0; i < 200; ++i) {
      Case c;
      for (std::size_t k = 0; k < num_values.size(); ++k) c.values[k] = random.between(0, num_values[k] - 1);
      const auto pairs = pairs_of(c);
      const auto count = std::count_if(pairs.begin(), pairs.end(), [&](const Pair& p) { return missing.contains(p); });
      if (count > most) best = c;
      most = std::max(most, count);
    }
    if (most == 0) continue;
    for (const Pair& pair : pairs_of(best)) missing.erase(pair);
    cases.push_back(best);
  }
  return cases;
}

SamplingParams params_of(const Case& c, int max_tokens) {
  SamplingParams params{.max_tokens = max_tokens, .n = c.n(), .seed = 7};
  if (!c.is_greedy()) params.temperature = 0.9f, params.top_k = 50, params.top_p = 0.95f;
  return params;
}

EngineOptions options_of(const Case& c, const std::vector<Tokens>& prompts, int max_tokens) {
  std::int64_t needed = 0;  // few enough blocks that the longest request fits alone, with little beside it
  for (const Tokens& prompt : prompts)
    needed = std::max(needed,
                      Request::max_blocks(static_cast<int>(prompt.size()), params_of(c, max_tokens), c.block_size()));
  const int num_blocks = c.pool() == Pool::roomy ? 4096 / c.block_size() : static_cast<int>(needed);
  return {.num_blocks = num_blocks,
          .block_size = c.block_size(),
          .prefix_cache = c.prefix_cache(),
          .run_ahead = c.run_ahead(),
          .scheduler = {.max_batched_tokens = c.max_batched_tokens(),
                        .max_seqs = 16,
                        .preemption = c.pool() == Pool::swap ? Preemption::swap : Preemption::recompute},
          .num_host_blocks = c.pool() == Pool::swap ? 2 * num_blocks : 0,
          .drafts = {.max_drafts = c.max_drafts(), .min_ngram = 1, .max_ngram = 3}};
}

// What the table must have exercised to mean anything.
struct Exercised {
  std::int64_t recomputed = 0, swapped = 0, cached = 0, accepted = 0;
};

// expected[prompt][sample].
using Texts = std::vector<std::vector<Tokens>>;

// Generates from all prompts, and once more from the last one, so that there is something to find in the cache.
void check_case(const Case& c, Engine& engine, const std::vector<Tokens>& prompts, int max_tokens,
                const Texts& expected, Exercised& exercised) {
  CAPTURE(c.name());
  std::vector<std::size_t> order(prompts.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = c.order() == Order::reversed ? order.size() - 1 - i : i;
  order.push_back(prompts.size() - 1);
  std::vector<int> ids;
  for (const std::size_t i : order) {
    ids.push_back(engine.submit(prompts[i], params_of(c, max_tokens)));
    if (c.order() == Order::one_by_one) engine.run();
  }
  engine.run();
  CHECK_NOTHROW(engine.check_integrity());
  CHECK(engine.blocks().num_used() == 0);
  CHECK(engine.swap_space().num_free() == engine.swap_space().num_blocks());
  for (std::size_t k = 0; k < ids.size(); ++k)
    for (const Branch& branch : engine.request(ids[k]).branches) {
      const Tokens generated(branch.tokens.begin() + std::ssize(prompts[order[k]]), branch.tokens.end());
      CHECK(generated == expected[order[k]][static_cast<std::size_t>(branch.index)]);
    }
  const EngineStats& stats = engine.stats();
  if (!c.prefix_cache()) CHECK(stats.cached_tokens == 0);
  exercised.recomputed += stats.num_preemptions - stats.num_swaps;
  exercised.swapped += stats.num_swaps;
  exercised.cached += stats.cached_tokens;
  exercised.accepted += stats.accepted_drafts;
}

}  // namespace

TEST_CASE("the embedded model's tokens, greedy and sampled, are the same in every row of the table") {
  constexpr int max_tokens = has_sanitizer ? 6 : 20;
  std::vector<Tokens> prompts;
  Texts greedy, sampled;
  const auto cases = golden("greedy.json")["cases"];
  for (const auto& c : cases) {
    prompts.push_back(c["prompt_ids"]);
    Tokens text = c["greedy_ids"];
    text.resize(std::min<std::size_t>(text.size(), max_tokens));
    greedy.push_back({text, text, text});
  }
  Case simplest{};
  simplest.values.back() = 1;
  simplest.values[7] = 2;
  AustenEngine simple(options_of(simplest, prompts, max_tokens));
  for (const Tokens& prompt : prompts) {
    const int id = simple->submit(prompt, params_of(simplest, max_tokens));
    simple->run();
    sampled.push_back({simple.generated(id, 0), simple.generated(id, 1), simple.generated(id, 2)});
  }
  CHECK(sampled[1][0] != sampled[1][1]);

  Exercised exercised;
  std::vector<Case> rows = pairwise();
  CHECK(rows.size() <= 40);
  if (has_sanitizer) rows.resize(5);
  for (const Case& c : rows) {
    AustenEngine engine(options_of(c, prompts, max_tokens));
    check_case(c, *engine, prompts, max_tokens, c.is_greedy() ? greedy : sampled, exercised);
  }
  if (has_sanitizer) return;
  CHECK(exercised.recomputed >= 5);
  CHECK(exercised.swapped >= 5);
  CHECK(exercised.cached >= 300);
  CHECK(exercised.accepted >= 5);
}

TEST_CASE("a model that reads back its own context, token by token, says the same of a part of the whole table") {
  constexpr int vocab = 200, max_tokens = 20;
  constexpr float habit = 6;
  ModelConfig config;
  config.vocab = vocab;
  config.max_positions = 256;
  std::vector<Tokens> prompts;
  Texts greedy, sampled;
  Case one{};
  const SamplingParams greedy_params = params_of(one, max_tokens);
  one.values.back() = 1;
  const SamplingParams sampled_params = params_of(one, max_tokens);
  Sampler sampler;
  for (const std::size_t length : {15u, 1u, 130u, 64u, 33u, 100u}) {
    Tokens& prompt = prompts.emplace_back(length);
    for (std::size_t i = 0; i < length; ++i) prompt[i] = static_cast<std::int32_t>((i * i + length % 2) % vocab);
    const auto text = [&](const SamplingParams& params, int sample) {
      Tokens tokens = prompt;
      while (tokens.size() < length + max_tokens) {
        const auto logits = FakeModel::logits_of(tokens, vocab, habit);
        tokens.push_back(sampler.choose(logits, params, sample, static_cast<int>(tokens.size())).token);
      }
      return Tokens(tokens.begin() + static_cast<std::ptrdiff_t>(length), tokens.end());
    };
    greedy.push_back({text(greedy_params, 0), text(greedy_params, 1), text(greedy_params, 2)});
    sampled.push_back({text(sampled_params, 0), text(sampled_params, 1), text(sampled_params, 2)});
  }
  Exercised exercised;
  for (const Case& c : product(has_sanitizer ? 29 : 11)) {
    const EngineOptions options = options_of(c, prompts, max_tokens);
    FakeModel model(vocab, options.num_blocks, options.block_size, options.num_host_blocks);
    model.habit = habit;
    Engine engine(config, model, options);
    check_case(c, engine, prompts, max_tokens, c.is_greedy() ? greedy : sampled, exercised);
  }
  CHECK(exercised.recomputed >= 100);
  CHECK(exercised.swapped >= 100);
  CHECK(exercised.cached >= 10000);
  CHECK(exercised.accepted >= 100);
}
