// attend_causal: the one place where attention without a window is compiled for the engine.
#include "engine/cuda/attention.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"

namespace engine {

void attend_causal(const AttentionOnGpu& problem, pagedkv::cuda::Workspace& workspace, cudaStream_t stream) {
  pagedkv::cuda::attend(GpuHeadDims{}, problem, pagedkv::Causal{}, workspace, stream,
                        {.launch = pagedkv::cuda::Launch::overlap_previous});
}

}  // namespace engine
