// attend_window: the one place where attention within a sliding window is compiled for the engine.
#include "engine/cuda/attention.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"

namespace engine {

void attend_window(const AttentionOnGpu& problem, int window, pagedkv::cuda::Workspace& workspace,
                   cudaStream_t stream) {
  pagedkv::cuda::attend(GpuHeadDims{}, problem, pagedkv::SlidingWindow{.window = window}, workspace, stream,
                        {.launch = pagedkv::cuda::Launch::overlap_previous});
}

}  // namespace engine
