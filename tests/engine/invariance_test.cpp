// The same greedy tokens however the work is cut: block size, chunks, cache, preemption, order of arrival, siblings.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "support/austen.hpp"
#include "support/fake_model.hpp"

using namespace engine;
using namespace pagedkv_test;
using Tokens = std::vector<std::int32_t>;

namespace {

enum class Order { as_listed, reversed, one_by_one };

struct Case {
  int block_size;
  int max_batched_tokens;  // 7 and 64 cut prompts into chunks; 512 takes the longest of 303 tokens whole
  bool prefix_cache;
  bool small_pool;  // so small that requests push each other out
  Order order;
  int n;
};

constexpr int max_tokens = 20;

// Few enough blocks that the longest request fits alone, with little beside it.
int small_pool(const std::vector<Tokens>& prompts, int block_size, int n) {
  std::int64_t needed = 0;
  for (const Tokens& prompt : prompts)
    needed = std::max(
        needed, Request::max_blocks(static_cast<int>(prompt.size()), {.max_tokens = max_tokens, .n = n}, block_size));
  return static_cast<int>(needed);
}

std::vector<Case> product() {
  std::vector<Case> cases;
  for (const int block_size : {1, 8, 16, 64})
    for (const int max_batched_tokens : {512, 7, 64})
      for (const bool prefix_cache : {true, false})
        for (const bool small : {false, true})
          for (const Order order : {Order::as_listed, Order::reversed, Order::one_by_one})
            for (const int n : {1, 2, 3})
              cases.push_back({block_size, max_batched_tokens, prefix_cache, small, order, n});
  return cases;
}

// The whole product, some 100 s for the real model; a sanitizer build takes six cases of different block sizes and chunks.
std::vector<Case> product_for_the_real_model() {
  const std::vector<Case> all = product();
  if (!has_sanitizer) return all;
  std::vector<Case> cases;
  for (std::size_t i = 0; i < all.size(); i += 5 * 36)  // 36 cases have one block size and chunk
    for (const std::size_t k : {i / 36 * 5 % 18, 18 + i / 36 * 7 % 18}) cases.push_back(all[i + k]);
  return cases;
}

std::string name_of(const Case& c) {
  return "block size " + std::to_string(c.block_size) + ", " + std::to_string(c.max_batched_tokens) +
         " tokens a step, prefix cache " + std::to_string(c.prefix_cache) + ", small pool " +
         std::to_string(c.small_pool) + ", order " + std::to_string(static_cast<int>(c.order)) + ", n " +
         std::to_string(c.n);
}

// What the table must have exercised to mean anything.
struct Exercised {
  std::int64_t num_preemptions = 0;
  std::int64_t num_cached = 0;
};

// Generates from all prompts, and once more from the last one, so that there is something to find in the cache.
void check_case(const Case& c, Engine& engine, const std::vector<Tokens>& prompts, const std::vector<Tokens>& expected,
                Exercised& exercised) {
  CAPTURE(name_of(c));
  std::vector<std::size_t> order(prompts.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = c.order == Order::reversed ? order.size() - 1 - i : i;
  order.push_back(prompts.size() - 1);
  std::vector<int> ids;
  for (const std::size_t i : order) {
    ids.push_back(engine.submit(prompts[i], {.max_tokens = max_tokens, .n = c.n}));
    if (c.order == Order::one_by_one) engine.run();
  }
  engine.run();
  engine.check_integrity();
  for (std::size_t k = 0; k < ids.size(); ++k)
    for (const Branch& branch : engine.request(ids[k]).branches) {
      const Tokens generated(branch.tokens.begin() + std::ssize(prompts[order[k]]), branch.tokens.end());
      CHECK(generated == expected[order[k]]);
    }
  if (!c.prefix_cache) CHECK(engine.stats().cached_tokens == 0);
  exercised.num_preemptions += engine.stats().num_preemptions;
  exercised.num_cached += engine.stats().cached_tokens;
}

EngineOptions options_of(const Case& c, const std::vector<Tokens>& prompts) {
  return {.num_blocks = c.small_pool ? small_pool(prompts, c.block_size, c.n) : 4096 / c.block_size,
          .block_size = c.block_size,
          .prefix_cache = c.prefix_cache,
          .scheduler = {.max_batched_tokens = c.max_batched_tokens, .max_seqs = 16}};
}

}  // namespace

TEST_CASE("greedy tokens do not depend on block size, chunks, prefix cache, preemption, arrival order or siblings") {
  std::vector<Tokens> prompts, expected;
  const auto cases = golden("greedy.json")["cases"];
  for (const auto& c : cases) {
    prompts.push_back(c["prompt_ids"]);
    expected.push_back(c["greedy_ids"]);
    expected.back().resize(std::min<std::size_t>(expected.back().size(), max_tokens));
  }
  Exercised exercised;
  for (const Case& c : product_for_the_real_model()) {
    AustenEngine engine(options_of(c, prompts));
    check_case(c, *engine, prompts, expected, exercised);
  }
  if (has_sanitizer) return;
  CHECK(exercised.num_preemptions >= 5);
  CHECK(exercised.num_cached >= 300);
}

TEST_CASE("the same product reads back its own context, token by token") {
  constexpr int vocab = 200;
  ModelConfig config;
  config.vocab = vocab;
  config.max_positions = 256;
  std::vector<Tokens> prompts, expected;
  for (const std::size_t length : {15u, 1u, 130u, 64u, 33u, 100u}) {
    Tokens& prompt = prompts.emplace_back(length);
    for (std::size_t i = 0; i < length; ++i) prompt[i] = static_cast<std::int32_t>((i * i + length % 2) % vocab);
    expected.push_back(FakeModel::continuation(prompt, max_tokens, vocab, -1));
  }
  Exercised exercised;
  for (const Case& c : product()) {
    const EngineOptions options = options_of(c, prompts);
    FakeModel model(vocab, options.num_blocks, options.block_size);
    Engine engine(config, model, options);
    check_case(c, engine, prompts, expected, exercised);
  }
  CHECK(exercised.num_preemptions >= 200);
  CHECK(exercised.num_cached >= 10000);
}

TEST_CASE("sampled tokens depend on the seed, the sample and the position alone") {
  const auto golden_cases = golden("greedy.json")["cases"];
  const SamplingParams params{
      .max_tokens = has_sanitizer ? 4 : 24, .n = 3, .temperature = 0.9f, .top_k = 50, .top_p = 0.95f, .seed = 7};
  std::vector<std::vector<Tokens>> expected;
  for (const auto& [num_blocks, block_size, budget] :
       {std::array{256, 16, 512}, std::array{34, 16, 64}, std::array{460, 1, 7}}) {
    AustenEngine engine(
        {.num_blocks = num_blocks, .block_size = block_size, .scheduler = {.max_batched_tokens = budget}});
    std::vector<int> ids;
    for (const auto& c : golden_cases) ids.push_back(engine->submit(c["prompt_ids"], params));
    engine->run();
    engine->check_integrity();
    std::vector<std::vector<Tokens>> texts;
    for (const int id : ids)
      texts.push_back({engine.generated(id, 0), engine.generated(id, 1), engine.generated(id, 2)});
    if (expected.empty()) expected = texts;
    CHECK(texts == expected);
    CHECK((has_sanitizer || texts[1][0] != texts[1][1]));
  }
}
