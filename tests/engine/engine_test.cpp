// The engine around a model that reads its context back through the block tables: regressions of known engine bugs, and
// random loads against an oracle.
#include "engine/engine.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "support/fake_model.hpp"

using namespace engine;
using pagedkv_test::FakeModel;
using Tokens = std::vector<std::int32_t>;

namespace {

constexpr int vocab = 50, eos = 1, max_positions = 96;

ModelConfig tiny_config(bool with_eos) {
  ModelConfig config;
  config.vocab = vocab;
  config.max_positions = max_positions;
  if (with_eos) config.eos_ids = {eos};
  return config;
}

struct FakeEngine {
  FakeModel model;
  Engine engine;

  explicit FakeEngine(const EngineOptions& options, bool with_eos = false)
      : model(vocab, options.num_blocks, options.block_size), engine(tiny_config(with_eos), model, options) {}
  ~FakeEngine() { engine.check_integrity(); }

  Engine* operator->() { return &engine; }
  Tokens generated(int id, std::size_t sample = 0) const {
    const Request& request = engine.request(id);
    const Tokens& tokens = request.branches.at(sample).tokens;
    return {tokens.begin() + request.prompt_len, tokens.end()};
  }
  bool is_running(int id) const { return engine.request(id).state != State::waiting; }
};

Tokens prompt_of(int length, int first = 2) {
  Tokens tokens(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = (first + static_cast<std::int32_t>(i * i)) % vocab;
  return tokens;
}

Tokens expected_of(const Tokens& prompt, int max_tokens, bool with_eos = false) {
  return FakeModel::continuation(prompt, max_tokens, vocab, with_eos ? eos : -1);
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const BadInput& error) {
    return error.what();
  }
  return "nothing thrown";
}

}  // namespace

TEST_CASE("a preempted sequence re-admitted with a prefix hit computes exactly the tokens it still lacks") {
  FakeEngine engine({.num_blocks = 8, .block_size = 4});
  const int old_id = engine->submit(prompt_of(13, 2), {.max_tokens = 12});
  const int new_id = engine->submit(prompt_of(11, 30), {.max_tokens = 12});
  while (engine->request(new_id).num_preempted == 0) engine->step();
  const auto num_tokens = std::ssize(engine->request(new_id).branches[0].tokens);
  while (!engine.is_running(new_id)) engine->step();
  // The newest pass re-admitted it: its first row continues right behind the hits.
  const FakeModel::Pass& pass = engine.model.passes().back();
  const auto last = pass.q_len.size() - 1;
  CHECK(pass.kv_len[last] == num_tokens);
  CHECK((pass.kv_len[last] - pass.q_len[last]) % 4 == 0);
  CHECK(pass.q_len[last] >= 1);
  engine->run();
  CHECK(engine.generated(old_id) == expected_of(prompt_of(13, 2), 12));
  CHECK(engine.generated(new_id) == expected_of(prompt_of(11, 30), 12));
}

TEST_CASE("a prompt of whole blocks that is cached whole still computes its last token") {
  for (const int length : {4, 8, 16}) {
    FakeEngine engine({.num_blocks = 32, .block_size = 4});
    for (int round = 0; round < 3; ++round) {
      engine.model.forget_passes();
      const int id = engine->submit(prompt_of(length), {.max_tokens = 3});
      engine->run();
      CHECK(engine.generated(id) == expected_of(prompt_of(length), 3));
      CHECK(engine->request(id).num_cached == (round == 0 ? 0 : length - 4));
      CHECK(engine.model.passes()[0].q_len == std::vector{round == 0 ? length : 4});
    }
  }
}

TEST_CASE("a second request of the same step does not hit blocks that are not written yet") {
  FakeEngine engine({.num_blocks = 32, .block_size = 4});
  const int first = engine->submit(prompt_of(10), {.max_tokens = 4});
  const int second = engine->submit(prompt_of(10), {.max_tokens = 4});
  engine->step();
  CHECK(engine.model.passes()[0].q_len == std::vector{10, 10});
  CHECK(engine->request(second).num_cached == 0);
  const int third = engine->submit(prompt_of(10), {.max_tokens = 4});
  engine->run();
  CHECK(engine->request(third).num_cached == 8);
  for (const int id : {first, second, third}) CHECK(engine.generated(id) == expected_of(prompt_of(10), 4));
}

TEST_CASE("a request that was preempted after it had generated recomputes as a prompt and then goes on decoding") {
  FakeEngine engine({.num_blocks = 10, .block_size = 2, .prefix_cache = false});
  const int old_id = engine->submit(prompt_of(6), {.max_tokens = 14});
  const int new_id = engine->submit(prompt_of(5, 9), {.max_tokens = 14});
  while (engine->request(new_id).num_preempted == 0) engine->step();
  const auto num_tokens = std::ssize(engine->request(new_id).branches[0].tokens);
  CHECK(num_tokens > 5);
  CHECK(engine->request(new_id).state == State::waiting);
  while (!engine.is_running(new_id)) engine->step();
  CHECK(engine.model.passes().back().q_len.back() == num_tokens);
  CHECK(engine->request(new_id).state == State::decode);
  engine->run();
  CHECK(engine.generated(old_id) == expected_of(prompt_of(6), 14));
  CHECK(engine.generated(new_id) == expected_of(prompt_of(5, 9), 14));
}

TEST_CASE("a sequence may grow to the position limit, and a short one after it reads none of its table") {
  for (const int block_size : {1, 5, 16}) {
    FakeEngine engine({.num_blocks = 200, .block_size = block_size, .prefix_cache = false});
    const int longest = engine->submit(prompt_of(max_positions - 10), {.max_tokens = 1000});
    const int other = engine->submit(prompt_of(3, 7), {.max_tokens = 4});
    engine->run();
    CHECK(engine.generated(longest) == expected_of(prompt_of(max_positions - 10), 10));
    CHECK(engine->request(longest).branches[0].finish == Finish::length);
    const int after = engine->submit(prompt_of(2, 5), {.max_tokens = 4});
    engine->run();
    CHECK(engine.generated(other) == expected_of(prompt_of(3, 7), 4));
    CHECK(engine.generated(after) == expected_of(prompt_of(2, 5), 4));
  }
}

TEST_CASE("what can never be served is refused at submission, with both numbers, and changes nothing") {
  FakeEngine engine({.num_blocks = 6, .block_size = 4, .scheduler = {.max_seqs = 4}});
  const auto refusal = [&](int prompt_len, const SamplingParams& params) {
    return message_of([&] { engine->submit(prompt_of(prompt_len), params); });
  };
  CHECK(refusal(25, {.max_tokens = 4}).find("at most the pool's 6 expected, 7 found") != std::string::npos);
  // 8 shared tokens are 2 blocks; each of 3 samples comes to own 2 more.
  CHECK(refusal(8, {.max_tokens = 9, .n = 3}).find("at most the pool's 6 expected, 8 found") != std::string::npos);
  CHECK(refusal(8, {.max_tokens = 9, .beam_width = 3}).find("6 expected, 8 found") != std::string::npos);
  CHECK(refusal(4, {.n = 5}).find("continuations of one request: at most 4 expected, 5 found") != std::string::npos);
  CHECK(refusal(max_positions, {}).find("fewer than the model's 96 positions expected, 96 found") != std::string::npos);
  CHECK(refusal(0, {}).find("prompt: at least 1 token expected, 0 found") != std::string::npos);
  CHECK(message_of([&] { engine->submit({3, vocab}, {}); }).find("0 to 49 expected, 50 found") != std::string::npos);
  CHECK(message_of([&] { engine->submit({-1}, {}); }).find("0 to 49 expected, -1 found") != std::string::npos);
  CHECK(engine->is_idle());
  // What just fits is served.
  const int id = engine->submit(prompt_of(8), {.max_tokens = 9, .n = 2});
  engine->run();
  CHECK(engine.generated(id) == expected_of(prompt_of(8), 9));
}

TEST_CASE("sustained arrivals do not starve those who decode") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .scheduler = {.max_batched_tokens = 8, .max_seqs = 4}});
  const int first = engine->submit(prompt_of(4), {.max_tokens = 20});
  engine->step();
  for (int step = 1; step < 20; ++step) {
    engine->submit(prompt_of(30, step), {.max_tokens = 2});
    engine->step();
    CHECK(std::ssize(engine.generated(first)) == step + 1);  // a token each step, whoever arrives
  }
  CHECK(engine->request(first).state == State::finished);
  engine->run();
}

TEST_CASE("a step computes rows of those who decode first, then chunks of prompts, within its budget") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .scheduler = {.max_batched_tokens = 10, .max_seqs = 4}});
  engine->submit(prompt_of(6, 3), {.max_tokens = 8});
  engine->submit(prompt_of(7, 4), {.max_tokens = 8});
  engine->submit(prompt_of(15, 5), {.max_tokens = 8});
  engine->step();
  CHECK(engine.model.passes()[0].q_len == std::vector{6, 4});
  engine->step();
  CHECK(engine.model.passes()[1].q_len == std::vector{1, 3, 6});
  engine->step();
  CHECK(engine.model.passes()[2].q_len == std::vector{1, 1, 8});
  engine->step();
  CHECK(engine.model.passes()[3].q_len == std::vector{1, 1, 1});
  engine->run();
  for (const auto& pass : engine.model.passes()) CHECK(pass.num_rows <= 10);
}

TEST_CASE("whoever lacks blocks pushes out the newest, who comes back in the order of arrival") {
  FakeEngine engine({.num_blocks = 12, .block_size = 2, .prefix_cache = false});
  std::vector<int> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(engine->submit(prompt_of(6, i), {.max_tokens = 12}));
  while (engine->stats().num_preemptions == 0) engine->step();
  CHECK(engine->request(ids[2]).num_preempted == 1);
  CHECK(engine->request(ids[1]).num_preempted == 0);
  const int late = engine->submit(prompt_of(2, 9), {.max_tokens = 2});
  while (!engine.is_running(late)) engine->step();
  CHECK(engine.is_running(ids[2]));  // a later arrival did not overtake it
  engine->run();
  CHECK(engine->request(ids[0]).num_preempted == 0);
  for (int i = 0; i < 3; ++i)
    CHECK(engine.generated(ids[static_cast<std::size_t>(i)]) == expected_of(prompt_of(6, i), 12));
}

TEST_CASE("an admission leaves the watermark to those who run, but an empty engine admits regardless") {
  FakeEngine engine({.num_blocks = 10, .block_size = 2, .prefix_cache = false, .scheduler = {.watermark = 4}});
  const int first = engine->submit(prompt_of(14), {.max_tokens = 3});  // 7 of 10 blocks
  const int second = engine->submit(prompt_of(4, 3), {.max_tokens = 2});
  engine->step();
  CHECK(engine.is_running(first));
  CHECK_FALSE(engine.is_running(second));
  engine->run();
  CHECK(engine->stats().num_preemptions == 0);
  CHECK(engine.generated(second) == expected_of(prompt_of(4, 3), 2));
}

TEST_CASE("samples share the prompt's blocks and n owners of its tail cost n - 1 copies") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  engine->submit(prompt_of(10), {.max_tokens = 2, .n = 4, .temperature = 1, .seed = 5});
  engine->step();
  CHECK(engine->blocks().num_used() == 3);
  engine->step();
  CHECK(engine->stats().block_copies == 3);
  CHECK(engine->is_idle());
}

TEST_CASE("samples of a preempted request recompute what they share once") {
  FakeEngine engine({.num_blocks = 16, .block_size = 4, .prefix_cache = false});
  const SamplingParams params{.max_tokens = 12, .n = 3, .temperature = 1, .seed = 5};
  const int blocker = engine->submit(prompt_of(9, 4), {.max_tokens = 16});
  const int id = engine->submit(prompt_of(16), params);
  while (engine->request(id).num_preempted == 0) engine->step();
  while (!engine.is_running(id)) engine->step();
  CHECK(engine.model.passes().back().q_len.back() == 16);  // the prompt, for all three
  engine->run();
  CHECK(engine.generated(blocker) == expected_of(prompt_of(9, 4), 16));

  FakeEngine roomy({.num_blocks = 64, .block_size = 4});
  const int same = roomy->submit(prompt_of(16), params);
  roomy->run();
  for (std::size_t sample = 0; sample < 3; ++sample)
    CHECK(engine.generated(id, sample) == roomy.generated(same, sample));
}

TEST_CASE("a preempted beam search finds the same beams") {
  const SamplingParams params{.max_tokens = 14, .beam_width = 3};
  FakeEngine roomy({.num_blocks = 96, .block_size = 2}, true);
  const int alone = roomy->submit(prompt_of(7), params);
  roomy->run();
  FakeEngine engine({.num_blocks = 24, .block_size = 2}, true);
  engine->submit(prompt_of(20, 4), {.max_tokens = 14});
  const int id = engine->submit(prompt_of(7), params);
  engine->run();
  CHECK(engine->request(id).num_preempted > 0);
  for (std::size_t beam = 0; beam < 3; ++beam) {
    CHECK(engine.generated(id, beam) == roomy.generated(alone, beam));
    CHECK(engine->request(id).branches[beam].score == roomy->request(alone).branches[beam].score);
  }
}

TEST_CASE("every token is an event, in order, and the last one carries the finish") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4}, true);
  std::map<int, Tokens> seen;
  std::map<int, Finish> finish;
  for (int i = 0; i < 4; ++i) engine->submit(prompt_of(3 + i, i), {.max_tokens = 30});
  engine->run([&](const Event& event) {
    CHECK(finish[event.request->id] == Finish::none);
    seen[event.request->id].push_back(event.token);
    finish[event.request->id] = event.finish;
  });
  for (int i = 0; i < 4; ++i) {
    CHECK(seen[i] == expected_of(prompt_of(3 + i, i), 30, true));
    CHECK(finish[i] == (seen[i].back() == eos ? Finish::eos : Finish::length));
  }
  engine->forget(0);
  CHECK_THROWS_AS(engine->request(0), std::out_of_range);
}

TEST_CASE("random loads end, with the oracle's tokens, and every block comes home") {
  std::mt19937 random(20);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution(low, high)(random); };
  std::int64_t num_preemptions = 0, num_cached = 0;
  for (int load = 0; load < 150; ++load) {
    CAPTURE(load);
    const int block_size = pick(1, 9);
    const EngineOptions options{
        .num_blocks = std::max(4, pick(20, 160) / block_size),
        .block_size = block_size,
        .prefix_cache = pick(0, 1) == 1,
        .scheduler = {.max_batched_tokens = pick(1, 40), .max_seqs = pick(1, 8), .watermark = pick(0, 3)}};
    FakeEngine engine(options, true);
    struct Submitted {
      Tokens prompt;
      int max_tokens, n;
      bool is_beam;
    };
    std::map<int, Submitted> submitted;
    int num_steps = 0;
    for (int i = 0, num_requests = pick(1, 15); i < num_requests; ++i) {
      const Tokens prompt = prompt_of(pick(1, 40), pick(0, 2));  // three beginnings only: hits are frequent
      const int max_tokens = pick(1, 30), n = pick(0, 2) == 0 ? pick(1, 4) : 1;
      const bool is_beam = n > 1 && pick(0, 1) == 1;
      try {
        const int id =
            engine->submit(prompt, {.max_tokens = max_tokens, .n = is_beam ? 1 : n, .beam_width = is_beam ? n : 0});
        submitted[id] = {prompt, max_tokens, n, is_beam};
      } catch (const BadInput&) {
      }
      for (int step = pick(0, 4); step > 0 && !engine->is_idle(); --step, ++num_steps) engine->step();
    }
    for (; !engine->is_idle(); ++num_steps) {
      REQUIRE(num_steps < 20000);
      engine->step();
      if (num_steps % 16 == 0) engine->check_integrity();
    }
    for (const auto& [id, request] : submitted) {
      FakeEngine roomy({.num_blocks = 4096, .block_size = 1}, true);
      if (request.is_beam) roomy->submit(request.prompt, {.max_tokens = request.max_tokens, .beam_width = request.n});
      roomy->run();
      for (std::size_t sample = 0; sample < static_cast<std::size_t>(request.n); ++sample)
        CHECK(engine.generated(id, sample) ==
              (request.is_beam ? roomy.generated(0, sample) : expected_of(request.prompt, request.max_tokens, true)));
    }
    CHECK(engine->blocks().num_used() == 0);
    num_preemptions += engine->stats().num_preemptions;
    num_cached += engine->stats().cached_tokens;
  }
  CHECK(num_preemptions > 100);
  CHECK(num_cached > 1000);
}
