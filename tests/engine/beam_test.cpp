// Beam search alone, against exhaustive search over a small vocabulary.
#include "engine/beam.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/fake_model.hpp"

using namespace engine;
using pagedkv_test::FakeModel;
using Tokens = std::vector<std::int32_t>;

namespace {

constexpr int vocab = 6, eos = 1;

// Runs a search behind `prompt` and returns it, over.
BeamSearch search(const Tokens& prompt, int width, int max_tokens) {
  BeamSearch beams(width, max_tokens, std::array{eos});
  while (!beams.is_over()) {
    std::vector<std::vector<float>> logits;
    for (const auto& hypothesis : beams.running()) {
      Tokens context = prompt;
      context.insert(context.end(), hypothesis.tokens.begin(), hypothesis.tokens.end());
      logits.push_back(FakeModel::logits_of(context, vocab));
    }
    std::vector<std::span<const float>> rows(logits.begin(), logits.end());
    const auto parents = std::vector<BeamSearch::Hypothesis>(beams.running().begin(), beams.running().end());
    const auto choices = beams.advance(rows);
    for (std::size_t i = 0; i < choices.size(); ++i) {
      Tokens expected = parents[static_cast<std::size_t>(choices[i].parent)].tokens;
      expected.push_back(choices[i].token);
      CHECK(beams.running()[i].tokens == expected);
    }
  }
  return beams;
}

// Every text of at most `max_tokens` tokens that ends there or with the closing token, best score first.
void all_texts(const Tokens& prompt, const Tokens& text, double sum, int max_tokens,
               std::vector<std::pair<double, Tokens>>& out) {
  if (!text.empty() && (text.back() == eos || std::ssize(text) == max_tokens)) {
    out.emplace_back(sum / static_cast<double>(text.size()), text);
    return;
  }
  Tokens context = prompt;
  context.insert(context.end(), text.begin(), text.end());
  const auto logits = FakeModel::logits_of(context, vocab);
  for (std::int32_t token = 0; token < vocab; ++token) {
    Tokens longer = text;
    longer.push_back(token);
    all_texts(prompt, longer, sum + logits[static_cast<std::size_t>(token)] - log_sum_exp(logits), max_tokens, out);
  }
}

}  // namespace

TEST_CASE("log_sum_exp does not overflow and ignores minus infinity") {
  CHECK(log_sum_exp(std::vector{0.f, 0.f}) == doctest::Approx(std::log(2.0)));
  CHECK(log_sum_exp(std::vector{1000.f, 1000.f}) == doctest::Approx(1000 + std::log(2.0)));
  CHECK(log_sum_exp(std::vector{-INFINITY, 3.f}) == doctest::Approx(3));
  CHECK_THROWS_AS(log_sum_exp(std::vector{1.f, NAN, 3.f}), BadInput);
  CHECK_THROWS_AS(log_sum_exp(std::vector{1.f, INFINITY}), BadInput);
}

TEST_CASE("a beam as wide as the tree finds what exhaustive search finds") {
  for (int seed = 0; seed < 20; ++seed) {
    const Tokens prompt{seed};
    std::vector<std::pair<double, Tokens>> texts;
    all_texts(prompt, {}, 0, 3, texts);
    std::sort(texts.begin(), texts.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    const BeamSearch beams = search(prompt, 150, 3);  // 1 + 5 + 25 * 6 = 156 texts
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(beams.finished()[i].tokens == texts[i].second);
      CHECK(beams.finished()[i].score == doctest::Approx(texts[i].first));
    }
  }
}

TEST_CASE("a beam of width 1 is greedy search where greedy search does not close the text") {
  for (int seed = 0; seed < 50; ++seed) {
    const Tokens prompt{seed, 3};
    const Tokens greedy = FakeModel::continuation(prompt, 8, vocab, eos);
    const BeamSearch beams = search(prompt, 1, 8);
    REQUIRE(beams.finished().size() == 1);
    if (greedy.back() != eos) CHECK(beams.finished()[0].tokens == greedy);
  }
}

TEST_CASE("finished hypotheses are sorted, as many as the width, and end with the closing token or at the limit") {
  for (int seed = 0; seed < 50; ++seed) {
    const BeamSearch beams = search({seed}, 4, 6);
    REQUIRE(beams.finished().size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
      const auto& hypothesis = beams.finished()[i];
      CHECK((hypothesis.tokens.back() == eos) == hypothesis.ends_with_eos);
      CHECK((hypothesis.ends_with_eos || hypothesis.tokens.size() == 6));
      CHECK(hypothesis.score == hypothesis.sum_logprob / static_cast<double>(hypothesis.tokens.size()));
      if (i > 0) CHECK(hypothesis.score <= beams.finished()[i - 1].score);
    }
  }
}
