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

/// Throws CudaError "<what>: <name>, <message> (file:line)" unless `status` is cudaSuccess. CUDA's own note of the
/// failure is cleared, where it can be: who catches the error may go on, and the next launch does not report it again.
inline void check(cudaError_t status, std::string_view what,
                  const std::source_location location = std::source_location::current()) {
  if (status == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());
  pagedkv::detail::raise<CudaError>(std::string(what) + ": " + cudaGetErrorName(status) + ", " +
                                    cudaGetErrorString(status) + pagedkv::detail::where(location));
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
