// FakeEngine: an engine around FakeModel, whose integrity is checked when it goes, and the texts to expect of it.
#pragma once

#include <doctest/doctest.h>

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

  explicit FakeEngine(const engine::EngineOptions& options, bool with_eos = false)
      : model(vocab, options.num_blocks, options.block_size), engine(tiny_config(with_eos), model, options) {}
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
inline Tokens expected_of(const Tokens& prompt, const engine::SamplingParams& params, int index,
                          bool with_eos = false) {
  engine::Sampler sampler;
  Tokens tokens = prompt;
  do {
    tokens.push_back(sampler.choose(FakeModel::logits_of(tokens, vocab), tokens, params, index).token);
  } while (std::ssize(tokens) < std::ssize(prompt) + params.max_tokens && !(with_eos && tokens.back() == eos));
  return {tokens.begin() + std::ssize(prompt), tokens.end()};
}

}  // namespace pagedkv_test
