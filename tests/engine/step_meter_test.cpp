// The meter of steps: rows, keys and pairs of real batches, shared blocks once, and times that belong to their steps.
#include "engine/step_meter.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

#include "engine/step_shape.hpp"
#include "support/fake_engine.hpp"

namespace {

using namespace engine;
using pagedkv_test::FakeEngine;
using pagedkv_test::prompt_of;

// The steps of one prompt of 10 tokens and what it generates, in blocks of 4.
std::vector<StepShape> steps_of(const SamplingParams& params, int window = 0, int budget = 64) {
  StepMeter meter(4, window);
  EngineOptions options;
  options.num_blocks = 40;
  options.block_size = 4;
  options.scheduler.max_batched_tokens = budget;
  options.scheduler.max_seqs = 8;
  options.on_launch = [&](const Batch& batch) { meter.observe(batch); };
  FakeEngine engine(options);
  engine->submit(prompt_of(10), params);
  engine->run();
  return {meter.steps().begin(), meter.steps().end()};
}

TEST_CASE("a prompt's step sees every pair below the diagonal, a decode step one row of them") {
  const auto steps = steps_of({.max_tokens = 3});
  REQUIRE(steps.size() == 3);
  CHECK(steps[0].num_rows == 10);
  CHECK(steps[0].num_logit_rows == 1);
  CHECK(steps[0].num_keys == 10);
  CHECK(steps[0].num_pairs == 55);
  CHECK(!steps[0].is_decode);
  CHECK(steps[1].num_rows == 1);
  CHECK(steps[1].num_keys == 11);
  CHECK(steps[1].num_pairs == 11);
  CHECK(steps[1].is_decode);
  CHECK(steps[2].num_keys == 12);
}

TEST_CASE("a chunk behind another one reads the first one's keys, too, and wants no logits in front of the last") {
  const auto steps = steps_of({.max_tokens = 1}, 0, 8);
  REQUIRE(steps.size() == 2);
  CHECK(steps[0].num_keys == 8);
  CHECK(steps[0].num_logit_rows == 0);
  CHECK(steps[1].num_rows == 2);
  CHECK(steps[1].num_keys == 10);
  CHECK(steps[1].num_pairs == 9 + 10);
}

TEST_CASE("blocks that samples share are read once") {
  const auto steps = steps_of({.max_tokens = 4, .n = 3, .temperature = 1});
  CHECK(steps[1].num_rows == 3);
  CHECK(steps[1].num_pairs == 3 * 11);
  CHECK(steps[1].num_keys == 8 + 3 * 3);  // two full blocks of the prompt, and a tail of each one's own
  CHECK(steps[1].is_decode);
}

TEST_CASE("a window hides what lies in front of it") {
  const auto steps = steps_of({.max_tokens = 2}, 3);
  CHECK(steps[0].num_pairs == 1 + 2 + 8 * 3);
  CHECK(steps[0].num_keys == 10);  // the first rows see the first keys
  CHECK(steps[1].num_pairs == 3);
  CHECK(steps[1].num_keys == 3);
}

TEST_CASE("a step's time ends with the next launch, or with the one behind it if steps are launched ahead") {
  for (const int lag : {0, 1}) {
    StepMeter meter(4, 0, lag);
    EngineOptions options;
    options.num_blocks = 40;
    options.block_size = 4;
    options.on_launch = [&](const Batch& batch) { meter.observe(batch); };
    FakeEngine engine(options);
    engine->submit(prompt_of(10), {.max_tokens = 5});
    engine->run();
    REQUIRE(meter.steps().size() == 5);
    for (std::size_t i = 0; i < 5; ++i) {
      CAPTURE(lag);
      CAPTURE(i);
      CHECK((meter.steps()[i].seconds > 0) == (i + static_cast<std::size_t>(lag) < 4));
    }
    meter.clear();
    CHECK(meter.steps().empty());
  }
}

TEST_CASE("a decode step reads the weights and its keys; prompts and steps of unknown time do not count") {
  const std::vector<StepShape> steps{{.num_rows = 10, .num_keys = 10, .seconds = 9},
                                     {.num_rows = 1, .num_keys = 11, .is_decode = true, .seconds = 2},
                                     {.num_rows = 1, .num_keys = 12, .is_decode = true, .seconds = 3},
                                     {.num_rows = 1, .num_keys = 13, .is_decode = true}};
  const DecodeTraffic traffic = decode_traffic(steps, 1000, 10);
  CHECK(traffic.num_steps == 2);
  CHECK(traffic.bytes == 2 * 1000 + (11 + 12) * 10);
  CHECK(traffic.seconds == 5);
  CHECK(traffic.bytes_per_second() == 446);
  CHECK(decode_traffic({}, 1000, 10).bytes_per_second() == 0);
}

}  // namespace
