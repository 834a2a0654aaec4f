// Requests that are pushed out keep their K and V in host memory, and go on where they were.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "support/fake_engine.hpp"

using namespace engine;
using namespace pagedkv_test;

namespace {

// Swaps where it can; requests need more blocks than there are.
EngineOptions tight(int num_blocks, int num_host_blocks, bool run_ahead = false) {
  return {.num_blocks = num_blocks,
          .block_size = 2,
          .prefix_cache = false,
          .run_ahead = run_ahead,
          .scheduler = {.preemption = Preemption::swap},
          .num_host_blocks = num_host_blocks};
}

// Counts what moves, and lets nobody move a block twice in one step.
class CountingModel final : public FakeModel {
 public:
  using FakeModel::FakeModel;
  void swap_out(std::span<const pagedkv::BlockPair> blocks) override {
    num_out += std::ssize(blocks);
    check(blocks);
    FakeModel::swap_out(blocks);
  }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) override {
    num_in += std::ssize(blocks);
    check(blocks);
    FakeModel::swap_in(blocks);
  }
  std::ptrdiff_t num_out = 0, num_in = 0;

 private:
  static void check(std::span<const pagedkv::BlockPair> blocks) {
    std::set<pagedkv::BlockId> sources, destinations;
    for (const auto& [source, destination] : blocks)
      CHECK((sources.insert(source).second && destinations.insert(destination).second));
  }
};

class ModelWithoutSwap final : public FakeModel {
 public:
  using FakeModel::FakeModel;
  void swap_out(std::span<const pagedkv::BlockPair> blocks) override { LanguageModel::swap_out(blocks); }
};

int num_different_blocks(const Request& request) {
  std::set<pagedkv::BlockId> ids;
  for (const Branch& branch : request.branches) ids.insert(branch.kv.blocks().begin(), branch.kv.blocks().end());
  return static_cast<int>(ids.size());
}

}  // namespace

TEST_CASE("who was swapped out recomputes nothing: every token has its row once") {
  for (const bool run_ahead : {false, true})
    for (const int max_batched_tokens : {3, 512}) {
      EngineOptions options = tight(12, 40, run_ahead);
      options.scheduler.max_batched_tokens = max_batched_tokens;
      FakeEngine engine(options);
      for (int i = 0; i < 4; ++i) engine->submit(prompt_of(6, i), {.max_tokens = 12});
      engine->run();
      CHECK(engine->stats().num_swaps >= 3);
      CHECK(engine->stats().num_swaps == engine->stats().num_preemptions);
      CHECK(engine.model.num_rows() == 4 * (6 + 12 - 1));
      for (int i = 0; i < 4; ++i) CHECK(engine.generated(i) == expected_of(prompt_of(6, i), 12));
    }
}

TEST_CASE("a prompt that was swapped out half-way goes on with its next chunk") {
  EngineOptions options = tight(13, 40);
  options.scheduler.max_batched_tokens = 4;
  FakeEngine engine(options);
  engine->submit(prompt_of(3), {.max_tokens = 18});
  const int id = engine->submit(prompt_of(20, 5), {.max_tokens = 2});
  while (engine->request(id).num_preempted == 0) engine->step();
  CHECK(engine->request(id).interrupted == State::trunk);
  engine->run();
  CHECK(engine.generated(id) == expected_of(prompt_of(20, 5), 2));
  CHECK(engine.model.num_rows() == 3 + 17 + 20 + 1);
}

TEST_CASE("who has just come back is not pushed out again before its bytes are there") {
  EngineOptions options = tight(8, 40, true);
  options.scheduler.max_batched_tokens = 4;
  FakeEngine engine(options);
  engine->submit(prompt_of(4), {.max_tokens = 8});
  const int gone = engine->submit(prompt_of(4, 3), {.max_tokens = 12});
  const int id = engine->submit(prompt_of(14, 7), {.max_tokens = 2});
  for (int i = 0; i < 8; ++i) engine->step();  // the first one's last token is awaited, and its blocks are still taken
  CHECK(engine->request(id).interrupted == State::trunk);
  engine->abort(gone);
  engine->run();
  CHECK(engine.generated(id) == expected_of(prompt_of(14, 7), 2));
}

TEST_CASE("blocks that samples share go once, and are shared again when they are back") {
  CountingModel model(vocab, 20, 2, 40);
  Engine engine(tiny_config(false), model, tight(20, 40));
  const SamplingParams params{.max_tokens = 10, .n = 3, .temperature = 1, .seed = 5};
  const int old_id = engine.submit(prompt_of(4, 9), {.max_tokens = 24});
  const int id = engine.submit(prompt_of(8), params);
  int num_before = 0;
  for (; engine.request(id).num_preempted == 0; engine.step()) num_before = num_different_blocks(engine.request(id));
  CHECK(engine.request(id).branches[1].kv.blocks()[3] == engine.request(id).branches[2].kv.blocks()[3]);
  CHECK(num_different_blocks(engine.request(id)) == num_before);
  CHECK(model.num_out == num_before);
  CHECK(engine.swap_space().num_free() == 40 - num_before);
  engine.check_integrity();
  while (engine.request(id).state == State::waiting) engine.step();
  CHECK(model.num_in == num_before);
  CHECK(engine.swap_space().num_free() == 40);
  CHECK(engine.request(id).branches[1].kv.blocks()[3] == engine.request(id).branches[2].kv.blocks()[3]);
  engine.run();
  const auto text = [&](int request, std::size_t sample) {
    const Request& served = engine.request(request);
    const Tokens& tokens = served.branches[sample].tokens;
    return Tokens(tokens.begin() + served.prompt_len, tokens.end());
  };
  CHECK(text(old_id, 0) == expected_of(prompt_of(4, 9), 24));
  for (int sample = 0; sample < 3; ++sample)
    CHECK(text(id, static_cast<std::size_t>(sample)) == expected_of(prompt_of(8), params, sample));
}

TEST_CASE("beams are the same after they were swapped") {
  const SamplingParams params{.max_tokens = 14, .beam_width = 3};
  FakeEngine roomy({.num_blocks = 96, .block_size = 2}, true);
  const int alone = roomy->submit(prompt_of(7), params);
  roomy->run();
  FakeEngine engine(tight(24, 40), true);
  engine->submit(prompt_of(20, 4), {.max_tokens = 14});
  const int id = engine->submit(prompt_of(7), params);
  engine->run();
  CHECK(engine->stats().num_swaps > 0);
  for (std::size_t beam = 0; beam < 3; ++beam) CHECK(engine.generated(id, beam) == roomy.generated(alone, beam));
}

TEST_CASE("where the host has no room either, a request recomputes") {
  for (const int num_host_blocks : {0, 2, 5, 7}) {
    FakeEngine engine(tight(12, num_host_blocks));
    for (int i = 0; i < 4; ++i) engine->submit(prompt_of(6, i), {.max_tokens = 12});
    engine->run();
    CHECK(engine->stats().num_swaps < engine->stats().num_preemptions);
    CHECK((engine->stats().num_swaps > 0) == (num_host_blocks >= 5));
    for (int i = 0; i < 4; ++i) CHECK(engine.generated(i) == expected_of(prompt_of(6, i), 12));
    CHECK(engine->swap_space().num_free() == num_host_blocks);
  }
}

TEST_CASE("an aborted or stopped request gives its blocks of the host back at once") {
  for (const bool stops : {false, true}) {
    FakeEngine engine(tight(12, 40));
    for (int i = 0; i < 2; ++i) engine->submit(prompt_of(6, i), {.max_tokens = 12});
    while (engine->stats().num_swaps == 0) engine->step();
    CHECK(engine->swap_space().num_free() < 40);
    if (stops)
      engine->stop(1, 0);
    else
      engine->abort(1);
    CHECK(engine->swap_space().num_free() == 40);
    engine->check_integrity();
    engine->run();
    CHECK(engine.generated(0) == expected_of(prompt_of(6, 0), 12));
  }
}

TEST_CASE("prefixes that were published stay in the cache while their request is away, and come back as duplicates") {
  EngineOptions options = tight(14, 40);
  options.prefix_cache = true;
  FakeEngine engine(options);
  for (int i = 0; i < 2; ++i) engine->submit(prompt_of(6, i), {.max_tokens = 14});
  while (engine->stats().num_swaps == 0) engine->step();
  CHECK(engine->blocks().num_idle() > 0);
  engine->run();
  for (int i = 0; i < 2; ++i) CHECK(engine.generated(i) == expected_of(prompt_of(6, i), 14));
}

TEST_CASE("a model that cannot swap says so") {
  ModelWithoutSwap model(vocab, 12, 2, 40);
  Engine engine(tiny_config(false), model, tight(12, 40));
  for (int i = 0; i < 2; ++i) engine.submit(prompt_of(6, i), {.max_tokens = 12});
  CHECK_THROWS_WITH_AS(engine.run(), "LanguageModel: swapping is not supported by this model", pagedkv::Error);
}
