// StackSize: how much stack new threads get while it lives.
#pragma once

#include <pthread.h>

#include <cstddef>

namespace engine_test {

class StackSize {
 public:
  /// More than there is room for: no thread starts.
  explicit StackSize(std::size_t bytes) {
    pthread_getattr_default_np(&usual_);
    pthread_attr_t other;
    pthread_attr_init(&other);
    pthread_attr_setstacksize(&other, bytes);
    pthread_setattr_default_np(&other);
    pthread_attr_destroy(&other);
  }
  ~StackSize() {
    pthread_setattr_default_np(&usual_);
    pthread_attr_destroy(&usual_);
  }
  StackSize(const StackSize&) = delete;
  StackSize& operator=(const StackSize&) = delete;

 private:
  pthread_attr_t usual_;
};

}  // namespace engine_test
