// prefill(): attention for sequences that bring many queries at once, on tensor cores: validates, chooses, launches.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/prefill_merge.cuh"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/kernels/prefill_sm80.cuh"
#include "pagedkv/cuda/kernels/prefill_sm90.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/tensor_map.cuh"
#include "pagedkv/cuda/tensor_map.hpp"
#include "pagedkv/cuda/workspace.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Which kernel: `best` is sm90 where prefill_sm90_support() says yes, else sm80.
enum class PrefillKernel { best, sm80, sm90 };

/// How a call of prefill() may run; every choice gives the same bits run after run, sm80 and sm90 not each other's.
struct PrefillOptions {
  Launch launch = Launch::after_previous;
  PrefillKernel kernel = PrefillKernel::best;
  /// The bits of a row depend on that row alone. Costs the wide tiles that large batches are faster with, up to a tenth,
  /// and the idle SMs beside few tiles.
  bool batch_invariant = false;
};

namespace detail {

template <class Problem>
inline constexpr bool prefill_takes_types =
    (std::is_same_v<typename Problem::Query, bf16> || std::is_same_v<typename Problem::Query, f16>) &&
    std::is_same_v<typename Problem::Query, typename Problem::Element> &&
    std::is_same_v<typename Problem::Query, typename Problem::Output>;

}  // namespace detail

/// Can prefill_sm80 take this problem on this GPU, or why not? O(1), on the host.
template <class Problem>
Support prefill_sm80_support(const Problem& problem, const DeviceInfo& device) {
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

/// The slots that TMA lifts at a time: a power of two that divides a block and a tile of keys.
inline int prefill_box_rows(int block_size, int key_tile) {
  const auto power = [](int n) { return n & -n; };
  return min(power(block_size), power(key_tile));
}

/// Heads that share a tile: the largest power of two that divides a group, up to 16.
inline int packed_shift(int group_size) { return min(4, std::countr_zero(static_cast<unsigned>(group_size))); }

/// As many KV heads at a time as leave their K and V in L2 while all their queries pass.
inline constexpr std::int64_t section_bytes = std::int64_t{20} << 20;

template <class Problem>
PrefillCut prefill_cut(const PrefillSm90Policy& policy, const Problem& problem, int min_q_len) {
  PrefillCut cut;
  cut.num_seqs = problem.tables.num_seqs();
  cut.min_q_len = min_q_len;
  cut.packed_shift = packed_shift(problem.group_size());
  cut.tile_queries = policy.query_tile >> cut.packed_shift;
  cut.head_tiles = problem.q_heads() >> cut.packed_shift;
  const int group_tiles = problem.group_size() >> cut.packed_shift;
  const std::int64_t head_bytes =
      std::int64_t{2} * (problem.head_dim() + problem.head_dim_v()) * max(1, problem.tables.max_kv_len);
  const auto section_heads = static_cast<int>(clamp<std::int64_t>(section_bytes / head_bytes, 1, problem.kv_heads()));
  cut.section = section_heads * group_tiles;
  cut.box_rows = prefill_box_rows(problem.kv.block_size(), policy.key_tile);
  cut.group_tiles = Divisor(group_tiles);
  cut.block_size = Divisor(problem.kv.block_size());
  return cut;
}

/// As many tiles as the stated bounds allow.
template <class Problem>
std::int64_t max_tiles(const PrefillCut& cut, const Problem& problem) {
  return std::int64_t{cut.num_seqs} * cut.head_tiles * ceil_div(problem.tables.max_q_len, cut.tile_queries);
}

/// Are there enough tiles for wide ones? By the stated bounds: bits may change with them.
template <class Problem>
bool has_many_tiles(const Problem& problem, const DeviceInfo& device, const PrefillOptions& options = {}) {
  if (options.batch_invariant) return false;
  const PrefillCut cut = prefill_cut(choose_prefill_sm90(problem.head_dim(), problem.head_dim_v(), true), problem, 0);
  return max_tiles(cut, problem) >= std::int64_t{prefill_many_tiles} * device.num_sms;
}

/// Shares of the keys of each tile; more than 1 only where pieces of all rows fit in `num_pieces` rows of partials. By
/// the stated bounds: bits may change with them.
template <class Problem>
int num_splits(const Problem& problem, const Workspace& workspace, std::int64_t num_pieces) {
  if (problem.num_tokens() == 0 || problem.head_dim_v() > workspace.options().head_dim_v) return 1;
  const PrefillCut cut = prefill_cut(choose_prefill_sm90(problem.head_dim(), problem.head_dim_v(), false), problem, 0);
  const std::int64_t wanted =
      prefill_splits(max_tiles(cut, problem), problem.tables.max_kv_len, workspace.device().num_sms);
  const std::int64_t num_rows = std::int64_t{problem.num_tokens()} * problem.q_heads();
  return static_cast<int>(max<std::int64_t>(1, min(wanted, num_pieces / num_rows)));
}

/// A program that was built without 90a has an empty kernel: one without shared memory of its own.
template <class Kernel>
bool is_compiled(Kernel kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "prefill");
  return attributes.sharedSizeBytes > 0;
}

template <class T, int HeadDim, int HeadDimV>
inline constexpr bool has_prefill_sm90 = bool(is_supported(choose_prefill_sm90(HeadDim, HeadDimV, true),
                                                           {.arch = 90, .head_dim = HeadDim, .head_dim_v = HeadDimV}));

}  // namespace detail

/// Can prefill_sm90 take this problem on this GPU, or why must prefill_sm80? O(1), on the host. It does not see whether
/// the program holds code for sm_90a.
template <class Problem>
Support prefill_sm90_support(const Problem& problem, const DeviceInfo& device) {
  if constexpr (!detail::prefill_takes_types<Problem>) {
    return {"q, K, V and out must all be bf16 or all be f16"};
  } else {
    const int head_dim = problem.head_dim(), head_dim_v = problem.head_dim_v();
    const PrefillSm90Policy policy = choose_prefill_sm90(head_dim, head_dim_v, true);
    const Support support = is_supported(policy, {.arch = device.arch, .head_dim = head_dim, .head_dim_v = head_dim_v},
                                         device.shared_bytes_per_cta);
    if (!support) return support;
    const int box_rows = detail::prefill_box_rows(problem.kv.block_size(), policy.key_tile);
    if (const Support boxed = boxed_support(problem.kv.k, box_rows); !boxed) return boxed;
    if (const Support boxed = boxed_support(problem.kv.v, box_rows); !boxed) return boxed;
    if (!rows_aligned(problem.q, 16)) return {"rows of q must start at multiples of 16 bytes"};
    const auto fits = [](const auto& view, int axis) {
      return view.extents[axis] <= 1 || (view.strides[axis] >= 0 && view.strides[axis] < std::int64_t{1} << 39);
    };
    if (!fits(problem.q, 0) || !fits(problem.q, 1) || !fits(problem.out, 0) || !fits(problem.out, 1))
      return {"strides of q and out must not be negative and be less than 2^40 bytes"};
    if (!rows_aligned(problem.out, 16)) return {"rows of out must start at multiples of 16 bytes"};
    if (!(problem.scale > 0.f)) return {"scale must be positive"};
    return {};
  }
}

/// Can prefill() take this problem on this GPU, or why not? O(1), on the host.
template <class Problem>
Support prefill_support(const Problem& problem, const DeviceInfo& device) {
  return prefill_sm80_support(problem, device);
}

namespace detail {

/// One CTA per tile of queries and query head, as many as a grid can have.
template <class Config, class Problem, AttentionVariant V>
void launch_prefill_sm80(const Problem& problem, const V& variant, cudaStream_t stream, Launch mode, int min_q_len) {
  const AttentionPlan plan = make_plan(problem.tables, Config::query_tile, Config::key_tile, 1, 1);
  const std::int64_t num_ctas =
      min(plan.num_tiles() * problem.q_heads(), std::int64_t{std::numeric_limits<std::int32_t>::max()});
  if (num_ctas == 0) return;
  constexpr std::size_t shared_bytes = sizeof(typename Config::SharedMemory);
  const auto kernel = attention_prefill_kernel<Config, Problem, V>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "prefill: shared memory");
  launch(kernel, {dim3(static_cast<unsigned>(num_ctas)), Config::threads, shared_bytes}, mode, stream,
         "prefill_sm80: launch", problem, variant, plan, min_q_len);
}

/// At most one CTA an SM. False, and nothing done, where the program holds no code for sm_90a.
template <class Config, class Problem, AttentionVariant V>
bool launch_prefill_sm90(const Problem& problem, const V& variant, const Workspace& workspace, cudaStream_t stream,
                         Launch mode, int min_q_len, int num_splits) {
  const auto kernel = attention_prefill_sm90_kernel<Config, Problem, V>;
  static const bool compiled = is_compiled(kernel);
  if (!compiled) return false;
  PrefillCut cut = prefill_cut(Config::policy, problem, min_q_len);
  cut.num_splits = num_splits;
  const std::int64_t num_ctas = min<std::int64_t>(max_tiles(cut, problem) * num_splits, workspace.device().num_sms);
  if (num_ctas == 0 || problem.num_tokens() == 0) return true;
  const PrefillMaps maps{tensor_map(boxed_queries(problem.q, 1 << cut.packed_shift, 64)),
                         tensor_map(boxed(problem.kv.k, cut.box_rows, 1)),
                         tensor_map(boxed(problem.kv.v, cut.box_rows, 1)),
                         tensor_map(boxed_queries(problem.out, 1 << cut.packed_shift, 64))};
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::shared_bytes),
        "prefill: shared memory");
  launch(kernel, {dim3(static_cast<unsigned>(num_ctas)), Config::threads, Config::shared_bytes}, mode, stream,
         "prefill_sm90: launch", problem, variant, cut, maps, workspace.partials(), workspace.prefill_counters());
  return true;
}

/// Joins the pieces that prefill_part() left, if any.
template <class Problem, AttentionVariant V>
void merge_part(const Problem& problem, const V& variant, const Workspace& workspace, cudaStream_t stream,
                int num_splits, int min_q_len) {
  if (num_splits == 1) return;
  const std::int64_t num_rows = std::int64_t{problem.num_tokens()} * problem.q_heads();
  const auto num_ctas = static_cast<unsigned>(ceil_div<std::int64_t>(num_rows, prefill_merge_threads / 32));
  launch(prefill_merge_kernel<Problem, V>, {dim3(num_ctas), prefill_merge_threads}, Launch::overlap_previous, stream,
         "prefill_merge: launch", problem, variant, workspace.partials(), num_splits, min_q_len);
}

/// prefill() of the sequences that have at least min_q_len queries; rows of the others are not touched. Returns how many
/// pieces of a row, num_pieces in all at most, are left in the workspace's partials to merge_part(); 1: the rows are done.
template <int HeadDim, int HeadDimV, class Problem, AttentionVariant V>
int prefill_part(const Problem& problem, const V& variant, const Workspace& workspace, cudaStream_t stream,
                 const PrefillOptions& options, int min_q_len, std::int64_t num_pieces) {
  using T = typename Problem::Query;
  problem.validate();
  require(problem.head_dim() == HeadDim, "prefill: head_dim", HeadDim, problem.head_dim());
  require(problem.head_dim_v() == HeadDimV, "prefill: head_dim_v", HeadDimV, problem.head_dim_v());
  const auto refuse = [](const char* reason) {
    pagedkv::detail::raise<InvalidArgument>(std::string("prefill: ") + reason);
  };
  if constexpr (has_prefill_sm90<T, HeadDim, HeadDimV>) {
    const Support sm90 = prefill_sm90_support(problem, workspace.device());
    if (options.kernel == PrefillKernel::sm90 && !sm90) refuse(sm90.reason);
    if (options.kernel != PrefillKernel::sm80 && sm90) {
      // A rule that bends logits needs the registers that wide tiles take.
      constexpr PrefillSm90Policy few = choose_prefill_sm90(HeadDim, HeadDimV, false);
      constexpr PrefillSm90Policy many = choose_prefill_sm90(HeadDim, HeadDimV, keeps_logits_v<V>);
      constexpr PrefillSm90Policy shared = choose_prefill_sm90_splits(HeadDim, HeadDimV);
      const int splits = options.batch_invariant ? 1 : num_splits(problem, workspace, num_pieces);
      const auto launched = [&](auto config) {
        return launch_prefill_sm90<typename decltype(config)::type>(problem, variant, workspace, stream, options.launch,
                                                                    min_q_len, splits);
      };
      if (splits > 1 ? launched(std::type_identity<PrefillSm90Config<T, HeadDim, HeadDimV, shared>>{})
          : has_many_tiles(problem, workspace.device(), options)
              ? launched(std::type_identity<PrefillSm90Config<T, HeadDim, HeadDimV, many>>{})
              : launched(std::type_identity<PrefillSm90Config<T, HeadDim, HeadDimV, few>>{}))
        return splits;
      if (options.kernel == PrefillKernel::sm90) refuse("this program holds no code for sm_90a");
    }
  } else if (options.kernel == PrefillKernel::sm90) {
    refuse("prefill_sm90 has no tile of this head_dim");
  }
  const Support support = prefill_sm80_support(problem, workspace.device());
  if (!support) refuse(support.reason);
  constexpr PrefillPolicy policy = choose_prefill(min_arch, max(HeadDim, HeadDimV), sizeof(T));
  launch_prefill_sm80<PrefillSm80Config<T, HeadDim, HeadDimV, policy>>(problem, variant, stream, options.launch,
                                                                       min_q_len);
  return 1;
}

}  // namespace detail

/// Ragged queries against paged keys (FlashAttention-2 and 3, arXiv:2307.08691 and 2407.08608), any block size and both
/// orders of a pool. Made for many queries a sequence; one or none is right, too, but wastes most of a tile. Rows of a
/// tile multiply the same values, hidden ones by 0: an Inf or NaN in V of a live key makes NaN of rows that do not see
/// it, too.
///   HeadDim, HeadDimV   multiples of 16 up to 256, of K and of V; q, K, V and out all bf16 or all f16
///   workspace           counts the tiles that are taken, and holds the pieces of rows whose keys are shared out among SMs
///                       that would be idle (prefill_splits), as far as its partials go: calls that share one must be
///                       ordered
/// Enqueues one kernel on `stream`, or two where keys are shared out; never allocates, never synchronises (so it can be
/// captured in a graph; lengths and tables are read when it runs). Throws before launching: InvalidArgument where
/// problem.validate() or prefill_support() says no, CudaError where the launch fails.
template <int HeadDim, int HeadDimV = HeadDim, StorageType Q, StorageType KV, StorageType O,
          VariantFor<Space::device> V>
void prefill(const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant, const Workspace& workspace,
             cudaStream_t stream, const PrefillOptions& options = {}) {
  static_assert(detail::prefill_takes_types<AttentionProblem<Space::device, Q, KV, O>>,
                "prefill takes q, K, V and out all bf16 or all f16");
  const int num_splits = detail::prefill_part<HeadDim, HeadDimV>(problem, variant, workspace, stream, options, 0,
                                                                 workspace.options().max_partials);
  detail::merge_part(problem, variant, workspace, stream, num_splits, 0);
}

/// The same for a head_dim known only at run time, one of those named; nothing else is compiled. head_dim_v is like
/// head_dim.
template <int... Dims, StorageType Q, StorageType KV, StorageType O, VariantFor<Space::device> V>
void prefill(HeadDims<Dims...> dims, const AttentionProblem<Space::device, Q, KV, O>& problem, const V& variant,
             const Workspace& workspace, cudaStream_t stream, const PrefillOptions& options = {}) {
  with_head_dim(dims, problem.head_dim(), "prefill",
                [&](auto head_dim) { prefill<head_dim.value>(problem, variant, workspace, stream, options); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
