// Attention over the paged cache, compiled apart from the rest of the decoder: a file for each rule.
#pragma once

#include <cuda_runtime_api.h>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/workspace.cuh"

namespace engine {

using AttentionOnGpu = pagedkv::AttentionProblem<pagedkv::Space::device, pagedkv::bf16>;

/// The sizes of a head that kernels are compiled for.
using GpuHeadDims = pagedkv::cuda::HeadDims<64, 128>;

/// cuda::attend behind a kernel that it may overlap: each query sees all keys up to its own position.
void attend_causal(const AttentionOnGpu& problem, pagedkv::cuda::Workspace& workspace, cudaStream_t stream);

/// The same, but only the `window` newest of them.
void attend_window(const AttentionOnGpu& problem, int window, pagedkv::cuda::Workspace& workspace, cudaStream_t stream);

}  // namespace engine
