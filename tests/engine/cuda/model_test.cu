// The GPU model as the engine drives it: steps launched ahead, tokens fed on the device, graphs replayed; against the
// same model without graphs, and against logits that the host samples from.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "engine/cuda/device_memory.hpp"
#include "engine/cuda/step_size.hpp"
#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/language_model.hpp"
#include "engine/sampler.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/error.hpp"

using namespace engine;

namespace {

const ModelOptions sizes{.num_blocks = 400,
                         .block_size = 16,
                         .max_rows = 256,
                         .max_seqs = 24,
                         .max_blocks_per_seq = 128,
                         .max_logit_rows = 24};

const ModelConfig& austen_config() {
  static const ModelConfig config = ModelConfig::load(std::filesystem::path(PAGEDKV_MODELS_DIR) / "austen-5m");
  return config;
}

std::unique_ptr<LanguageModel> make_model(bool use_graphs) {
  ModelOptions options = sizes;
  options.use_graphs = use_graphs;
  static const Checkpoint weights = Checkpoint::open(std::filesystem::path(PAGEDKV_MODELS_DIR) / "austen-5m");
  auto model = make_cuda_model(austen_config(), weights, options);
  REQUIRE(model != nullptr);
  return model;
}

// What samples of one prompt may ask for; every third is greedy.
SamplingParams params_of(int member) {
  const std::array<SamplingParams, 5> table = {SamplingParams{},
                                               {.temperature = 0.8f, .seed = 5},
                                               {.temperature = 1, .top_k = 20, .top_p = 0.9f, .seed = 6},
                                               {},
                                               {.temperature = 1.3f, .min_p = 0.02f, .seed = 7}};
  return table[static_cast<std::size_t>(member) % table.size()];
}

/// Prompts of many lengths, then decode steps in which members leave, are forked and bring prompts, planned without
/// looking at a token: `launch(batch)` and `collect()` may come in any order that a model allows.
template <class Launch>
void tell_story(int num_members, int num_steps, Launch&& launch) {
  pagedkv::BlockAllocator blocks{{.num_blocks = sizes.num_blocks, .block_size = sizes.block_size}};
  struct Member {
    pagedkv::Sequence kv;
    SamplingParams params;
    int id;
    std::int32_t next;  // what the step before chose for it, as a token of that draw
  };
  std::deque<Member> members;
  std::mt19937 generator(21);
  int num_joined = 0;
  for (int i = 0; i < num_steps; ++i) {
    pagedkv::StepPlan plan;
    pagedkv::BatchTables tables(
        {.max_seqs = sizes.max_seqs, .max_blocks_per_seq = sizes.max_blocks_per_seq, .block_size = sizes.block_size});
    std::vector<std::int32_t> tokens, positions, logit_rows;
    std::vector<Draw> draws;
    const auto add = [&](Member& member, int count, const auto& token_at) {
      REQUIRE(member.kv.append(count, plan));
      tables.add(member.kv, count);
      for (int position = member.kv.size() - count; position < member.kv.size(); ++position) {
        tokens.push_back(token_at(position));
        positions.push_back(position);
      }
      member.next = token_of_draw(static_cast<int>(draws.size()));
      draws.push_back({.logit_row = static_cast<int>(logit_rows.size()),
                       .params = &member.params,
                       .sample = member.id,
                       .position = member.kv.size()});
      logit_rows.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
    };
    if (i > 0 && i % 6 == 5 && members.size() > 1) members.pop_front();
    for (Member& member : members) add(member, 1, [&](int) { return member.next; });
    const bool is_late = i % 9 == 4 && static_cast<int>(members.size()) < sizes.max_seqs;  // a prompt beside tokens
    for (int n = 0; n < (i == 0 ? num_members : is_late ? 1 : 0); ++n) {
      members.push_back({pagedkv::Sequence{blocks}, params_of(num_joined), num_joined, 0});
      ++num_joined;
      add(members.back(), 1 + static_cast<int>(generator() % 12),
          [&](int) { return static_cast<std::int32_t>(generator() % 4096); });
    }
    const bool is_forked = i % 4 == 3 && static_cast<int>(members.size()) < sizes.max_seqs;  // two draws of one row
    Member& parent = members.front();
    if (is_forked)
      draws.push_back({.logit_row = 0, .params = &parent.params, .sample = 100 + i, .position = parent.kv.size()});
    launch(Batch{.tokens = tokens,
                 .positions = positions,
                 .plan = plan,
                 .tables = tables.view(),
                 .logit_rows = logit_rows,
                 .draws = draws});
    plan.commit();
    if (is_forked)  // the next step copies the block that both go on in
      members.push_back({parent.kv.fork(), parent.params, 100 + i, token_of_draw(static_cast<int>(draws.size()) - 1)});
  }
}

using Steps = std::vector<std::vector<Choice>>;

std::vector<Choice> copy(std::span<const Choice> choices) { return {choices.begin(), choices.end()}; }

/// All choices, collected `ahead` steps behind the launch.
Steps run(LanguageModel& model, int num_members, int num_steps, int ahead) {
  Steps steps;
  int num_launched = 0;
  tell_story(num_members, num_steps, [&](const Batch& batch) {
    model.launch(batch);
    if (++num_launched > ahead) steps.push_back(copy(model.collect()));
  });
  while (static_cast<int>(steps.size()) < num_steps) steps.push_back(copy(model.collect()));
  return steps;
}

bool same_bits(const Steps& a, const Steps& b) {
  const auto same = [](const Choice& x, const Choice& y) {
    return x.token == y.token && std::bit_cast<std::uint64_t>(x.logprob) == std::bit_cast<std::uint64_t>(y.logprob);
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const auto& x, const auto& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
  });
}

}  // namespace

TEST_CASE("sizes of padded steps hold every number of rows, and are few") {
  for (const int max_rows : {1, 3, 8, 24, 100, 256, 1000}) {
    const std::vector<int> all = padded_steps(max_rows);
    CHECK(std::is_sorted(all.begin(), all.end()));
    CHECK(all.back() == max_rows);
    for (int n = 1; n <= max_rows; ++n) {
      const int size = padded_step(n, max_rows);
      CHECK((size >= n && size <= max_rows));
      CHECK(std::binary_search(all.begin(), all.end(), size));
      CHECK(padded_step(size, max_rows) == size);
    }
  }
  CHECK(padded_steps(256).size() == 20);
}

TEST_CASE("a replayed graph leaves the bits of the same operations one by one, also where steps run ahead") {
  const auto graphs = make_model(true), eager = make_model(false);
  for (const int num_members : {1, 2, 5, 8, 11, 20}) {
    CAPTURE(num_members);
    const Steps expected = run(*eager, num_members, 40, 0);
    CHECK(same_bits(run(*graphs, num_members, 40, 0), expected));
    CHECK(same_bits(run(*graphs, num_members, 40, 1), expected));
    CHECK(same_bits(run(*eager, num_members, 40, 1), expected));
  }
}

TEST_CASE("launch and collect choose what the host chooses from the logits of forward") {
  const auto launched = make_model(true), forwarded = make_model(true);
  for (const int num_members : {3, 17}) {
    CAPTURE(num_members);
    Steps expected;
    tell_story(num_members, 40, [&](const Batch& batch) {
      forwarded->LanguageModel::launch(batch);  // forward, then Sampler
      expected.push_back(copy(forwarded->LanguageModel::collect()));
    });
    const Steps got = run(*launched, num_members, 40, 1);
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      REQUIRE(got[i].size() == expected[i].size());
      for (std::size_t draw = 0; draw < got[i].size(); ++draw) {
        CAPTURE(draw);
        REQUIRE(got[i][draw].token == expected[i][draw].token);
        CHECK(std::abs(got[i][draw].logprob - expected[i][draw].logprob) < 1e-5);
      }
    }
  }
}

TEST_CASE("two steps may wait to be collected, a third is refused and changes nothing") {
  const auto model = make_model(true);
  const Steps expected = run(*model, 4, 12, 0);
  CHECK_THROWS_AS(static_cast<void>(model->collect()), pagedkv::InvalidArgument);
  Steps steps;
  int num_launched = 0;
  tell_story(4, 12, [&](const Batch& batch) {
    if (num_launched - static_cast<int>(steps.size()) == 2) {
      CHECK_THROWS_AS(model->launch(batch), pagedkv::InvalidArgument);
      steps.push_back(copy(model->collect()));
    }
    model->launch(batch);
    ++num_launched;
  });
  while (steps.size() < 12) steps.push_back(copy(model->collect()));
  CHECK(same_bits(steps, expected));
}

TEST_CASE("what a model takes of the GPU's memory can be told before") {
  static_cast<void>(make_model(true));  // the context, and CUDA's own memory
  const ModelMemory told = cuda_model_memory(austen_config(), sizes);
  const std::size_t before = device_memory().free;
  const auto model = make_model(true);
  const std::size_t taken = before - device_memory().free;
  const auto pool = static_cast<std::size_t>(model->kv_bytes_per_token()) * std::size_t{400} *
                    static_cast<std::size_t>(sizes.block_size);
  CHECK(taken <= told.total() + pool);
  CHECK(taken + (std::size_t{64} << 20) >= told.weights + told.activations + pool);
  CHECK(device_memory().total > before);
  MESSAGE("told " << told.weights << " + " << told.activations << " + " << told.code << ", pool " << pool << ", taken "
                  << taken);
}
