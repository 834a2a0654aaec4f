// decode under any rule, compiled once (decode_entry.cu) for all tests that ask about something else.
#pragma once

#include <cuda_runtime_api.h>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "support/runtime_rule.hpp"
#include "support/tolerance.hpp"

namespace pagedkv_test {

using DeviceRule = RuntimeRule<pagedkv::Space::device>;
using DecodeProblem = pagedkv::AttentionProblem<pagedkv::Space::device, pagedkv::bf16>;

/// head_dim 64 or 128, that of the problem.
void decode(const DecodeProblem& problem, const DeviceRule& rule, pagedkv::cuda::Workspace& workspace,
            cudaStream_t stream = nullptr, const pagedkv::cuda::DecodeOptions& options = {});

/// How near decode comes to the reference where it multiplies weights as O; logits up to `largest_logit`.
template <class O = pagedkv::bf16>
constexpr Tolerance decode_tolerance(double largest_logit = 16) {
  return out_tolerance<O>(rounding_unit<O>(), largest_logit);
}

}  // namespace pagedkv_test
