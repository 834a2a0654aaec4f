// StepMeter: sees the batches of an engine, and notes the shape and the time of each step.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/language_model.hpp"
#include "engine/step_shape.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/ids.hpp"

namespace engine {

/// To be called with each batch as it is launched (EngineOptions::on_launch).
class StepMeter {
 public:
  /// `window`: keys that a row sees at most, 0: all. `lag`: 1 if the engine launches a step before it waits for the
  /// last one, so that the time between two launches is that of the step before.
  explicit StepMeter(int block_size, int window = 0, int lag = 0)
      : block_size_(block_size), window_(window), lag_(static_cast<std::size_t>(lag)) {}

  void observe(const Batch& batch) {
    const auto now = std::chrono::steady_clock::now();
    if (steps_.size() > lag_)
      steps_[steps_.size() - 1 - lag_].seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    steps_.push_back(shape_of(batch));
  }

  std::span<const StepShape> steps() const { return steps_; }
  void clear() { steps_.clear(); }

 private:
  StepShape shape_of(const Batch& batch) {
    StepShape shape{.num_rows = batch.num_live_rows(), .num_logit_rows = std::ssize(batch.logit_rows)};
    ++stamp_;
    for (int s = 0; s < batch.tables.num_seqs(); ++s) {
      const std::int64_t kv_len = batch.tables.kv_len(s), q_len = batch.tables.q_len(s);
      if (q_len == 0) continue;
      for (std::int64_t position = kv_len - q_len; position < kv_len; ++position)
        shape.num_pairs += window_ > 0 ? std::min(position + 1, std::int64_t{window_}) : position + 1;
      const std::int64_t first = window_ > 0 ? std::max(std::int64_t{0}, kv_len - q_len + 1 - window_) : 0;
      for (std::int64_t block = first / block_size_; block * block_size_ < kv_len; ++block)
        if (is_new(batch.tables.block_ids(s, block)))
          shape.num_keys += std::min((block + 1) * block_size_, kv_len) - std::max(block * block_size_, first);
    }
    shape.is_decode = shape.num_rows == batch.tables.num_seqs();
    return shape;
  }

  // Was the block not met in this step?
  bool is_new(std::int32_t block) {
    const auto i = static_cast<std::size_t>(block);
    if (stamps_.size() <= i) stamps_.resize(i + 1);
    return std::exchange(stamps_[i], stamp_) != stamp_;
  }

  std::int64_t block_size_;
  int window_;
  std::size_t lag_;
  std::vector<StepShape> steps_;
  std::vector<std::int64_t> stamps_;  // [blocks], of the step that read one last
  std::int64_t stamp_ = 0;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace engine
