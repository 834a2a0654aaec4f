// The whole library without exceptions: running out of blocks is still a value, and a broken precondition reaches
// PAGEDKV_FAIL with its message. Exits with 0 if it does.
#include <cstdlib>
#include <cstring>

[[noreturn]] inline void fail(const char* message) {
  std::exit(std::strstr(message, "Sequence::truncate: num_tokens at most 3 expected, 4 given") != nullptr ? 0 : 1);
}
#define PAGEDKV_FAIL(message) fail(message)
#include "pagedkv/pagedkv.hpp"

#ifndef PAGEDKV_NO_EXCEPTIONS
#error "compiled with exceptions"
#endif

int main() {
  using namespace pagedkv;
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  PrefixCache prefixes{blocks};
  Sequence sequence{blocks};
  StepPlan step;
  if (sequence.append(9, step) || !sequence.append(3, step)) return 2;
  step.commit();
  sequence.truncate(4);
  return 3;
}
