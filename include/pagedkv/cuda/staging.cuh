// StagedArray: a device array at a fixed address that the host refills every step without waiting for the last refill.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "pagedkv/core/error.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { static_cast<void>(cudaEventDestroy(event)); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

inline Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  return Event(event);
}

}  // namespace detail

/// Pinned buffers take turns, each guarded by an event: fill() may write what an upload in flight no longer reads. The
/// host waits only when it is `num_buffers` uploads ahead of the device.
class StagedArray {
 public:
  StagedArray(std::size_t size_bytes, int num_buffers) : device_(size_bytes) {
    require(num_buffers >= 2, "staging: buffers", "at least 2", num_buffers);
    for (int i = 0; i < num_buffers; ++i)
      buffers_.push_back({PinnedArray<std::byte>(size_bytes), detail::make_event()});
  }

  std::byte* device() const { return device_.data(); }

  /// Host memory of the array's size, holding anything: write it, then call upload. Kernels enqueued on `stream` in
  /// between may read it, too. Throws InvalidArgument while `stream` captures a graph: the graph would copy from memory
  /// that later steps overwrite.
  std::byte* fill(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status), "upload");
    require(status == cudaStreamCaptureStatusNone, "upload: stream", "one that captures no graph", "a capturing one");
    next_ = (next_ + 1) % buffers_.size();
    check(cudaEventSynchronize(buffers_[next_].uploaded.get()), "upload: wait for an earlier one");
    return buffers_[next_].host.data();
  }

  /// Enqueues the copy of the first `num_bytes` of what fill() returned last.
  void upload(std::size_t num_bytes, cudaStream_t stream) {
    const Buffer& buffer = buffers_[next_];
    check(cudaMemcpyAsync(device_.data(), buffer.host.data(), num_bytes, cudaMemcpyHostToDevice, stream), "upload");
    check(cudaEventRecord(buffer.uploaded.get(), stream), "upload");
  }

  /// Waits for the copies: they read memory that is about to go.
  ~StagedArray() {
    for (const Buffer& buffer : buffers_) static_cast<void>(cudaEventSynchronize(buffer.uploaded.get()));
  }
  StagedArray(const StagedArray&) = delete;
  StagedArray& operator=(const StagedArray&) = delete;

 private:
  struct Buffer {
    PinnedArray<std::byte> host;
    detail::Event uploaded;
  };

  DeviceArray<std::byte> device_;
  std::vector<Buffer> buffers_;
  std::size_t next_ = 0;
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
