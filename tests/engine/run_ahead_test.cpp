// An engine that launches a step before it knows the tokens of the one before gives the same texts, to their last
// token.
#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "support/fake_engine.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

// Writes down what the engine asks of it.
class RecordingModel final : public FakeModel {
 public:
  using FakeModel::FakeModel;
  std::span<const float> forward(const Batch& batch) override {
    calls += 'f';
    return FakeModel::forward(batch);
  }
  void launch(const Batch& batch) override {
    FakeModel::launch(batch);
    calls.back() = 'l';
    for (const std::int32_t token : batch.tokens) num_unknown += token < 0;
  }
  std::span<const Choice> collect() override {
    calls += 'c';
    return FakeModel::collect();
  }

  std::string calls;
  int num_unknown = 0;
};

struct Asked {
  Tokens prompt;
  SamplingParams params;
};

// Greedy and sampled, one or several samples, some that the host must choose, beams.
std::vector<Asked> requests(std::uint64_t seed, bool with_host_choosers) {
  Random random(seed);
  std::vector<Asked> asked;
  for (int i = 0; i < 12; ++i) {
    SamplingParams params{.max_tokens = random.between(1, 14)};
    if (random.between(0, 2) > 0) params.temperature = 0.7f;
    params.seed = static_cast<std::uint64_t>(random.between(0, 9));
    if (random.between(0, 3) == 0) params.n = random.between(2, 3);
    if (with_host_choosers && random.between(0, 3) == 0)
      params.repetition_penalty = 1.3f;
    else if (with_host_choosers && params.n == 1 && random.between(0, 3) == 0)
      params.beam_width = 3;
    asked.push_back({prompt_of(random.between(1, 20), random.between(2, 6)), params});
  }
  return asked;
}

// Request by request, sample by sample. The last event of a sample, and no other, says that it has ended.
std::vector<Tokens> texts(const std::vector<Asked>& asked, const EngineOptions& options,
                          std::int64_t& num_preemptions) {
  FakeEngine engine(options, true);
  std::vector<int> ids;
  std::map<std::pair<int, int>, Tokens> seen;
  std::map<std::pair<int, int>, Finish> last;
  const auto step = [&] {
    for (const Event& event : engine->step()) {
      const std::pair<int, int> sample{event.request->id, event.sample};
      if (event.request->params.beam_width > 0) continue;
      CHECK(last[sample] == Finish::none);
      last[sample] = event.finish;
      seen[sample].push_back(event.token);
    }
  };
  for (const Asked& request : asked) {
    ids.push_back(engine->submit(request.prompt, request.params));
    step();
  }
  while (!engine->is_idle()) step();
  std::vector<Tokens> texts;
  for (const int id : ids) {
    const Request& request = engine->request(id);
    CHECK(request.state == State::finished);
    for (const Branch& branch : request.branches) {
      texts.push_back({branch.tokens.begin() + request.prompt_len, branch.tokens.end()});
      if (request.beam) continue;
      CHECK(seen[{id, branch.index}] == texts.back());
      CHECK(last[{id, branch.index}] == branch.finish);
    }
  }
  CHECK(engine->blocks().num_used() == 0);
  num_preemptions += engine->stats().num_preemptions;
  return texts;
}

}  // namespace

TEST_CASE("running ahead gives the texts of an engine that waits for every token") {
  std::int64_t preempted_waiting = 0, preempted_ahead = 0;
  for (std::uint64_t seed = 0; seed < 12; ++seed)
    for (const bool with_host_choosers : {false, true})
      for (const int block_size : {1, 4})
        for (const int num_blocks : {88 / block_size, 512}) {  // the small one makes requests push each other out
          CAPTURE(seed);
          const std::vector<Asked> asked = requests(seed, with_host_choosers);
          EngineOptions options{.num_blocks = num_blocks,
                                .block_size = block_size,
                                .prefix_cache = seed % 2 == 0,
                                .scheduler = {.max_batched_tokens = 9, .max_seqs = 8}};
          const std::vector<Tokens> waiting = texts(asked, options, preempted_waiting);
          options.run_ahead = true;
          CHECK(texts(asked, options, preempted_ahead) == waiting);
        }
  CHECK(preempted_waiting > 20);
  CHECK(preempted_ahead > 20);
}

TEST_CASE("a step is launched before the tokens of the one before are collected, and takes them from there") {
  RecordingModel model(vocab, 32, 4);
  Engine engine(tiny_config(false), model, {.num_blocks = 32, .block_size = 4, .run_ahead = true});
  const int id = engine.submit(prompt_of(5), {.max_tokens = 4});
  engine.run();
  CHECK(model.calls == "llclclcc");
  CHECK(model.num_unknown == 3);
  CHECK(engine.request(id).branches[0].finish == Finish::length);

  model.calls.clear();
  engine.submit(prompt_of(5, 9), {.max_tokens = 3, .repetition_penalty = 1.1f});
  engine.run();
  CHECK(model.calls == "fff");
}

TEST_CASE("a text that ends in the step before gives one row away, and its blocks come back") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .prefix_cache = false, .run_ahead = true}, true);
  int num_ended = 0;
  for (int first = 2; first < 40; ++first) {
    const Tokens expected = expected_of(prompt_of(6, first), 40, true);
    const int id = engine->submit(prompt_of(6, first), {.max_tokens = 40});
    engine.model.forget_passes();
    engine->run();
    CHECK(engine.generated(id) == expected);
    CHECK(engine->blocks().num_free() == 64);
    if (expected.back() != eos) continue;
    ++num_ended;
    CHECK(engine.model.num_rows() == 6 + std::ssize(expected) - (std::ssize(expected) == 40 ? 1 : 0));
  }
  CHECK(num_ended > 3);
}

TEST_CASE("an aborted request gives its blocks back at once, and nobody else's text changes") {
  for (const bool run_ahead : {false, true}) {
    FakeEngine engine({.num_blocks = 64, .block_size = 4, .prefix_cache = false, .run_ahead = run_ahead});
    const int kept = engine->submit(prompt_of(7), {.max_tokens = 20});
    const int first = engine->submit(prompt_of(9, 5), {.max_tokens = 20, .n = 2});
    const int waiting = engine->submit(prompt_of(9, 7), {.max_tokens = 20});
    for (int i = 0; i < 4; ++i) engine->step();
    const int before = engine->blocks().num_free();
    const auto num_owned = std::ssize(engine->request(first).branches[0].kv.blocks());
    CHECK(num_owned > 0);
    engine->abort(first);
    CHECK(engine->blocks().num_free() >= before + num_owned);
    CHECK_THROWS_AS(engine->request(first), std::out_of_range);
    engine->abort(waiting);
    while (!engine->is_idle())
      for (const Event& event : engine->step()) CHECK(event.request->id == kept);
    CHECK(engine.generated(kept) == expected_of(prompt_of(7), 20));
    CHECK(engine->blocks().num_free() == 64);
    CHECK_THROWS_AS(engine->abort(first), std::out_of_range);
  }
}

TEST_CASE("a stopped sample ends with the tokens that were known; its siblings go on") {
  for (const bool run_ahead : {false, true}) {
    FakeEngine engine({.num_blocks = 64, .block_size = 4, .run_ahead = run_ahead});
    const SamplingParams params{.max_tokens = 12, .n = 2, .temperature = 1, .seed = 3};
    const int id = engine->submit(prompt_of(7), params);
    while (std::ssize(engine->request(id).branches) < 2 || engine->request(id).branches[0].known_tokens().size() < 10)
      engine->step();
    engine->stop(id, 0);
    const Tokens whole = expected_of(prompt_of(7), params, 0);
    CHECK(engine.generated(id, 0) == Tokens(whole.begin(), whole.begin() + 3));
    CHECK(engine->request(id).branches[0].finish == Finish::stop);
    CHECK(engine->request(id).state != State::finished);
    engine->stop(id, 0);
    engine->run();
    CHECK(engine.generated(id, 0).size() == 3);
    CHECK(engine.generated(id, 1) == expected_of(prompt_of(7), params, 1));
    CHECK(engine->request(id).state == State::finished);
    engine->stop(id, 1);
    CHECK(engine->request(id).branches[1].finish == Finish::length);
  }
}

TEST_CASE("stopping the last sample finishes the request, which may be forgotten while its row is computed") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .run_ahead = true});
  const int id = engine->submit(prompt_of(7), {.max_tokens = 12});
  while (engine->step().empty()) {
  }
  engine->stop(id, 0);
  CHECK(engine->request(id).state == State::finished);
  engine->forget(id);
  CHECK(!engine->is_idle());
  CHECK(engine->step().empty());
  CHECK(engine->is_idle());
}

TEST_CASE("tokens that the user names end a text, and the model's own may be told not to") {
  for (const bool run_ahead : {false, true}) {
    FakeEngine engine({.num_blocks = 64, .block_size = 4, .run_ahead = run_ahead}, true);
    const Tokens whole = expected_of(prompt_of(6, 3), 12);
    const int stopped = engine->submit(prompt_of(6, 3), {.max_tokens = 12, .ignore_eos = true, .stop_ids = {whole[5]}});
    engine->run();
    CHECK(engine->request(stopped).branches[0].finish == Finish::eos);
    CHECK(engine.generated(stopped).back() == whole[5]);
    for (int first = 2; first < 20; ++first) {
      const int id = engine->submit(prompt_of(6, first), {.max_tokens = 30, .ignore_eos = true});
      engine->run();
      CHECK(engine.generated(id) == expected_of(prompt_of(6, first), 30));
    }
  }
}
