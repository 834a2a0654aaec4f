// How the prefill benchmark times: short bursts of calls, as the peers were timed, or more than a second of them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>

#include "pagedkv/cuda/error.cuh"
#include "support/statistics.hpp"

namespace bench {

using pagedkv::cuda::check;

namespace detail {

/// Keeps the stream busy for some clock cycles.
template <int Cycles>
__global__ void wait_kernel() {
  const long long begin = clock64();
  while (clock64() - begin < Cycles) {
  }
}

}  // namespace detail

/// A GPU at its power limit runs slower the longer it works: figures of bursts and of seconds differ by up to a fifth,
/// and only those of one kind compare.
class Burst {
 public:
  static constexpr int warm_up = 3, timed = 21, calls = warm_up + timed;

  Burst() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "burst: stream");
    for (cudaEvent_t& event : events_) check(cudaEventCreate(&event), "burst: event");
  }
  ~Burst() {
    for (const cudaEvent_t event : events_) static_cast<void>(cudaEventDestroy(event));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  Burst(const Burst&) = delete;
  Burst& operator=(const Burst&) = delete;

  cudaStream_t stream() const { return stream_; }

  /// Enqueues call(i, stream) for i = 0 .. calls - 1 behind a rest; seconds of the last `timed`, an event pair around
  /// each. The GPU waits for a millisecond first, in which the host gets ahead: between short calls it never idles.
  template <class Call>
  Spread seconds(Call&& call) const {
    rest();
    detail::wait_kernel<2'000'000><<<1, 1, 0, stream_>>>();
    for (int i = 0; i < calls; ++i) {
      if (i >= warm_up) check(cudaEventRecord(start(i - warm_up), stream_), "burst");
      call(i, stream_);
      if (i >= warm_up) check(cudaEventRecord(stop(i - warm_up), stream_), "burst");
    }
    check(cudaStreamSynchronize(stream_), "burst");
    std::vector<double> samples;
    for (int i = 0; i < timed; ++i) samples.push_back(elapsed(start(i), stop(i)));
    return spread_of(samples);
  }

  /// Seconds a call, of as many back to back as fill `wanted` seconds if one takes `guess`.
  template <class Call>
  double sustained_seconds(double wanted, double guess, Call&& call) const {
    rest();
    const int count = std::max(calls, static_cast<int>(std::lround(wanted / guess)));
    for (int i = 0; i < warm_up; ++i) call(i, stream_);
    check(cudaEventRecord(start(0), stream_), "burst");
    for (int i = 0; i < count; ++i) call(i, stream_);
    check(cudaEventRecord(stop(0), stream_), "burst");
    check(cudaStreamSynchronize(stream_), "burst");
    return elapsed(start(0), stop(0)) / count;
  }

 private:
  /// What ran before has no part in the power that this may draw.
  static void rest() {
    check(cudaDeviceSynchronize(), "burst");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  static double elapsed(cudaEvent_t from, cudaEvent_t to) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, from, to), "burst");
    return milliseconds / 1e3;
  }
  cudaEvent_t start(int i) const { return events_[2 * static_cast<std::size_t>(i)]; }
  cudaEvent_t stop(int i) const { return events_[2 * static_cast<std::size_t>(i) + 1]; }

  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, 2 * timed> events_{};
};

}  // namespace bench
