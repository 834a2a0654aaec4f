// launch(): how every kernel of the library is put on a stream; Launch says whether it may overlap the one in front.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string_view>
#include <type_traits>

#include "pagedkv/cuda/error.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// May a kernel start before the kernel in front of it on its stream has ended? With `overlap_previous` (programmatic
/// dependent launch, from compute capability 9.0 on; elsewhere the same as after_previous) it starts early and waits
/// before it reads Q, K or V or writes anything. Block tables, lengths and slots it reads at once: they must come from
/// an upload or from a kernel that ended before any overlapping launch behind it.
///
/// Two kernels of one call may also run side by side (attend()): the second is launched with overlap_previous and never
/// waits before it works. That is right where all of this holds:
///   - every CTA of the first waits for its own predecessor and only then lets its dependents go: what the second
///     reads, and the scratch memory that it writes, was left by kernels that have ended when its first CTA starts;
///   - they write different rows and different scratch memory, and neither reads what the other writes;
///   - one CTA of the second waits before it ends: so the second ends after the first, and whoever is behind both, with
///     or without overlap, need only wait for the second.
enum class Launch { after_previous, overlap_previous };

struct LaunchShape {
  dim3 grid;
  int threads;
  std::size_t shared_bytes = 0;
};

namespace detail {

/// Has the code that this GPU runs the instruction that waits? A GPU of compute capability 9.0 may also run code that
/// was translated from PTX for an older one, which would start early and never wait. The driver is asked once for
/// kernels that a thread launches in a row.
template <class... Parameters>
bool can_overlap(void (*kernel)(Parameters...)) {
  thread_local struct {
    int device = -1;
    void (*kernel)(Parameters...) = nullptr;
    bool answer = false;
  } last;
  int device = 0;
  check(cudaGetDevice(&device), "launch");
  if (device != last.device || kernel != last.kernel) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "launch");
    last = {device, kernel, attributes.ptxVersion >= 90};
  }
  return last.answer;
}

}  // namespace detail

/// Enqueues `kernel(arguments...)`. Shared memory beyond 48 KiB must have been asked for with cudaFuncSetAttribute.
/// Throws CudaError, with `what` in front, where the launch fails.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Launch mode, cudaStream_t stream,
            std::string_view what, const std::type_identity_t<Parameters>&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = mode == Launch::overlap_previous && detail::can_overlap(kernel) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
