// prefill() as the prefill benchmark calls it: bf16, Causal and Full, each head_dim compiled apart (prefill_entry.cu).
#pragma once

#include <cuda_runtime_api.h>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/workspace.cuh"
#include "support/prefill_shapes.hpp"

namespace bench {

using PrefillProblem = pagedkv::AttentionProblem<pagedkv::Space::device, pagedkv::bf16>;

/// HeadDim 64, 128 or 256, that of the problem.
template <int HeadDim>
void enqueue_prefill(const PrefillProblem& problem, bool causal, PrefillPath path, pagedkv::cuda::Workspace& workspace,
                     cudaStream_t stream);

}  // namespace bench
