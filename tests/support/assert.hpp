// Included by force before every test file: a failed PAGEDKV_ASSERT throws, so that a test can expect it.
#pragma once

#include <stdexcept>
#include <string>

namespace pagedkv_test {

/// The library found itself wrong.
class AssertionFailed : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void assertion_failed(const char* condition, const char* file, int line) {
  throw AssertionFailed(std::string(condition) + " (" + file + ":" + std::to_string(line) + ")");
}

}  // namespace pagedkv_test

#if defined(__CUDA_ARCH__)
#include <cassert>
#define PAGEDKV_ASSERT(condition) assert(condition)
#else
#define PAGEDKV_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::pagedkv_test::assertion_failed(#condition, __FILE__, __LINE__))
#endif
