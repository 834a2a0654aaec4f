// A step is carried out once: its plan cannot be copied.
// error: use of deleted function
#include "pagedkv/cache/step_plan.hpp"

#ifdef MUST_COMPILE
int rows(const pagedkv::StepPlan& step) { return step.num_rows(); }
#else
int rows(pagedkv::StepPlan& step) {
  pagedkv::StepPlan copy = step;
  return copy.num_rows();
}
#endif
