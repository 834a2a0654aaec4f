// this_device(): DeviceInfo of the GPU that the calling thread uses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/error.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Asks the driver, a few microseconds. Throws CudaError where there is no GPU.
inline DeviceInfo this_device() {
  int device = 0;
  check(cudaGetDevice(&device), "this_device");
  const auto attribute = [device](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "this_device");
    return value;
  };
  return {.arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          .num_sms = attribute(cudaDevAttrMultiProcessorCount),
          .shared_bytes_per_cta = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
