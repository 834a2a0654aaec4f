// The scheduler at work: its budget, its order, whom it pushes out, whom it refuses; and random loads against an
// oracle.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "support/fake_engine.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

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

TEST_CASE("options with which nobody could be served are refused by name") {
  const auto refusal = [](const SchedulerOptions& options) {
    return message_of([&] { FakeEngine engine({.num_blocks = 16, .block_size = 4, .scheduler = options}); });
  };
  CHECK(refusal({.max_batched_tokens = 0}) == "max batched tokens: at least 1 expected, 0 found");
  CHECK(refusal({.max_seqs = 0}) == "max seqs: at least 1 expected, 0 found");
  CHECK(refusal({.watermark = -1}) == "watermark: at least 0 expected, -1 found");
  CHECK(refusal({.max_batched_tokens = 1, .max_seqs = 1}) == "nothing thrown");
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

TEST_CASE("rows of a request that pushed itself out half-way are followed by nobody's") {
  // While the third request decodes, the second recomputes; the third lacks blocks for its second sample.
  FakeEngine engine(
      {.num_blocks = 7, .block_size = 2, .prefix_cache = false, .scheduler = {.max_batched_tokens = 8, .max_seqs = 8}});
  const std::array<int, 3> prompt_len{1, 4, 2};
  const std::array<SamplingParams, 3> params{{{.max_tokens = 10, .n = 1, .temperature = 1},
                                              {.max_tokens = 5, .n = 2, .temperature = 1},
                                              {.max_tokens = 2, .n = 3, .temperature = 1}}};
  for (std::size_t i = 0; i < 3; ++i) engine->submit(prompt_of(prompt_len[i], static_cast<int>(i)), params[i]);
  engine->run();
  CHECK(engine->request(2).num_preempted > 0);
  for (std::size_t i = 0; i < 3; ++i)
    for (int sample = 0; sample < params[i].n; ++sample)
      CHECK(engine.generated(static_cast<int>(i), static_cast<std::size_t>(sample)) ==
            expected_of(prompt_of(prompt_len[i], static_cast<int>(i)), params[i], sample));
}

TEST_CASE("random loads end, with the oracle's tokens, and every block comes home") {
  std::mt19937 random(20);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution(low, high)(random); };
  std::int64_t num_preemptions = 0, num_cached = 0;
  for (int load = 0; load < 1500; ++load) {
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
      SamplingParams params;
    };
    std::map<int, Submitted> submitted;
    int num_steps = 0;
    for (int i = 0, num_requests = pick(1, 15); i < num_requests; ++i) {
      const Tokens prompt = prompt_of(pick(1, 40), pick(0, 2));  // three beginnings only: hits are frequent
      const int width = pick(0, 2) == 0 ? pick(1, 4) : 1;
      SamplingParams params{.max_tokens = pick(1, 30), .seed = 3};
      (width > 1 && pick(0, 1) == 1 ? params.beam_width : params.n) = width;
      if (pick(0, 1) == 1) params.temperature = 1;
      try {
        const int id = engine->submit(prompt, params);
        submitted[id] = {prompt, params};
      } catch (const BadInput&) {  // never fits
      }
      for (int step = pick(0, 4); step > 0 && !engine->is_idle(); --step, ++num_steps) engine->step();
    }
    for (; !engine->is_idle(); ++num_steps) {
      REQUIRE(num_steps < 20000);
      engine->step();
      if (num_steps % 16 == 0) engine->check_integrity();
    }
    for (const auto& [id, request] : submitted) {
      const auto& [prompt, params] = request;
      FakeEngine roomy({.num_blocks = 4096, .block_size = 1}, true);
      if (params.beam_width > 0) roomy->submit(prompt, params);
      roomy->run();
      for (int sample = 0; sample < params.width(); ++sample) {
        const auto index = static_cast<std::size_t>(sample);
        CHECK(engine.generated(id, index) ==
              (params.beam_width > 0 ? roomy.generated(0, index) : expected_of(prompt, params, sample, true)));
      }
    }
    CHECK(engine->blocks().num_used() == 0);
    num_preemptions += engine->stats().num_preemptions;
    num_cached += engine->stats().cached_tokens;
  }
  CHECK(num_preemptions > 1000);
  CHECK(num_cached > 10000);
}
