// Public entry of decode: attention for few queries against long caches (and, correct if slow, for any ragged batch).
#pragma once

#include <cuda_runtime_api.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/decode_schedule.hpp"
#include "pagedkv/cuda/kernels/decode_simt.cuh"
#include "pagedkv/cuda/kernels/decode_slices.hpp"
#include "pagedkv/cuda/kernels/decode_sm80.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// How a call of decode() may run; every choice gives the same bits run after run.
struct DecodeOptions {
  Launch launch = Launch::after_previous;
  /// The bits of a row depend on that row alone: the same whatever else is in the batch, as long as the options and the
  /// head sizes stay. Costs a merge for every 512 keys of a row (256 beyond head_dim 128), and partials in the workspace:
  /// where it has fewer tiles of them than two for each CTA and one for each such piece of the batch, rows are not cut, and
  /// long ones are slow.
  bool batch_invariant = false;
};

namespace detail {

template <class Problem>
inline constexpr bool decode_takes_types =
    (std::is_same_v<typename Problem::Query, bf16> || std::is_same_v<typename Problem::Query, f16>) &&
    std::is_same_v<typename Problem::Query, typename Problem::Element> &&
    std::is_same_v<typename Problem::Query, typename Problem::Output>;

/// Packed rows of the longest sequence.
template <class Problem>
std::int64_t packed_rows(const Problem& problem) {
  return std::int64_t{max(1, problem.tables.max_q_len)} * problem.group_size();
}

/// Decode alone, or as one of two kernels that run side by side (see Launch)?
enum class DecodePart { all, beside_previous };

/// Packed rows that tiles are made for: beside prompts, whatever the bound, most sequences bring one query.
template <class Problem>
std::int64_t usual_rows(const Problem& problem, DecodePart part) {
  return part == DecodePart::all ? packed_rows(problem) : problem.group_size();
}

/// Beside prompts the GPU is shared, whatever the batch. A GPU without room for lone tiles takes the others.
template <class Problem>
DecodePolicy policy_for(const Problem& problem, const DeviceInfo& device, const DecodeOptions& options,
                        DecodePart part) {
  const int head_dim = problem.head_dim(), head_dim_v = problem.head_dim_v();
  const KernelShape shape{.arch = device.arch, .head_dim = head_dim, .head_dim_v = head_dim_v};
  const bool may_be_lone =
      part == DecodePart::all && !options.batch_invariant &&
      is_supported(choose_decode(DecodeTile::lone, head_dim, head_dim_v), shape, device.shared_bytes_per_cta);
  const DecodeTile tile =
      choose_decode_tile(max(head_dim, head_dim_v), usual_rows(problem, part),
                         problem.tables.num_seqs() * problem.kv_heads(), device.num_sms, may_be_lone);
  return choose_decode(tile, head_dim, head_dim_v);
}

/// How decode_sm80 would cut this problem.
template <class Problem>
DecodeCut cut_for(const DecodePolicy& policy, const Problem& problem, const Workspace& workspace,
                  const DecodeOptions& options) {
  const std::int64_t tiles_per_seq = ceil_div(packed_rows(problem), std::int64_t{policy.rows});
  DecodeCut cut;
  cut.num_items = static_cast<int>(tiles_per_seq * problem.tables.num_seqs());
  cut.tiles_per_seq = Divisor(static_cast<int>(tiles_per_seq));
  cut.group_size = Divisor(problem.group_size());
  cut.block_size = Divisor(problem.kv.block_size());
  cut.max_q_len = problem.tables.max_q_len;
  cut.chunks_in_blocks = problem.kv.block_size() % 16 == 0;
  cut.tile_rows = policy.rows;
  cut.kv_heads = problem.kv_heads();
  cut.unit_pieces = options.batch_invariant;
  const int key_tile = 16 * policy.warps;
  const auto unit_keys = static_cast<unsigned>(key_tile * (options.batch_invariant ? policy.piece_tiles : 1));
  cut.unit_shift = std::countr_zero(unit_keys);
  // Tiles of one sequence read the same keys, for which L2 has more than memory: more CTAs read faster.
  cut.min_slice_units = options.batch_invariant ? 1
                        : tiles_per_seq > 1     ? min(policy.min_slice_tiles, 4)
                                                : policy.min_slice_tiles;
  if (problem.head_dim_v() <= workspace.options().head_dim_v)
    cut.max_pieces = workspace.options().max_partials / policy.rows;
  const std::int64_t units_per_row = max(1, ceil_div(problem.tables.max_kv_len, static_cast<int>(unit_keys)));
  const std::int64_t num_units = std::int64_t{cut.num_items} * cut.kv_heads * units_per_row;
  cut.num_sms = workspace.device().num_sms;
  cut.small_slice_units = policy.small_slice_tiles * key_tile >> cut.unit_shift;
  // CTAs that could never get a slice would take places from the kernel behind.
  std::int64_t max_slices =
      min<std::int64_t>(num_units, std::int64_t{cut.num_sms} * (is_small(cut, num_units) ? 1 : policy.ctas_per_sm));
  if (options.batch_invariant) max_slices = min(max_slices, cut.max_pieces / 2);
  cut.max_slices = static_cast<int>(max_slices);
  return cut;
}

template <class KV>
DecodePools pools_of(const KV& kv) {
  return {in_chunks(kv.k), in_chunks(kv.v), static_cast<int>(min<std::int64_t>(kv.num_blocks(), INT32_MAX))};
}

/// What decode_simt would launch for these bounds.
template <class Problem>
DecodeSchedule schedule_for(const DecodeSimtPolicy& policy, const Problem& problem, const Workspace& workspace) {
  const bool partials_fit = problem.head_dim_v() <= workspace.options().head_dim_v;
  return schedule_decode(policy, problem.tables, {problem.num_tokens(), problem.q_heads(), problem.kv_heads()},
                         workspace.device().num_sms, partials_fit ? workspace.options().max_partials : 0);
}

template <int HeadDim, int HeadDimV, DecodePolicy Policy, class Problem, AttentionVariant V>
void launch_decode_sm80(const Problem& problem, const V& variant, Workspace& workspace, const DecodeOptions& options,
                        DecodePart part, cudaStream_t stream) {
  using Config = DecodeSm80Config<typename Problem::Element, HeadDim, HeadDimV, Policy>;
  DecodeCut cut = cut_for(Policy, problem, workspace, options);
  if (cut.max_slices == 0) return;
  cut.beside_previous = part == DecodePart::beside_previous;
  const Launch mode = cut.beside_previous ? Launch::overlap_previous : options.launch;
  constexpr std::size_t shared_bytes = sizeof(typename Config::SharedMemory);
  const auto kernel = paged_decode_sm80_kernel<Config, Problem, V>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "decode: shared memory");
  launch(kernel, {dim3(static_cast<unsigned>(cut.max_slices)), Config::threads, shared_bytes}, mode, stream,
         "decode_sm80: launch", problem, variant, cut, pools_of(problem.kv), workspace.awaited_partials());
}

template <class Problem>
Support decode_sm80_support(const DecodePolicy& policy, const Problem& problem, const Workspace& workspace,
                            const DecodeOptions& options) {
  if (!decode_takes_types<Problem>) return {"q, K, V and out must all be bf16 or all be f16"};
  const DeviceInfo& device = workspace.device();
  const Support support =
      is_supported(policy, {.arch = device.arch, .head_dim = problem.head_dim(), .head_dim_v = problem.head_dim_v()},
                   device.shared_bytes_per_cta);
  if (!support) return support;
  if (packed_rows(problem) / policy.rows >= (1 << 30) / max(1, problem.tables.num_seqs()))
    return {"more than 2^30 tiles of rows"};
  if (!rows_aligned(problem.q, 16)) return {"rows of q must start at multiples of 16 bytes"};
  if (!is_chunked(problem.kv.k)) return {"rows of K must start at multiples of 16 bytes, strides stay below 32 GiB"};
  if (!is_chunked(problem.kv.v)) return {"rows of V must start at multiples of 16 bytes, strides stay below 32 GiB"};
  if (!rows_aligned(problem.out, 8)) return {"rows of out must start at multiples of 8 bytes"};
  if (options.batch_invariant && cut_for(policy, problem, workspace, options).max_pieces < 2)
    return {"a batch-invariant call needs partials in the workspace, at least two tiles of rows"};
  return {};
}

/// Runs decode for a checked problem's sequences of at most tables.max_q_len queries; rows of others are not touched.
template <int HeadDim, int HeadDimV, class Problem, AttentionVariant V>
void decode_part(const Problem& problem, const V& variant, Workspace& workspace, cudaStream_t stream,
                 const DecodeOptions& options, DecodePart part) {
  constexpr DecodeSimtPolicy simt_policy = choose_decode_simt(min_arch, HeadDim, sizeof(typename Problem::Element));
  constexpr KernelShape shape{.head_dim = HeadDim, .head_dim_v = HeadDimV};
  static_assert(is_supported(simt_policy, shape), "decode: head_dim and head_dim_v must be 1 to 256");
  constexpr bool has_sm80 =
      decode_takes_types<Problem> && bool(is_supported(choose_decode(DecodeTile::narrow, HeadDim, HeadDimV), shape));
  if constexpr (has_sm80) {
    const DecodePolicy policy = policy_for(problem, workspace.device(), options, part);
    if (decode_sm80_support(policy, problem, workspace, options)) {
      const auto launched = [&](auto tile) {
        constexpr DecodePolicy own = choose_decode(tile.value, HeadDim, HeadDimV);
        if (own != policy) return false;
        launch_decode_sm80<HeadDim, HeadDimV, own>(problem, variant, workspace, options, part, stream);
        return true;
      };
      using enum DecodeTile;
      static_cast<void>(launched(std::integral_constant<DecodeTile, narrow>{}) ||
                        launched(std::integral_constant<DecodeTile, wide>{}) ||
                        launched(std::integral_constant<DecodeTile, lone>{}));
      return;
    }
  }
  // It starts when the kernel in front has ended, beside it or not.
  decode_simt<DecodeSimtConfig<HeadDim, HeadDimV, simt_policy>>(
      problem, variant, schedule_for(simt_policy, problem, workspace), workspace.partials(), stream);
}

}  // namespace detail

/// Can decode_sm80 take this problem on this workspace's GPU, or why must decode_simt? O(1), on the host.
template <class Problem>
Support decode_sm80_support(const Problem& problem, const Workspace& workspace, const DecodeOptions& options = {}) {
  return detail::decode_sm80_support(detail::policy_for(problem, workspace.device(), options, detail::DecodePart::all),
                                     problem, workspace, options);
}

/// Attention of problem.q [num_tokens, q_heads, HeadDim] over the paged cache into problem.out [num_tokens, q_heads,
/// HeadDimV] and, where wanted, problem.lse. Enqueues one kernel: no allocation, no synchronisation, can be captured in
/// a graph and replayed with other lengths and tables within the stated bounds. bf16 and f16 of head sizes that are
/// multiples of 16 take decode_sm80, everything else decode_simt; explain() says which and why. Throws InvalidArgument,
/// before launching, where the problem is inconsistent or HeadDim is not its own.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void decode(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, Workspace& workspace,
            cudaStream_t stream, const DecodeOptions& options = {}) {
  problem.validate();
  require(problem.head_dim() == HeadDim, "decode: head_dim", HeadDim, problem.head_dim());
  require(problem.head_dim_v() == HeadDimV, "decode: head_dim_v", HeadDimV, problem.head_dim_v());
  detail::decode_part<HeadDim, HeadDimV>(problem, variant, workspace, stream, options, detail::DecodePart::all);
}

/// The same for a head_dim known at run time, one of those named; head_dim_v is equal.
template <int... Dims, StorageType Q, StorageType KV, StorageType O, VariantFor<Space::device> V>
void decode(HeadDims<Dims...> dims, const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant,
            Workspace& workspace, cudaStream_t stream, const DecodeOptions& options = {}) {
  with_head_dim(dims, problem.head_dim(), "decode",
                [&](auto head_dim) { decode<head_dim.value>(problem, variant, workspace, stream, options); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
