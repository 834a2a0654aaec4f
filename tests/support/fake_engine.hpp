// FakeEngine: an engine around FakeModel, whose integrity is checked when it goes, and the texts to expect of it.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/engine.hpp"
#include "engine/sampler.hpp"
#include "support/fake_model.hpp"

namespace pagedkv_test {

using Tokens = std::vector<std::int32_t>;

inline constexpr int vocab = 50, eos = 1, max_positions = 96;

inline engine::ModelConfig tiny_config(bool with_eos) {
  engine::ModelConfig config;
  config.vocab = vocab;
  config.max_positions = max_positions;
  if (with_eos) config.eos_ids = {eos};
  return config;
}

struct FakeEngine {
  FakeModel model;
  engine::Engine engine;

  explicit FakeEngine(const engine::EngineOptions& options, bool with_eos = false, int max_logit_rows = 1 << 20)
      : model(vocab, options.num_blocks, options.block_size, options.num_host_blocks, max_logit_rows),
        engine(tiny_config(with_eos), model, options) {}
  ~FakeEngine() { CHECK_NOTHROW(engine.check_integrity()); }

  engine::Engine* operator->() { return &engine; }
  Tokens generated(int id, std::size_t sample = 0) const {
    const engine::Request& request = engine.request(id);
    const Tokens& tokens = request.branches.at(sample).tokens;
    return {tokens.begin() + request.prompt_len, tokens.end()};
  }
  bool is_running(int id) const { return engine.request(id).state != engine::State::waiting; }
};

/// Different for each `first` below 50.
inline Tokens prompt_of(int length, int first = 2) {
  Tokens tokens(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = (first + static_cast<std::int32_t>(i * i)) % vocab;
  return tokens;
}

inline Tokens expected_of(const Tokens& prompt, int max_tokens, bool with_eos = false) {
  return FakeModel::continuation(prompt, max_tokens, vocab, with_eos ? eos : -1);
}

/// What sample `index` must generate: the oracle's logits, one token after the other.
inline Tokens expected_of(const Tokens& prompt, const engine::SamplingParams& params, int index, bool with_eos = false,
                          float habit = 0) {
  engine::Sampler sampler;
  Tokens tokens = prompt, end_ids = params.stop_ids;
  if (with_eos && !params.ignore_eos) end_ids.push_back(eos);
  const auto ends = [&](std::int32_t token) { return std::ranges::find(end_ids, token) != end_ids.end(); };
  do {
    const engine::Context context{tokens, static_cast<int>(prompt.size()), end_ids};
    tokens.push_back(sampler.choose(FakeModel::logits_of(tokens, vocab, habit), context, params, index).token);
  } while (std::ssize(tokens) < std::ssize(prompt) + params.max_tokens && !ends(tokens.back()));
  return {tokens.begin() + std::ssize(prompt), tokens.end()};
}

}  // namespace pagedkv_test
