// attend(): a mixed batch, prompts and single tokens together, each sequence by the kernel that suits it; explain()
// says which and why.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/kernels/decode_schedule.hpp"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

template <class Problem>
constexpr bool has_prefill(int head_dim, int head_dim_v) {
  const PrefillPolicy policy = choose_prefill(min_arch, max(head_dim, head_dim_v), 2);
  return prefill_takes_types<Problem> && bool(is_supported(policy, {.head_dim = head_dim, .head_dim_v = head_dim_v}));
}

/// From how many queries on a sequence of this problem is prefill's.
template <class Problem>
int least_prompt(const Problem& problem, const DeviceInfo& device) {
  return prefill_min_q_len(prefill_sm90_support(problem, device) ? 1 << packed_shift(problem.group_size()) : 1);
}

/// Has prefill anything to do, as far as the host can know, or why not?
template <class Problem>
Support prefill_suits(const Problem& problem, const DeviceInfo& device) {
  const Support support = prefill_support(problem, device);
  if constexpr (prefill_takes_types<Problem>) {
    if (support && problem.tables.max_q_len < least_prompt(problem, device)) return {"too few queries a sequence"};
  }
  return support;
}

/// The problem with a bound that leaves sequences of `least_prompt` queries and more to prefill.
template <class Problem>
Problem decodes_of(Problem problem, int least_prompt) {
  problem.tables.max_q_len = min(problem.tables.max_q_len, least_prompt - 1);
  return problem;
}

/// Partials that prefill may keep while decode runs beside it: decode_sm80 has its own.
template <class Problem>
std::int64_t partials_beside_decode(const Problem& decodes, const Workspace& workspace, const DecodeOptions& options) {
  const DecodePolicy policy = policy_for(decodes, workspace.device(), options, DecodePart::beside_previous);
  const bool are_free = !options.batch_invariant && decode_sm80_support(policy, decodes, workspace, options);
  return are_free ? workspace.options().max_partials : 0;
}

/// prefill's part of explain().
template <class Problem>
std::string explain_prefill(const Problem& problem, const Workspace& workspace, int least_prompt,
                            std::int64_t num_pieces) {
  const auto number = [](auto n) { return std::to_string(n); };
  const int arch = workspace.device().arch;
  const Support fast = prefill_sm90_support(problem, workspace.device());
  if (fast) {
    const PrefillSm90Policy policy =
        choose_prefill_sm90(problem.head_dim(), problem.head_dim_v(), has_many_tiles(problem, workspace.device()));
    const PrefillCut cut = prefill_cut(policy, problem, least_prompt);
    return "prefill_sm90 on sm_" + number(arch) + " {query_tile " + number(policy.query_tile) + ", key_tile " +
           number(policy.key_tile) + ", stages " + number(policy.key_stages) + " and " + number(policy.value_stages) +
           "}: tiles of " + number(cut.tile_queries) + " queries x " + number(1 << cut.packed_shift) +
           " heads, keys of each in " + number(num_splits(problem, workspace, num_pieces)) + " shares";
  }
  const PrefillPolicy policy = choose_prefill(arch, max(problem.head_dim(), problem.head_dim_v()), 2);
  return "prefill_sm80 on sm_" + number(arch) + " {query_tile " + number(policy.query_tile) + ", key_tile " +
         number(policy.key_tile) + ", warps " + number(policy.warps) + ", stages " + number(policy.stages) +
         "}: tiles of " + number(policy.query_tile) + " queries x 1 head; not prefill_sm90: " + fast.reason;
}

/// decode's part of explain(): all of the batch, or what prefill leaves.
template <class Problem>
std::string explain_decode(const Problem& problem, const Workspace& workspace, DecodePart part) {
  const auto number = [](auto n) { return std::to_string(n); };
  const int arch = workspace.device().arch;
  const DecodePolicy policy = policy_for(problem, workspace.device(), {}, part);
  const Support fast = decode_sm80_support(policy, problem, workspace, {});
  if (fast) {
    const DecodeCut cut = cut_for(policy, problem, workspace, {});
    return "decode_sm80 on sm_" + number(arch) + " {rows " + number(policy.rows) + ", warps " + number(policy.warps) +
           ", stages " + number(policy.stages) + "}: " + number(cut.num_items) + " tiles of rows x " +
           number(cut.kv_heads) + " KV heads in at most " + number(cut.max_slices) + " slices, one a CTA";
  }
  const DecodeSimtPolicy simt = choose_decode_simt(arch, problem.head_dim(), sizeof(typename Problem::Element));
  const DecodeSchedule schedule = schedule_for(simt, problem, workspace);
  return "decode_simt on sm_" + number(arch) + " {query_tile " + number(simt.query_tile) + ", split_keys " +
         number(simt.split_keys) + ", max_warps " + number(simt.max_warps) + "}: " + number(schedule.plan.num_tiles()) +
         " tiles x " + number(problem.kv_heads()) + " KV heads, at most " + number(schedule.plan.max_splits) +
         " splits in " + number(schedule.num_shares) + " shares, " + number(schedule.num_ctas) + " CTAs of " +
         number(schedule.warps) + " warps; not decode_sm80: " + fast.reason;
}

}  // namespace detail

/// Attention for any ragged batch, with the contract of decode() and prefill(): no allocation, no synchronisation,
/// capturable. Sequences that bring many queries are prefill's, the others decode's (prefill_min_q_len), told apart on
/// the device by their lengths: a captured graph serves every mixture. Where the stated max_q_len says that all are
/// decode's, or prefill cannot take the problem, decode's kernel runs alone; otherwise two kernels side by side,
/// prefill's in front, decode's on the SMs that it leaves idle (from compute capability 9.0 on; elsewhere one after the
/// other).
/// Same inputs, same bits, whatever runs beside. `options` are decode's: a batch-invariant call gives the row of a
/// sequence the same bits in any company, under any bounds, as long as the kernels named by explain() stay.
/// options.launch is that of the kernel in front.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void attend(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, Workspace& workspace,
            cudaStream_t stream, const DecodeOptions& options = {}) {
  if constexpr (detail::has_prefill<AttentionProblem<Space::device, Q, KV, O>>(HeadDim, HeadDimV)) {
    const DeviceInfo& device = workspace.device();
    problem.validate();
    if (detail::prefill_suits(problem, device)) {
      // Prompts first: their tiles are large and end when they end; decode's slices are small, even, and fit in
      // between. The other way round a decode that fills the GPU would leave prefill nothing to run beside.
      const int least_prompt = detail::least_prompt(problem, device);
      const auto decodes = detail::decodes_of(problem, least_prompt);
      const int num_splits = detail::prefill_part<HeadDim, HeadDimV>(
          problem, variant, workspace, stream, {.launch = options.launch}, least_prompt,
          detail::partials_beside_decode(decodes, workspace, options));
      detail::decode_part<HeadDim, HeadDimV>(decodes, variant, workspace, stream, options,
                                             detail::DecodePart::beside_previous);
      return detail::merge_part(problem, variant, workspace, stream, num_splits, least_prompt);
    }
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

/// What attend() would run for this problem, in one line: the kernels, their policy rows, how the work is cut, and why
/// not another kernel. Throws InvalidArgument where problem.validate() does.
template <class Problem>
std::string explain(const Problem& problem, const Workspace& workspace) {
  problem.validate();
  const DeviceInfo& device = workspace.device();
  const Support suits = detail::prefill_suits(problem, device);
  if constexpr (detail::prefill_takes_types<Problem>) {
    if (suits) {
      const int least_prompt = detail::least_prompt(problem, device);
      const auto decodes = detail::decodes_of(problem, least_prompt);
      const std::int64_t num_pieces = detail::partials_beside_decode(decodes, workspace, {});
      return detail::explain_prefill(problem, workspace, least_prompt, num_pieces) +
             "; beside it, for sequences of less than " + std::to_string(least_prompt) + " queries, " +
             detail::explain_decode(decodes, workspace, detail::DecodePart::beside_previous);
    }
  }
  return detail::explain_decode(problem, workspace, detail::DecodePart::all) + "; no prefill: " + suits.reason;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
