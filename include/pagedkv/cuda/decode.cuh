// Public entry of decode: attention for few queries against long caches (and, correct if slow, for any ragged batch).
#pragma once

#include <cuda_runtime_api.h>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/kernels/decode_schedule.hpp"
#include "pagedkv/cuda/kernels/decode_simt.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// What decode() would launch for these bounds.
template <class Problem>
DecodeSchedule schedule_for(const DecodePolicy& policy, const Problem& problem, const Workspace& workspace) {
  const bool partials_fit = problem.head_dim_v() <= workspace.options().head_dim_v;
  return schedule_decode(policy, problem.tables, {problem.num_tokens(), problem.q_heads(), problem.kv_heads()},
                         workspace.device().num_sms, partials_fit ? workspace.options().max_partials : 0);
}

}  // namespace detail

/// Attention of problem.q [num_tokens, q_heads, HeadDim] over the paged cache into problem.out [num_tokens, q_heads,
/// HeadDimV] and, where wanted, problem.lse. Enqueues one kernel: no allocation, no synchronisation, can be captured in
/// a graph and replayed with other lengths and tables within the stated bounds. The bits of a row depend on that row
/// alone. Throws InvalidArgument, before launching, where the problem is inconsistent or HeadDim is not its own.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void decode(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, Workspace& workspace,
            cudaStream_t stream) {
  constexpr DecodePolicy policy = choose_decode(min_arch, HeadDim, sizeof(KV));
  constexpr KernelShape shape{.head_dim = HeadDim, .head_dim_v = HeadDimV};
  static_assert(is_supported(policy, shape), "decode: head_dim and head_dim_v must be 1 to 256");
  problem.validate();
  require(problem.head_dim() == HeadDim, "decode: head_dim", HeadDim, problem.head_dim());
  require(problem.head_dim_v() == HeadDimV, "decode: head_dim_v", HeadDimV, problem.head_dim_v());
  decode_simt<DecodeSimtConfig<HeadDim, HeadDimV, policy>>(
      problem, variant, detail::schedule_for(policy, problem, workspace), workspace.partials(), stream);
}

/// The same for a head_dim known at run time, one of those named; head_dim_v is equal.
template <int... Dims, StorageType Q, StorageType KV, StorageType O, VariantFor<Space::device> V>
void decode(HeadDims<Dims...> dims, const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant,
            Workspace& workspace, cudaStream_t stream) {
  with_head_dim(dims, problem.head_dim(), "decode",
                [&](auto head_dim) { decode<head_dim.value>(problem, variant, workspace, stream); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
