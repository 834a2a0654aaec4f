// A problem whose memory lies on a device is not handed to the CPU.
// error: no matching function
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/attend.hpp"

template <pagedkv::Space S>
using Problem = pagedkv::AttentionProblem<S, float>;

#ifdef MUST_COMPILE
void attend(const Problem<pagedkv::Space::host>& problem) { pagedkv::cpu::attend(problem, pagedkv::Causal{}); }
#else
void attend(const Problem<pagedkv::Space::device>& problem) { pagedkv::cpu::attend(problem, pagedkv::Causal{}); }
#endif
