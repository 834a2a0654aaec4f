// The limit of a run, on a model so small that every byte and every FLOP can be counted by hand.
#include <doctest/doctest.h>

#include <vector>

#include "bench/engine/limit.hpp"

namespace {

using namespace bench;
using engine::StepShape;

// Two layers: q [4, 3], k and v [2, 3] each, o [3, 4], gate and up [5, 3], down [3, 5]; head [7, 3].
engine::ModelConfig small() {
  engine::ModelConfig config;
  config.num_layers = 2;
  config.hidden = 3;
  config.intermediate = 5;
  config.vocab = 7;
  config.q_heads = 2;
  config.kv_heads = 1;
  config.head_dim = 2;
  return config;
}
constexpr double layer_weights = 12 + 2 * 6 + 12 + 3 * 15, head_weights = 21;

TEST_CASE("A step reads every layer, the head if it wants logits, and each key once") {
  const StepCosts costs = step_costs(small(), 2, 16);
  CHECK(costs.bytes({.num_rows = 1, .num_logit_rows = 1, .num_keys = 10}) ==
        2 * (2 * layer_weights + head_weights) + 160);
  CHECK(costs.bytes({.num_rows = 9, .num_logit_rows = 0, .num_keys = 9}) == 4 * layer_weights + 144);
}

TEST_CASE("A row multiplies every layer, a logit row the head, a pair its score and its value") {
  const StepCosts costs = step_costs(small(), 2, 16);
  CHECK(costs.flops({.num_rows = 1}) == 2 * 2 * layer_weights);
  CHECK(costs.flops({.num_logit_rows = 1}) == 2 * head_weights);
  CHECK(costs.flops({.num_pairs = 1}) == 2 * 2 * (2 + 2) * 2);  // layers, heads, score and value, multiply and add
  CHECK(costs.flops({.num_rows = 3, .num_logit_rows = 2, .num_pairs = 5}) ==
        3 * 4 * layer_weights + 2 * 2 * head_weights + 5 * 32);
}

TEST_CASE("Qwen3-0.6B reads 1.19 GB of weights in a step that decodes") {
  engine::ModelConfig config;
  config.num_layers = 28;
  config.hidden = 1024;
  config.intermediate = 3072;
  config.vocab = 151936;
  config.q_heads = 16;
  config.kv_heads = 8;
  config.head_dim = 128;
  const StepCosts costs = step_costs(config, 2, 114688);
  CHECK(costs.bytes({.num_logit_rows = 1}) == doctest::Approx(1.192e9).epsilon(.001));
  CHECK(costs.flops({.num_rows = 1, .num_logit_rows = 1}) == doctest::Approx(1.192e9).epsilon(.001));
}

TEST_CASE("Each step takes the longer of its reading and its computing") {
  const StepCosts costs{.layer_bytes = 100, .head_bytes = 0, .kv_bytes = 1, .row_flops = 10};
  const std::vector<StepShape> steps{{.num_rows = 1, .num_keys = 100},   // 200 bytes, 10 FLOPs
                                     {.num_rows = 50, .num_keys = 50}};  // 150 bytes, 500 FLOPs
  const Limit limit = limit_of(steps, costs, {.bytes_per_second = 100, .flops_per_second = 200});
  CHECK(limit.memory_seconds == 2);
  CHECK(limit.compute_seconds == 2.5);
  CHECK(limit.seconds() == 4.5);
  CHECK(limit.num_steps == 2);
}

}  // namespace
