// rope_frequencies: how fast rotary embedding turns each pair of a head's elements, one source for every back end.
#pragma once

#include <cmath>
#include <numbers>
#include <vector>

#include "engine/files/model_config.hpp"

namespace engine {

/// Radians a position, [head_dim / 2], rounded once from double. Plain: theta^(-2i / head_dim) (Su et al. 2021,
/// arXiv:2104.09864). Linear scaling divides all by the factor (Chen et al. 2023, arXiv:2306.15595). Llama 3 divides
/// those that turn seldom within the original length, keeps those that turn often and blends between (Grattafiori et
/// al. 2024, arXiv:2407.21783; the blend as Hugging Face's checkpoints expect it).
inline std::vector<float> rope_frequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto scaled = [&](double frequency) {
    if (scaling.kind == RopeScaling::Kind::none) return frequency;
    const double divided = frequency / scaling.factor;
    if (scaling.kind == RopeScaling::Kind::linear) return divided;
    const double num_turns = scaling.original_positions * frequency / (2 * std::numbers::pi);
    if (num_turns < scaling.low_freq_factor) return divided;
    if (num_turns > scaling.high_freq_factor) return frequency;
    const double kept = (num_turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    return (1 - kept) * divided + kept * frequency;
  };
  std::vector<float> frequencies;
  for (int i = 0; i < config.head_dim / 2; ++i)
    frequencies.push_back(static_cast<float>(scaled(std::pow(config.rope_theta, -2.0 * i / config.head_dim))));
  return frequencies;
}

}  // namespace engine
