// Parity of the CPU engine in float32 with transformers, on every recorded case of the embedded model.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/backend_cpu.hpp"
#include "engine/beam.hpp"
#include "engine/model.hpp"
#include "support/austen.hpp"
#include "support/sequence_logits.hpp"

using namespace engine;
using namespace pagedkv_test;
using Tokens = std::vector<std::int32_t>;

namespace {

struct ModelRun {
  engine::ModelOptions options = one_sequence_options(256);
  Model<CpuBackend> model{austen_config(), austen_weights(), options};

  template <class Probe>
  std::vector<float> forward(const Tokens& tokens, Probe&& probe) {
    return sequence_logits(tokens, options, [&](const Batch& batch) { return model.forward(batch, probe); });
  }
  std::vector<float> forward(const Tokens& tokens) {
    return forward(tokens, [](int, const CpuBackend::Rows&) {});
  }
};

}  // namespace

TEST_CASE("the eight highest logits and the logarithm of the sum behind every prompt agree within 1e-3") {
  const auto cases = golden("greedy.json")["cases"];
  for (const auto& expected : cases) {
    CAPTURE(expected["name"].get<std::string>());
    ModelRun run;
    const Tokens prompt = expected["prompt_ids"];
    const std::vector<float> logits = run.forward(prompt);
    const auto last = row_of(logits, prompt.size() - 1);
    std::vector<std::int32_t> order(last.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + 8, order.end(), [&](auto a, auto b) {
      return last[static_cast<std::size_t>(a)] > last[static_cast<std::size_t>(b)];
    });
    for (std::size_t i = 0; i < 8; ++i) {
      const auto id = expected["top8"][i][0].get<std::int32_t>();
      CHECK(order[i] == id);
      CHECK(std::abs(last[static_cast<std::size_t>(id)] - expected["top8"][i][1].get<float>()) < 1e-3f);
    }
    CHECK(std::abs(log_sum_exp(last) - expected["logsumexp"].get<double>()) < 1e-3);
  }
}

TEST_CASE("the residual stream agrees after the embedding, after each layer and after the final norm") {
  const auto file = golden("greedy.json");
  const Tokens prompt = file["cases"][0]["prompt_ids"];
  const auto& expected = file["demo_hidden_states_last_position"];
  const int num_layers = austen_config().num_layers;
  std::size_t num_seen = 0;
  ModelRun run;
  run.forward(prompt, [&](int index, const CpuBackend::Rows& x) {
    if (index == num_layers) return;  // recorded behind the final norm only
    const auto& state = expected[static_cast<std::size_t>(std::min(index, num_layers))];
    CAPTURE(state["after"].get<std::string>());
    const std::int64_t row = std::ssize(prompt) - 1;
    for (std::int64_t i = 0; i < 8; ++i)
      CHECK(x(row, i) == doctest::Approx(state["first8"][static_cast<std::size_t>(i)].get<double>()).epsilon(1e-4));
    double sum = 0;
    for (std::int64_t i = 0; i < x.extents[1]; ++i)
      sum += static_cast<double>(x(row, i)) * static_cast<double>(x(row, i));
    CHECK(std::sqrt(sum) == doctest::Approx(state["l2"].get<double>()).epsilon(1e-5));
    ++num_seen;
  });
  CHECK(num_seen == expected.size());
}

TEST_CASE("greedy search generates the recorded tokens, and the closing token where the text ends") {
  const auto cases = golden("greedy.json")["cases"];
  AustenEngine engine;
  std::vector<int> ids;
  for (const auto& expected : cases) ids.push_back(engine->submit(expected["prompt_ids"], {.max_tokens = 48}));
  engine->run();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    CAPTURE(cases[i]["name"].get<std::string>());
    CHECK(engine.generated(ids[i]) == cases[i]["greedy_ids"].get<Tokens>());
    CHECK((engine->request(ids[i]).branches[0].finish == Finish::eos) == cases[i]["ends_with_eos"].get<bool>());
  }
  engine->check_integrity();
}

TEST_CASE("beam search of width 4 finds the recorded sequences in order, with scores within 1e-4") {
  for (const int block_size : {1, 16}) {
    const auto cases = golden("beam.json")["cases"];
    AustenEngine engine({.block_size = block_size});
    std::vector<int> ids;
    for (const auto& expected : cases)
      ids.push_back(engine->submit(expected["prompt_ids"], {.max_tokens = 32, .beam_width = 4}));
    engine->run();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto& branches = engine->request(ids[i]).branches;
      REQUIRE(branches.size() == 4);
      for (std::size_t beam = 0; beam < 4; ++beam) {
        const auto& expected = cases[i]["sequences"][beam];
        CAPTURE(expected["text"].get<std::string>());
        CHECK(engine.generated(ids[i], static_cast<int>(beam)) == expected["ids"].get<Tokens>());
        CHECK(std::abs(branches[beam].score - expected["score"].get<double>()) < 1e-4);
        CHECK((branches[beam].finish == Finish::eos) == expected["ends_with_eos"].get<bool>());
      }
    }
    engine->check_integrity();
  }
}

TEST_CASE("the mean negative log-likelihood of 2,047 held-out tokens is 3.706804 within 1e-4") {
  const auto expected = golden("perplexity.json")["cases"][0];
  Tokens tokens = expected["ids"];
  if (has_sanitizer) tokens.resize(257);
  ModelRun run;
  const std::vector<float> logits = run.forward(tokens);
  std::vector<double> nll;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto row = row_of(logits, i);
    nll.push_back(log_sum_exp(row) - row[static_cast<std::size_t>(tokens[i + 1])]);
  }
  const auto mean = [](auto begin, auto end) {
    return std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
  };
  if (!has_sanitizer) {
    CHECK(std::abs(mean(nll.begin(), nll.end()) - 3.706804) < 1e-4);
    CHECK(std::abs(mean(nll.begin(), nll.end()) - expected["mean_nll"].get<double>()) < 1e-5);
  }
  for (std::size_t i = 0; i < 8; ++i) CHECK(std::abs(nll[i] - expected["first8_nll"][i].get<double>()) < 1e-3);
  for (std::size_t s = 0; 128 * s < nll.size(); ++s) {
    const auto begin = nll.begin() + static_cast<std::ptrdiff_t>(128 * s);
    CHECK(std::abs(mean(begin, std::min(begin + 128, nll.end())) - expected["segments"][s].get<double>()) < 1e-3);
  }
}
