// attend(): a mixed batch, prompts and single tokens together, by whichever kernel suits it; explain() says which and
// why.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Why a batch is not prefill's, in attend()'s view.
template <class Problem>
Support prefill_suits(const Problem& problem, const DeviceInfo& device) {
  if (problem.tables.max_q_len < prefill_min_q_len) return {"too few queries a sequence to fill its tiles"};
  return prefill_support(problem, device);
}

template <class Problem>
constexpr bool has_prefill(int head_dim, int head_dim_v) {
  const PrefillPolicy policy = choose_prefill(min_arch, max(head_dim, head_dim_v), 2);
  return prefill_takes_types<Problem> && bool(is_supported(policy, {.head_dim = head_dim, .head_dim_v = head_dim_v}));
}

}  // namespace detail

/// Attention for any ragged batch, with the contract of decode() and prefill(): one kernel, no allocation, no
/// synchronisation, capturable. The stated max_q_len decides which kernel runs; both are right for every batch, but
/// they round differently: where a sequence must get the same bits in any company, call one of them yourself. `options`
/// are decode's; prefill has none.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void attend(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, Workspace& workspace,
            cudaStream_t stream, const DecodeOptions& options = {}) {
  if constexpr (detail::has_prefill<AttentionProblem<Space::device, Q, KV, O>>(HeadDim, HeadDimV)) {
    if (detail::prefill_suits(problem, workspace.device()))
      return prefill<HeadDim, HeadDimV>(problem, variant, workspace, stream);
  }
  decode<HeadDim, HeadDimV>(problem, variant, workspace, stream, options);
}

/// The same for a head_dim known at run time, one of those named; head_dim_v is equal.
template <int... Dims, StorageType Q, StorageType KV, StorageType O, VariantFor<Space::device> V>
void attend(HeadDims<Dims...> dims, const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant,
            Workspace& workspace, cudaStream_t stream, const DecodeOptions& options = {}) {
  with_head_dim(dims, problem.head_dim(), "attend",
                [&](auto head_dim) { attend<head_dim.value>(problem, variant, workspace, stream, options); });
}

/// What attend() would run for this problem, in one line: the kernel, its policy row, how the work is cut, and why not
/// the other kernel. Throws InvalidArgument where problem.validate() does.
template <class Problem>
std::string explain(const Problem& problem, const Workspace& workspace) {
  problem.validate();
  const auto number = [](auto n) { return std::to_string(n); };
  const int arch = workspace.device().arch;
  const Support suits = detail::prefill_suits(problem, workspace.device());
  if (suits) {
    const PrefillPolicy policy = choose_prefill(arch, max(problem.head_dim(), problem.head_dim_v()), 2);
    const AttentionPlan plan = make_plan(problem.tables, policy.query_tile, policy.key_tile, 1, 1);
    return "prefill_sm80 on sm_" + number(arch) + " {query_tile " + number(policy.query_tile) + ", key_tile " +
           number(policy.key_tile) + ", warps " + number(policy.warps) + ", stages " + number(policy.stages) +
           "}: " + number(plan.num_tiles()) + " tiles x " + number(problem.q_heads()) + " heads, 1 split";
  }
  const Support fast = decode_sm80_support(problem, workspace);
  if (fast) {
    const DecodePolicy policy = detail::policy_for(problem, arch);
    const DecodeCut cut = detail::cut_for(policy, problem, workspace, {});
    return "decode_sm80 on sm_" + number(arch) + " {rows " + number(policy.rows) + ", warps " + number(policy.warps) +
           ", stages " + number(policy.stages) + "}: " + number(cut.num_items) + " tiles of rows x " +
           number(cut.kv_heads) + " KV heads in at most " + number(cut.max_slices) +
           " slices, one a CTA; not prefill_sm80: " + suits.reason;
  }
  const DecodeSimtPolicy policy = choose_decode_simt(arch, problem.head_dim(), sizeof(typename Problem::Element));
  const DecodeSchedule schedule = detail::schedule_for(policy, problem, workspace);
  return "decode_simt on sm_" + number(arch) + " {query_tile " + number(policy.query_tile) + ", split_keys " +
         number(policy.split_keys) + ", max_warps " + number(policy.max_warps) +
         "}: " + number(schedule.plan.num_tiles()) + " tiles x " + number(problem.kv_heads()) + " KV heads, at most " +
         number(schedule.plan.max_splits) + " splits in " + number(schedule.num_shares) + " shares, " +
         number(schedule.num_ctas) + " CTAs of " + number(schedule.warps) + " warps; not decode_sm80: " + fast.reason +
         "; not prefill_sm80: " + suits.reason;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
