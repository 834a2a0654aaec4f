// AllocationFailures: lets the n-th allocation from now on fail, in a test that counts them in its operator new.
#pragma once

namespace pagedkv_test {

struct AllocationFailures {
  static inline bool is_on = false;  // the oracle lets each allocation of each call fail once
  static inline int num_left = -1;   // allocations that succeed before one fails; negative: no limit
  static inline long num_failed = 0;
  static inline long num_refused_for_blocks = 0;

  /// For operator new.
  static bool is_due() {
    if (num_left < 0 || num_left-- > 0) return false;
    ++num_failed;
    return true;
  }
};

}  // namespace pagedkv_test
