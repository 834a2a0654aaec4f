// Running out of blocks cannot be overlooked.
// error: ignoring return value
#pragma GCC diagnostic error "-Wunused-result"
#include "pagedkv/cache/sequence.hpp"

#ifdef MUST_COMPILE
bool grow(pagedkv::Sequence& sequence, pagedkv::StepPlan& step) { return sequence.append(1, step); }
#else
void grow(pagedkv::Sequence& sequence, pagedkv::StepPlan& step) { sequence.append(1, step); }
#endif
