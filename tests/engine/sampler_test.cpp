// The sampler alone: its generator, its rules one by one, and the distribution that it draws from.
#include "engine/sampler.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/philox.hpp"

using namespace engine;
using Logits = std::vector<float>;
using Tokens = std::vector<std::int32_t>;

namespace {

// How often each token is drawn: one draw for each position of a long text.
std::map<std::int32_t, int> counts(const Logits& logits, SamplingParams params, int num_draws = 4000) {
  Sampler sampler;
  std::map<std::int32_t, int> count;
  Tokens history;
  for (int i = 0; i < num_draws; ++i) {
    ++count[sampler.choose(logits, {history}, params, 0).token];
    history.push_back(0);
  }
  return count;
}

Logits logits_of(const std::vector<double>& probabilities) {
  Logits logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3));
  return logits;
}

std::int32_t choose(const Logits& logits, const Tokens& history, const SamplingParams& params, int sample = 0) {
  return Sampler{}.choose(logits, {history}, params, sample).token;
}

std::string refusal(const SamplingParams& params) {
  try {
    params.validate();
  } catch (const BadInput& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("Philox gives the published words for the published counters and keys") {
  // The known answers that the authors ship with their paper (Random123, philox 4x32 with 10 rounds).
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform numbers lie in [0, 1), spread evenly, and differ by seed, sample and position") {
  std::array<int, 10> buckets{};
  for (std::uint32_t position = 0; position < 10000; ++position) {
    const double x = uniform(3, 1, position);
    REQUIRE((x >= 0 && x < 1));
    ++buckets[static_cast<std::size_t>(x * 10)];
  }
  for (const int count : buckets) CHECK(std::abs(count - 1000) < 150);
  CHECK(uniform(3, 1, 5) == uniform(3, 1, 5));
  CHECK(uniform(3, 1, 5) != uniform(4, 1, 5));
  CHECK(uniform(3, 1, 5) != uniform(3 + (std::uint64_t{1} << 40), 1, 5));
  CHECK(uniform(3, 1, 5) != uniform(3, 2, 5));
  CHECK(uniform(3, 1, 5) != uniform(3, 1, 6));
  CHECK(uniform(3, 1, 2) != uniform(3, 2, 1));
}

TEST_CASE("temperature 0 takes the likeliest token, the lower id of equals, and reports its logarithm") {
  CHECK(choose({1, 3, 2}, {}, {}) == 1);
  CHECK(choose({1, 3, 3}, {}, {}) == 1);
  CHECK(choose({-5, -7, -5}, {}, {}) == 0);
  const auto choice = Sampler{}.choose(logits_of({0.25, 0.75}), Context{}, {}, 0);
  CHECK(choice.logprob == doctest::Approx(std::log(0.75)).epsilon(1e-6));
}

TEST_CASE("frequencies follow the probabilities, and temperature bends them") {
  const Logits logits = logits_of({0.5, 0.3, 0.15, 0.05});
  auto count = counts(logits, {.temperature = 1});
  for (const auto& [token, p] : std::map<int, double>{{0, 0.5}, {1, 0.3}, {2, 0.15}, {3, 0.05}})
    CHECK(std::abs(count[token] / 4000.0 - p) < 0.03);
  count = counts(logits, {.temperature = 0.5f});  // p^2, normalised
  CHECK(std::abs(count[0] / 4000.0 - 0.25 / 0.365) < 0.03);
  CHECK(std::abs(count[1] / 4000.0 - 0.09 / 0.365) < 0.03);
  count = counts(logits, {.temperature = 1e6f});
  for (int token = 0; token < 4; ++token) CHECK(std::abs(count[token] / 4000.0 - 0.25) < 0.03);
  count = counts(logits, {.temperature = 1e-6f});
  CHECK(count == std::map<std::int32_t, int>{{0, 4000}});
}

TEST_CASE("top-k keeps the k likeliest; 0 and more than there are keep all") {
  const Logits logits = logits_of({0.1, 0.4, 0.2, 0.3});
  auto count = counts(logits, {.temperature = 1, .top_k = 2});
  CHECK(count.size() == 2);
  CHECK(std::abs(count[1] / 4000.0 - 4.0 / 7) < 0.03);
  CHECK(std::abs(count[3] / 4000.0 - 3.0 / 7) < 0.03);
  CHECK(counts(logits, {.temperature = 1, .top_k = 1}).size() == 1);
  CHECK(counts(logits, {.temperature = 1, .top_k = 0}).size() == 4);
  CHECK(counts(logits, {.temperature = 1, .top_k = 1000}).size() == 4);
}

TEST_CASE("top-p keeps the smallest set that holds the probability, the crossing token included, at least one") {
  const Logits logits = logits_of({0.1, 0.4, 0.2, 0.3});
  CHECK(counts(logits, {.temperature = 1, .top_p = 0.65f}).size() == 2);
  CHECK(counts(logits, {.temperature = 1, .top_p = 0.75f}).size() == 3);
  CHECK(counts(logits, {.temperature = 1, .top_p = 1e-9f}) == std::map<std::int32_t, int>{{1, 4000}});
  CHECK(counts(logits, {.temperature = 1, .top_p = 1}).size() == 4);
}

TEST_CASE("min-p drops what is less likely than its share of the likeliest; 1 keeps the likeliest") {
  const Logits logits = logits_of({0.1, 0.4, 0.2, 0.3});
  CHECK(counts(logits, {.temperature = 1, .min_p = 0.4f}).size() == 3);
  CHECK(counts(logits, {.temperature = 1, .min_p = 0.6f}).size() == 2);
  CHECK(counts(logits, {.temperature = 1, .min_p = 1}) == std::map<std::int32_t, int>{{1, 4000}});
}

TEST_CASE("the repetition penalty makes each token seen before less likely, once, whatever its sign") {
  CHECK(choose({2, 3, 1}, {1}, {.repetition_penalty = 2}) == 0);
  CHECK(choose({2, 3, 1}, {1, 1, 1}, {.repetition_penalty = 1.4f}) == 1);  // 3 / 1.4 > 2, but 3 / 1.4^3 < 2
  CHECK(choose({-2, -1.5f, -4}, {1}, {.repetition_penalty = 2}) == 0);
  CHECK(choose({2, 3, 1}, {1, 0}, {.repetition_penalty = 4}) == 2);
  CHECK(choose({2, 3, 1}, {2}, {.repetition_penalty = 0.25f}) == 2);  // below 1 it favours repetition
}

TEST_CASE("frequency and presence penalties look at the text alone, and count") {
  const auto choose_behind = [](const Tokens& tokens, int prompt_len, const SamplingParams& params) {
    return Sampler{}.choose(Logits{2, 3, 2.5f}, {tokens, prompt_len}, params, 0).token;
  };
  CHECK(choose_behind({1, 1}, 2, {.presence_penalty = 1}) == 1);  // only the prompt has it
  CHECK(choose_behind({0, 1}, 1, {.presence_penalty = 1}) == 2);
  CHECK(choose_behind({0, 1, 1}, 1, {.presence_penalty = 0.4f}) == 1);  // once, however often it came
  CHECK(choose_behind({0, 1, 1}, 1, {.frequency_penalty = 0.4f}) == 2);
  CHECK(choose_behind({0, 1}, 1, {.frequency_penalty = 0.4f}) == 1);
  CHECK(choose_behind({0, 0}, 1, {.presence_penalty = -2}) == 0);
  // The repetition penalty looks at the prompt, too, and comes first: 3 / 1.5 - 0.4 < 2.5 / 1.5 < (3 - 0.4) / 1.5.
  CHECK(choose_behind({0, 1, 2, 1}, 3, {.repetition_penalty = 1.5f, .presence_penalty = 0.4f}) == 2);
  // Nothing is left over for the next call.
  Sampler used;
  const Tokens tokens{0, 1, 1};
  for (int i = 0; i < 3; ++i)
    CHECK(used.choose(Logits{2, 3, 2.5f}, {tokens, 1}, {.frequency_penalty = 0.4f}, 0).token == 2);
}

TEST_CASE("a bias is added before the penalties; logarithms are those of the model's own distribution") {
  CHECK(choose({1, 3, 2}, {}, {.logit_bias = {{0, 2.5f}}}) == 0);
  CHECK(choose({1, 3, 2}, {}, {.logit_bias = {{1, -1e6f}}}) == 2);
  CHECK(choose({1, 3, 2}, {}, {.logit_bias = {{0, 1.f}, {0, 1.5f}}}) == 0);
  // (1 + 3) / 2 < 3, but 1 / 2 + 3 would not be.
  CHECK(choose({1, 3, 2}, {0}, {.repetition_penalty = 2, .logit_bias = {{0, 3.f}}}) == 1);
  const Logits logits = logits_of({0.25, 0.75});
  const Choice choice = Sampler{}.choose(logits, Context{}, {.logit_bias = {{0, 9.f}}}, 0);
  CHECK(choice.token == 0);
  CHECK(choice.logprob == doctest::Approx(std::log(0.25)).epsilon(1e-6));
}

TEST_CASE("no token that ends a text comes before min_tokens others, whatever its probability") {
  const Tokens ends{1, 2}, prompt{0, 0}, text{0, 0, 0};
  const SamplingParams params{.min_tokens = 1};
  CHECK(Sampler{}.choose(Logits{1, 5, 9}, {prompt, 2, ends}, params, 0).token == 0);
  CHECK(Sampler{}.choose(Logits{1, 5, 9}, {text, 2, ends}, params, 0).token == 2);
  for (int position = 2; position < 200; ++position) {
    const Tokens tokens(static_cast<std::size_t>(position));
    const SamplingParams drawn{.max_tokens = 1000, .min_tokens = 500, .temperature = 1};
    CHECK(Sampler{}.choose(Logits{1, 5, 9}, {tokens, 2, ends}, drawn, 0).token == 0);
  }
}

TEST_CASE("a draw that sorts only what it looks at is the draw from the sorted distribution") {
  Logits logits(3000);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7919) % 3001) * 0.002f;
  std::vector<std::pair<double, std::int32_t>> sorted;
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sorted.emplace_back(-std::exp(static_cast<double>(logits[i])), static_cast<std::int32_t>(i));
    total -= sorted.back().first;
  }
  std::sort(sorted.begin(), sorted.end());
  Sampler sampler;
  for (int position = 0; position < 500; ++position) {
    double rest = total * uniform(5, 2, static_cast<std::uint32_t>(position));
    std::size_t i = 0;
    for (; rest + sorted[i].first >= 0; ++i) rest += sorted[i].first;
    CHECK(sampler.choose(logits, {.temperature = 1, .seed = 5}, 2, position).token == sorted[i].second);
  }
}

TEST_CASE("a choice depends on seed, sample and position, not on earlier calls") {
  const Logits flat(1000, 0.f);
  const SamplingParams params{.temperature = 1, .seed = 11};
  Sampler used;
  for (int i = 0; i < 10; ++i) used.choose(flat, params, 3, i);
  CHECK(used.choose(flat, params, 1, 2).token == choose(flat, {9, 9}, params, 1));
  CHECK(choose(flat, {4, 4}, params, 1) != choose(flat, {4, 4}, params, 2));
  CHECK(choose(flat, {4, 4}, params, 1) != choose(flat, {4, 4, 4}, params, 1));
  CHECK(choose(flat, {4, 4}, {.temperature = 1, .seed = 12}, 1) != choose(flat, {4, 4}, params, 1));
}

TEST_CASE("logits of minus infinity and huge ones do no harm") {
  const float inf = INFINITY;
  CHECK(counts({-inf, 0, -inf}, {.temperature = 1}) == std::map<std::int32_t, int>{{1, 4000}});
  CHECK(counts({1e30f, 0, -1e30f}, {.temperature = 0.1f}) == std::map<std::int32_t, int>{{0, 4000}});
  // A penalty may push a logit beyond the range of float.
  CHECK(choose({1, 2, 3e4f, 4}, {2}, {.temperature = 1, .repetition_penalty = 1e-38f}) == 2);
}

TEST_CASE("logits that are no numbers are an error, not a text") {
  for (const float bad : {NAN, INFINITY})
    for (const float temperature : {0.f, 1.f})
      CHECK_THROWS_WITH_AS(choose({1, 2, bad, 4}, {}, {.temperature = temperature}),
                           "logits of the model: finite numbers expected, not a number found", BadInput);
  CHECK_THROWS_AS(choose({-INFINITY, -INFINITY}, {}, {}), BadInput);
}

TEST_CASE("parameters out of range are refused by name, with the range and the value") {
  CHECK(refusal({}) == "accepted");
  CHECK(refusal({.max_tokens = 0}) == "max-tokens: at least 1 expected, 0 found");
  CHECK(refusal({.n = 0}) == "n: at least 1 expected, 0 found");
  CHECK(refusal({.beam_width = -1}) == "beam: at least 0 expected, -1 found");
  CHECK(refusal({.n = 2, .beam_width = 2}) == "n: 1 with beam search expected, 2 found");
  CHECK(refusal({.temperature = -0.5f}).starts_with("temperature: 0 to 1e6 expected, -0.5"));
  CHECK(refusal({.temperature = NAN}).starts_with("temperature: 0 to 1e6 expected"));
  CHECK(refusal({.temperature = INFINITY}).starts_with("temperature: 0 to 1e6 expected"));
  CHECK(refusal({.top_k = -2}) == "top-k: at least 0 expected, -2 found");
  CHECK(refusal({.top_p = 0}).starts_with("top-p: above 0 and at most 1 expected"));
  CHECK(refusal({.top_p = 1.5f}).starts_with("top-p: above 0 and at most 1 expected, 1.5"));
  CHECK(refusal({.min_p = -1}).starts_with("min-p: 0 to 1 expected"));
  CHECK(refusal({.repetition_penalty = 0}).starts_with("repetition-penalty: above 0"));
  CHECK(refusal({.presence_penalty = NAN}).starts_with("presence-penalty: -1e6 to 1e6 expected"));
  CHECK(refusal({.frequency_penalty = INFINITY}).starts_with("frequency-penalty: -1e6 to 1e6 expected"));
  CHECK(refusal({.logit_bias = {{3, 1.f}, {4, NAN}}}).starts_with("logit-bias: -1e6 to 1e6 expected"));
  CHECK(refusal({.min_tokens = -1}) == "min-tokens: at least 0 expected, -1 found");
  CHECK(refusal({.max_tokens = 4, .min_tokens = 5}) == "min-tokens: at most max-tokens expected, 5 found");
  CHECK(refusal({.top_logprobs = 1001}) == "top-logprobs: -1 to 1000 expected, 1001 found");
  CHECK(refusal({.beam_width = 2, .presence_penalty = 1}).starts_with("beam: 0 with penalties"));
  CHECK(refusal({.beam_width = 2, .top_logprobs = 1}).starts_with("beam: 0 with penalties"));
}
