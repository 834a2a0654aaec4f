// Owners of memory that CUDA gives: DeviceArray and PinnedArray, fixed size, freed when they die; an allocator for others.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "pagedkv/cuda/error.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

// Destructors do not throw: what cudaFree could report is an earlier kernel's failure, which the next call reports too.
struct FreeDevice {
  void operator()(void* data) const { static_cast<void>(cudaFree(data)); }
};
struct FreePinned {
  void operator()(void* data) const { static_cast<void>(cudaFreeHost(data)); }
};

}  // namespace detail

/// `size` elements of device memory, every byte `byte` when made. Allocates and synchronises: make it before the first step.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size, unsigned char byte = 0) : size_(size) {
    void* data = nullptr;
    check(cudaMalloc(&data, size_bytes()), "DeviceArray");
    data_.reset(static_cast<T*>(data));
    check(cudaMemset(data, byte, size_bytes()), "DeviceArray");
    // A memset of device memory may still be running when it returns, and streams made as non-blocking do not wait for
    // it.
    check(cudaDeviceSynchronize(), "DeviceArray");
  }

  T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::size_t size_bytes() const { return size_ * sizeof(T); }

 private:
  std::unique_ptr<T, detail::FreeDevice> data_;
  std::size_t size_ = 0;
};

/// `size` elements of pinned host memory, which copies to the device can read while the host goes on.
template <class T>
class PinnedArray {
 public:
  PinnedArray() = default;
  explicit PinnedArray(std::size_t size) : size_(size) {
    void* data = nullptr;
    check(cudaMallocHost(&data, size_bytes()), "PinnedArray");
    data_.reset(static_cast<T*>(data));
  }

  T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::size_t size_bytes() const { return size_ * sizeof(T); }

 private:
  std::unique_ptr<T, detail::FreePinned> data_;
  std::size_t size_ = 0;
};

/// Pinned host memory for containers.
template <class T>
struct PinnedAllocator {
  using value_type = T;

  PinnedAllocator() = default;
  template <class U>
  PinnedAllocator(const PinnedAllocator<U>&) {}

  T* allocate(std::size_t size) {
    void* data = nullptr;
    check(cudaMallocHost(&data, size * sizeof(T)), "PinnedAllocator");
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t) { detail::FreePinned{}(data); }

  friend bool operator==(const PinnedAllocator&, const PinnedAllocator&) { return true; }
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
