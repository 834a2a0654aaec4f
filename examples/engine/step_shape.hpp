// StepShape: what a step had to read and to compute, and how long it took.
#pragma once

#include <cstdint>
#include <span>

namespace engine {

/// The work of one step, in counts that hold on any machine.
struct StepShape {
  std::int64_t num_rows = 0;        // tokens that pass the layers
  std::int64_t num_logit_rows = 0;  // that pass the head, too
  std::int64_t num_keys = 0;        // tokens whose K and V attention reads; what sequences share counts once
  std::int64_t num_pairs = 0;       // of a row and a key that it sees
  bool is_decode = false;           // a row for each sequence
  double seconds = 0;               // 0: not known, as of the last steps
};

/// Of the steps that only decode and whose time is known: what they read, weights once a step and each K and V once.
struct DecodeTraffic {
  std::int64_t num_steps = 0;
  double bytes = 0, seconds = 0;

  double bytes_per_second() const { return seconds > 0 ? bytes / seconds : 0; }
};

inline DecodeTraffic decode_traffic(std::span<const StepShape> steps, std::int64_t step_weight_bytes,
                                    std::int64_t kv_bytes_per_token) {
  DecodeTraffic traffic;
  for (const StepShape& step : steps) {
    if (!step.is_decode || step.seconds == 0) continue;
    ++traffic.num_steps;
    traffic.bytes += static_cast<double>(step_weight_bytes) + static_cast<double>(step.num_keys * kv_bytes_per_token);
    traffic.seconds += step.seconds;
  }
  return traffic;
}

}  // namespace engine
