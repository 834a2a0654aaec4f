// The limit of a run: what its steps would take if each moved its bytes and did its FLOPs at measured ceilings.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "engine/files/model_config.hpp"
#include "engine/step_shape.hpp"

namespace bench {

/// Of the machine, measured in the same run.
struct Ceilings {
  double bytes_per_second = 0;  // reading memory
  double flops_per_second = 0;  // multiplying large matrices
};

/// What steps cost on a machine that keeps everything else for nothing: weights are read once a step, K and V of every
/// token once, and activations and logits never leave the chip.
struct StepCosts {
  double layer_bytes = 0;  // a step
  double head_bytes = 0;   // a step that wants logits
  double kv_bytes = 0;     // a key
  double row_flops = 0, logit_row_flops = 0, pair_flops = 0;

  double bytes(const engine::StepShape& step) const {
    return layer_bytes + (step.num_logit_rows > 0 ? head_bytes : 0) + kv_bytes * static_cast<double>(step.num_keys);
  }
  double flops(const engine::StepShape& step) const {
    return row_flops * static_cast<double>(step.num_rows) + logit_row_flops * static_cast<double>(step.num_logit_rows) +
           pair_flops * static_cast<double>(step.num_pairs);
  }
};

inline StepCosts step_costs(const engine::ModelConfig& config, int weight_bytes, std::int64_t kv_bytes_per_token) {
  const double hidden = config.hidden, head_dim = config.head_dim, layers = config.num_layers;
  const double q_width = config.q_heads * head_dim, kv_width = config.kv_heads * head_dim;
  const double layer = hidden * (2 * q_width + 2 * kv_width + 3. * config.intermediate), head = hidden * config.vocab;
  return {.layer_bytes = layers * layer * weight_bytes,
          .head_bytes = head * weight_bytes,
          .kv_bytes = static_cast<double>(kv_bytes_per_token),
          .row_flops = 2 * layers * layer,
          .logit_row_flops = 2 * head,
          .pair_flops = 4 * layers * q_width};
}

/// Seconds, and how they divide among steps that wait for memory and steps that compute.
struct Limit {
  double memory_seconds = 0, compute_seconds = 0;
  std::int64_t num_steps = 0;

  double seconds() const { return memory_seconds + compute_seconds; }
};

inline Limit limit_of(std::span<const engine::StepShape> steps, const StepCosts& costs, const Ceilings& ceilings) {
  Limit limit;
  for (const engine::StepShape& step : steps) {
    const double memory = costs.bytes(step) / ceilings.bytes_per_second;
    const double compute = costs.flops(step) / ceilings.flops_per_second;
    (memory >= compute ? limit.memory_seconds : limit.compute_seconds) += std::max(memory, compute);
    ++limit.num_steps;
  }
  return limit;
}

}  // namespace bench
