// OpenSteps: the step plans that are filled but not committed, by serial number.
#pragma once

#include <cstdint>
#include <vector>

namespace pagedkv {
inline namespace v0 {

class StepPlan;

namespace detail {

/// Few at a time, so a list. A sequence names its step by serial and so learns of the commit without the plan knowing
/// any sequence.
class OpenSteps {
 public:
  bool empty() const { return steps_.empty(); }

  /// Makes room, so that the next open() does not throw.
  void reserve() {
    if (steps_.size() == steps_.capacity()) steps_.reserve(2 * steps_.size() + 1);
  }

  /// Returns the serial number of the step; 0 is none's.
  std::uint64_t open(StepPlan& plan) {
    steps_.push_back({next_serial_, &plan});
    return next_serial_++;
  }

  void close(std::uint64_t serial) {
    std::erase_if(steps_, [serial](const Step& step) { return step.serial == serial; });
  }

  /// Null if it is closed.
  StepPlan* find(std::uint64_t serial) const {
    for (const Step& step : steps_)
      if (step.serial == serial) return step.plan;
    return nullptr;
  }

  /// While one is open. Serials grow: what has a smaller one is closed.
  std::uint64_t oldest() const { return steps_.front().serial; }

 private:
  struct Step {
    std::uint64_t serial;
    StepPlan* plan;
  };

  std::vector<Step> steps_;
  std::uint64_t next_serial_ = 1;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
