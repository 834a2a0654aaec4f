// prefill(): attention for sequences that bring many queries at once, on tensor cores: validates, chooses, launches.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/prefill_sm80.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

template <class Problem>
inline constexpr bool prefill_takes_types =
    (std::is_same_v<typename Problem::Query, bf16> || std::is_same_v<typename Problem::Query, f16>)&&std::is_same_v<
        typename Problem::Query, typename Problem::Element>&& std::is_same_v<typename Problem::Query,
                                                                             typename Problem::Output>;

}  // namespace detail

/// Can prefill() take this problem on this GPU, or why not? O(1), on the host.
template <class Problem>
Support prefill_support(const Problem& problem, const DeviceInfo& device) {
  if (!detail::prefill_takes_types<Problem>) return {"q, K, V and out must all be bf16 or all be f16"};
  const int head_dim = problem.head_dim(), head_dim_v = problem.head_dim_v();
  const Support support =
      is_supported(choose_prefill(device.arch, max(head_dim, head_dim_v), 2),
                   {.arch = device.arch, .head_dim = head_dim, .head_dim_v = head_dim_v}, device.shared_bytes_per_cta);
  if (!support) return support;
  if (!rows_aligned(problem.q, 16)) return {"rows of q must start at multiples of 16 bytes"};
  if (!rows_aligned(problem.kv.k, 16)) return {"rows of K must start at multiples of 16 bytes"};
  if (!rows_aligned(problem.kv.v, 16)) return {"rows of V must start at multiples of 16 bytes"};
  if (!rows_aligned(problem.out, 4)) return {"rows of out must start at multiples of 4 bytes"};
  return {};
}

namespace detail {

/// One CTA per tile of queries and query head, as many as a grid can have.
template <class Config, class Problem, AttentionVariant V>
void launch_prefill(const Problem& problem, const V& variant, cudaStream_t stream) {
  const AttentionPlan plan = make_plan(problem.tables, Config::query_tile, Config::key_tile, 1, 1);
  const std::int64_t num_ctas =
      min(plan.num_tiles() * problem.q_heads(), std::int64_t{std::numeric_limits<std::int32_t>::max()});
  if (num_ctas == 0) return;
  constexpr std::size_t shared_bytes = sizeof(typename Config::SharedMemory);
  const auto kernel = attention_prefill_kernel<Config, Problem, V>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "prefill: shared memory");
  kernel<<<static_cast<unsigned>(num_ctas), Config::threads, shared_bytes, stream>>>(problem, variant, plan);
  check(cudaGetLastError(), "prefill: launch");
}

}  // namespace detail

/// Ragged queries against paged keys (FlashAttention-2, arXiv:2307.08691), any block size and both orders of a pool.
/// Made for many queries a sequence; one or none is right, too, but wastes most of a tile of 64. Rows of a tile
/// multiply the same values, hidden ones by 0: an Inf or NaN in V of a live key makes NaN of rows that do not see it,
/// too.
///   HeadDim, HeadDimV   multiples of 16 up to 256, of K and of V; q, K, V and out all bf16 or all f16
///   workspace           says which GPU; its memory is not used
/// Enqueues one kernel on `stream`; never allocates, never synchronises (so it can be captured in a graph; lengths and
/// tables are read when it runs). Reads K and V once per 64 queries and query head, through L2. Throws before
/// launching: InvalidArgument where problem.validate() or prefill_support() says no, CudaError where the launch fails.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void prefill(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, const Workspace& workspace,
             cudaStream_t stream) {
  static_assert(detail::prefill_takes_types<AttentionProblem<Space::device, Q, KV, O>>,
                "prefill takes q, K, V and out all bf16 or all f16");
  problem.validate();
  require(problem.head_dim() == HeadDim, "prefill: head_dim", HeadDim, problem.head_dim());
  require(problem.head_dim_v() == HeadDimV, "prefill: head_dim_v", HeadDimV, problem.head_dim_v());
  const Support support = prefill_support(problem, workspace.device());
  if (!support) pagedkv::detail::raise<InvalidArgument>(std::string("prefill: ") + support.reason);
  constexpr PrefillPolicy policy = choose_prefill(min_arch, max(HeadDim, HeadDimV), sizeof(Q));
  detail::launch_prefill<PrefillSm80Config<Q, HeadDim, HeadDimV, policy>>(problem, variant, stream);
}

/// The same for a head_dim known only at run time, one of those named; nothing else is compiled. head_dim_v is like
/// head_dim.
template <int... Dims, StorageType Q, StorageType KV, StorageType O, VariantFor<Space::device> V>
void prefill(HeadDims<Dims...> dims, const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant,
             const Workspace& workspace, cudaStream_t stream) {
  with_head_dim(dims, problem.head_dim(), "prefill",
                [&](auto head_dim) { prefill<head_dim.value>(problem, variant, workspace, stream); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
