// Regressions of known engine bugs, around a model that reads its context back through the block tables.
#include "engine/engine.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "support/fake_engine.hpp"

using namespace engine;
using namespace pagedkv_test;

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

TEST_CASE("samples share the prompt's blocks and n owners of its tail cost n - 1 copies") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  engine->submit(prompt_of(10), {.max_tokens = 2, .n = 4, .temperature = 1, .seed = 5});
  engine->step();
  CHECK(engine->blocks().num_used() == 3);
  engine->step();
  CHECK(engine->stats().block_copies == 3);
  CHECK(engine->is_idle());
}

TEST_CASE("samples of a preempted request recompute what they share once, be they different or all the same") {
  for (const float temperature : {1.f, 0.f}) {
    FakeEngine engine({.num_blocks = 16, .block_size = 4, .prefix_cache = false});
    const SamplingParams params{.max_tokens = 12, .n = 3, .temperature = temperature, .seed = 5};
    const int blocker = engine->submit(prompt_of(9, 4), {.max_tokens = 16});
    const int id = engine->submit(prompt_of(16), params);
    while (engine->request(id).num_preempted == 0) engine->step();
    const auto num_tokens = std::ssize(engine->request(id).branches[0].tokens);
    while (!engine.is_running(id)) engine->step();
    // For all three: different texts part behind the prompt, equal ones before their last token.
    CHECK(engine.model.passes().back().q_len.back() == (temperature > 0 ? 16 : num_tokens - 1));
    engine->run();
    CHECK(engine.generated(blocker) == expected_of(prompt_of(9, 4), 16));
    for (int sample = 0; sample < 3; ++sample)
      CHECK(engine.generated(id, static_cast<std::size_t>(sample)) == expected_of(prompt_of(16), params, sample));
  }
}

TEST_CASE("when the one sample that still recomputes is stopped, here or in host memory, its siblings go on") {
  for (const bool is_swapped : {false, true}) {
    FakeEngine engine({.num_blocks = is_swapped ? 14 : 16,
                       .block_size = 2,
                       .prefix_cache = false,
                       .scheduler = {.max_batched_tokens = 3, .preemption = Preemption::swap},
                       .num_host_blocks = is_swapped ? 5 : 0});  // room for a request half recomputed, not for more
    const SamplingParams params{.max_tokens = 12, .n = 2, .temperature = 1, .seed = 5};
    engine->submit(prompt_of(4, 9), {.max_tokens = is_swapped ? 16 : 14});
    const int id = engine->submit(prompt_of(4), params);
    const Request& request = engine->request(id);
    const State& state = is_swapped ? request.interrupted : request.state;
    const auto lacking = [&](std::size_t sample) { return request.branches[sample].num_lacking(); };
    while (state != State::tails || lacking(0) > 1 || lacking(1) == 1) engine->step();
    engine->stop(id, 1);
    engine->run();
    CHECK(engine.generated(id, 0) == expected_of(prompt_of(4), params, 0));
    CHECK(request.branches[1].finish == Finish::stop);
  }
}

TEST_CASE("samples that still share their prompt are not stopped one by one; an only sample is, at any time") {
  FakeEngine engine({.num_blocks = 16, .block_size = 4, .scheduler = {.max_batched_tokens = 4}});
  const SamplingParams params{.max_tokens = 6, .n = 2, .temperature = 1, .seed = 5};
  const int id = engine->submit(prompt_of(10), params);
  const int only = engine->submit(prompt_of(7, 3), {.max_tokens = 6});
  engine->stop(only, 0);
  CHECK(engine->request(only).state == State::finished);
  for (int num_chunks = 0; num_chunks < 3; ++num_chunks) {  // it waits, then two of its three chunks are computed
    CHECK_THROWS_AS(engine->stop(id, 0), pagedkv::InvalidArgument);
    CHECK_THROWS_AS(engine->stop(id, 1), pagedkv::InvalidArgument);
    CHECK(engine->request(id).state != State::finished);
    engine->step();
  }
  engine->stop(id, 0);
  engine->run();
  CHECK(engine.generated(id, 0).size() == 1);
  CHECK(engine.generated(id, 1) == expected_of(prompt_of(10), params, 1));
}

TEST_CASE("a beam search is not stopped beam by beam, and counts the tokens of all of them") {
  FakeEngine engine({.num_blocks = 16, .block_size = 4});
  const int id = engine->submit(prompt_of(4), {.max_tokens = 6, .beam_width = 2});
  engine->step();
  CHECK_THROWS_AS(engine->stop(id, 0), pagedkv::InvalidArgument);
  engine->run();
  CHECK_NOTHROW(engine->stop(id, 0));
  CHECK(engine->request(id).branches.size() == 2);
  CHECK(engine->stats().generated_tokens == 2 * 6);
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

TEST_CASE("what a request has generated is found by others while it runs") {
  for (const bool run_ahead : {false, true})
    for (const int max_drafts : {0, 3}) {
      FakeEngine engine({.num_blocks = 64,
                         .block_size = 4,
                         .run_ahead = run_ahead,
                         .drafts = {.max_drafts = max_drafts, .min_ngram = 1, .max_ngram = 3}});
      engine.model.habit = 6;
      const int id = engine->submit(prompt_of(5), {.max_tokens = 60});
      while (engine->request(id).branches[0].known_tokens().size() < 31) engine->step();
      const auto known = engine->request(id).branches[0].known_tokens();
      const int other = engine->submit({known.begin(), known.begin() + 31}, {.max_tokens = 1});
      while (!engine.is_running(other)) engine->step();
      CHECK(engine->request(id).state == State::decode);
      CHECK(engine->request(other).num_cached == 28);
      engine->run();
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
