// check(): a failed CUDA call becomes an exception that says what was being done.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>
#include <string_view>

#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Throws CudaError "<what>: <name>, <message> (file:line)" unless `status` is cudaSuccess.
inline void check(cudaError_t status, std::string_view what,
                  const std::source_location location = std::source_location::current()) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw CudaError(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status) +
                  pagedkv::detail::where(location));
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
