// The line of progress: its text, and what it counts while an engine works.
#include "engine/progress.hpp"

#include <doctest/doctest.h>

#include <cstdio>
#include <string>

#include "support/fake_engine.hpp"

namespace {

using namespace engine;
using pagedkv_test::FakeEngine;
using pagedkv_test::prompt_of;

TEST_CASE("the line shows the share, requests, time spent and left, and both speeds") {
  CHECK(ProgressLine{.num_done = 107,
                     .num_requests = 256,
                     .prompt_tokens = 4000,
                     .output_tokens = 1000,
                     .share = .25,
                     .seconds = 4}
            .text() == " 25%|#####...............| 107/256 [00:04<00:12, in 1000 tok/s, out 250 tok/s]");
  CHECK(ProgressLine{.num_done = 2, .num_requests = 2, .output_tokens = 7300, .share = 1, .seconds = 7300}.text() ==
        "100%|####################| 2/2 [2:01:40<00:00, in 0 tok/s, out 1 tok/s]");
  CHECK(ProgressLine{.num_requests = 9}.text() == "  0%|....................| 0/9 [00:00<?, in 0 tok/s, out 0 tok/s]");
}

TEST_CASE("samples, beams and early ends all add up to a complete line") {
  EngineOptions options;
  options.num_blocks = 60;
  options.block_size = 4;
  FakeEngine engine(options, true);  // some texts end early
  Progress progress(stderr);
  std::int64_t expected = 0;
  double share = 0;
  for (const SamplingParams& params :
       {SamplingParams{.max_tokens = 12, .n = 3, .temperature = 1}, SamplingParams{.max_tokens = 8, .beam_width = 2},
        SamplingParams{.max_tokens = 30}, SamplingParams{.max_tokens = 1, .n = 2}})
    progress.expect(engine->request(engine->submit(prompt_of(9), params)));
  CHECK(progress.share() == 0);
  while (!engine->is_idle()) {
    for (const Event& event : engine->step()) progress.observe(event);
    CHECK(progress.share() >= share);
    share = progress.share();
  }
  for (int id = 0; id < 4; ++id)
    for (const Branch& branch : engine->request(id).branches) expected += std::ssize(branch.tokens) - 9;
  CHECK(progress.share() == 1);
  CHECK(progress.line().num_done == 4);
  CHECK(progress.line().num_requests == 4);
  CHECK(progress.line().output_tokens == expected);
  std::int64_t cached = 0;
  for (int id = 0; id < 4; ++id) cached += engine->request(id).num_cached;
  CHECK(progress.line().prompt_tokens == 4 * 9 - cached);
}

}  // namespace
