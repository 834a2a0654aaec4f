// Paged attention without tensor cores: any head_dim up to 256, any group, any block size, any batch; the readable
// second opinion that faster kernels are held against.
//
//   grid     a CTA takes one tile of queries of one sequence, one KV head, and a share of the splits of the keys
//   CTA      a warp takes one (query row, query head) at a time; the heads of a group read the same keys through L1
//   warp     32 keys at a time. First a lane owns a key: its address, its mask, its weight. Then a lane owns columns:
//            lane l holds columns l, l + 32, ... of q and of the output, so every row of K and V is read in one run
//
//              keys k .. k + 31 of the split             columns l, l + 32, ...
//                   lane = key                                lane = column
//            logit  [x0 x1 x2 ... x31]   weight_j  ->   out[l] += weight_j * V[j][l]      (j = 0 .. 31, by shuffle)
//
// Bytes per key and query head: (head_dim + head_dim_v) * sizeof(element) from L1 or L2, once per group from memory.
// FlashDecoding's split of the keys; the softmax of arXiv:1805.02867; blocks through the table of PagedAttention,
// arXiv:2309.06180.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/decode_schedule.hpp"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/policy.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

template <int HeadDim, int HeadDimV, DecodeSimtPolicy Policy>
struct DecodeSimtConfig {
  static constexpr int lanes = 32;
  static constexpr unsigned all_lanes = 0xffffffffu;
  static constexpr int head_dim = HeadDim, head_dim_v = HeadDimV;
  static constexpr int key_columns = ceil_div(HeadDim, lanes);     // of q and K that a lane holds
  static constexpr int value_columns = ceil_div(HeadDimV, lanes);  // of V and the output
  static constexpr int max_threads = lanes * Policy.max_warps;
  static constexpr int rows_in_flight = 8;   // rows of K or V that a warp waits for together; a pass is a multiple
  static constexpr int min_ctas_per_sm = 2;  // tells ptxas to spend registers on them: 104 at head_dim 128, no spills
  static_assert(Policy.split_keys % lanes == 0, "a split is cut into passes of one key a lane");
};

namespace detail {

/// One row's softmax and unnormalised output, of all its keys or of one split; the output is spread over a warp.
template <class Config>
struct RowState {
  OnlineSoftmax softmax;
  float out[Config::value_columns] = {};  // lane's columns

  // fmaf is spelt out: which product a compiler fuses must not differ between the two places that merge.
  __device__ void merge(const RowState& piece) {
    const auto [own, other] = softmax.merge(piece.softmax);
    for (int c = 0; c < Config::value_columns; ++c) out[c] = fmaf(own, out[c], other * piece.out[c]);
  }
};

/// A query row and head, seen by one warp.
template <class Config>
struct QueryRow {
  int sequence, position, head, kv_head;
  std::int64_t token;            // row of q, out and lse
  float q[Config::key_columns];  // lane's columns, 0 behind head_dim
};

template <class Config, class T>
__device__ const T* shuffle(const T* pointer, int lane) {
  return reinterpret_cast<const T*>(
      __shfl_sync(Config::all_lanes, reinterpret_cast<unsigned long long>(pointer), lane));
}

template <class Config>
__device__ float warp_sum(float x) {
  for (int step = Config::lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(Config::all_lanes, x, step);
  return x;
}

template <class Config>
__device__ float warp_max(float x) {
  for (int step = Config::lanes / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(Config::all_lanes, x, step));
  return x;
}

template <class Config, class Problem>
__device__ QueryRow<Config> load_query(const Problem& problem, QueryRows rows, int pair, int kv_head, int kv_len) {
  const int lane = threadIdx.x % Config::lanes, group = problem.group_size();
  const int index = rows.begin + pair / group;
  QueryRow<Config> row{.sequence = rows.sequence,
                       .position = kv_len - problem.tables.q_len(rows.sequence) + index,
                       .head = kv_head * group + pair % group,
                       .kv_head = kv_head,
                       .token = std::int64_t{problem.tables.query_begin(rows.sequence)} + index};
  const auto* const q = problem.q.at(row.token, row.head, 0);
  for (int c = 0; c < Config::key_columns; ++c) {
    const int column = c * Config::lanes + lane;
    row.q[c] = column < Config::head_dim ? to_float(q[column]) : 0.f;
  }
  return row;
}

/// Where the key of a lane and its value lie; null for a lane whose key the row does not see, and whose table entry may
/// hold anything.
template <class Element>
struct KeyAddress {
  const Element* k;
  const Element* v;
};

template <class Problem>
__device__ KeyAddress<typename Problem::Element> locate(const Problem& problem, int sequence, int kv_head, int key) {
  const int block_size = problem.kv.block_size();
  const std::int64_t block = problem.tables.block_ids(sequence, key / block_size);
  PAGEDKV_ASSERT(block >= 0 && block < problem.kv.num_blocks());
  const int slot = key % block_size;
  return {problem.kv.k.at(block, kv_head, slot, 0), problem.kv.v.at(block, kv_head, slot, 0)};
}

/// The lane's columns of `Config::rows_in_flight` rows of K or V, those of lanes `first` and on; all loads are under way
/// before the first is needed.
template <class Config, int Dim, class Element>
struct RowsInFlight {
  Element columns[Config::rows_in_flight][ceil_div(Dim, Config::lanes)];

  __device__ RowsInFlight(const Element* mine, int first) {
    const int lane = threadIdx.x % Config::lanes;
#pragma unroll
    for (int r = 0; r < Config::rows_in_flight; ++r) {
      const Element* const row = shuffle<Config>(mine, first + r);
#pragma unroll
      for (int c = 0; c < ceil_div(Dim, Config::lanes); ++c) {
        const int column = c * Config::lanes + lane;
        if (column < Dim) columns[r][c] = row[column];
      }
    }
  }

  __device__ float operator()(int r, int c) const {
    const bool exists = c * Config::lanes + static_cast<int>(threadIdx.x % Config::lanes) < Dim;
    return exists ? to_float(columns[r][c]) : 0.f;
  }
};

/// Lane j gets q . k_j for the first `num_keys` keys of the pass.
template <class Config, class Element>
__device__ float score_keys(const QueryRow<Config>& row, const Element* k, int num_keys) {
  const int lane = threadIdx.x % Config::lanes;
  float x = 0.f;
  for (int j = 0; j < num_keys; j += Config::rows_in_flight) {
    const RowsInFlight<Config, Config::head_dim, Element> keys(k, j);
#pragma unroll
    for (int r = 0; r < Config::rows_in_flight; ++r) {
      float dot = 0.f;
      for (int c = 0; c < Config::key_columns; ++c) dot = fmaf(row.q[c], keys(r, c), dot);
      dot = warp_sum<Config>(dot);
      if (lane == j + r) x = dot;
    }
  }
  return x;
}

/// out += weight_j * v_j for the first `num_keys` keys of the pass.
template <class Config, class Element>
__device__ void add_values(RowState<Config>& state, float weight, const Element* v, int num_keys) {
  for (int j = 0; j < num_keys; j += Config::rows_in_flight) {
    const RowsInFlight<Config, Config::head_dim_v, Element> values(v, j);
#pragma unroll
    for (int r = 0; r < Config::rows_in_flight; ++r) {
      const float weight_j = __shfl_sync(Config::all_lanes, weight, j + r);
      for (int c = 0; c < Config::value_columns; ++c) state.out[c] = fmaf(weight_j, values(r, c), state.out[c]);
    }
  }
}

/// One row against the keys of one split. What the row does not see is not read, neither table nor K nor V.
template <class Config, class Problem, AttentionVariant V>
__device__ RowState<Config> attend_keys(const Problem& problem, const V& variant, const QueryRow<Config>& row,
                                        KeyRange keys, int kv_len) {
  const int lane = threadIdx.x % Config::lanes;
  const KeyRanges ranges = variant.keys(row.position, kv_len);
  RowState<Config> state;
  for (int begin = keys.begin; begin < keys.end; begin += Config::lanes) {
    if (!ranges.touches({begin, min(begin + Config::lanes, keys.end)})) continue;
    const Position position{row.position, begin + lane, row.head, row.sequence};
    const bool seen = position.key < keys.end && variant.visible(position);
    const unsigned seen_lanes = __ballot_sync(Config::all_lanes, seen);
    if (seen_lanes == 0) continue;

    KeyAddress<typename Problem::Element> address{};
    if (seen) address = locate(problem, row.sequence, row.kv_head, position.key);
    // A lane without a key borrows the first seen one, at weight 0: loops over keys need no branch and read live rows
    // only.
    const int first = __ffs(static_cast<int>(seen_lanes)) - 1;
    const auto* const first_k = shuffle<Config>(address.k, first);
    const auto* const first_v = shuffle<Config>(address.v, first);
    if (!seen) address = {first_k, first_v};
    const int num_keys = Config::lanes - __clz(static_cast<int>(seen_lanes));

    const float dot = score_keys(row, address.k, num_keys);
    const float logit = seen ? variant.logit(problem.scale * dot, position) : -infinity;
    const float scale = state.softmax.raise(warp_max<Config>(logit));
    const float weight = state.softmax.weight(logit);
    state.softmax.sum += warp_sum<Config>(weight);
    for (float& out : state.out) out *= scale;
    add_values(state, weight, address.v, num_keys);
  }
  return state;
}

template <class Config>
__device__ void store_partial(const Partials& partials, std::int64_t index, const RowState<Config>& piece) {
  const int lane = threadIdx.x % Config::lanes;
  if (lane == 0) partials.softmax(index) = piece.softmax;
  for (int c = 0; c < Config::value_columns; ++c) {
    const int column = c * Config::lanes + lane;
    if (column < Config::head_dim_v) partials.outputs(index, column) = piece.out[c];
  }
}

// Other CTAs wrote what is read here: __ldcg goes past this SM's L1.
template <class Config>
__device__ RowState<Config> load_partial(const Partials& partials, std::int64_t index) {
  const int lane = threadIdx.x % Config::lanes;
  RowState<Config> piece;
  piece.softmax = {__ldcg(&partials.softmax(index).max), __ldcg(&partials.softmax(index).sum)};
  for (int c = 0; c < Config::value_columns; ++c) {
    const int column = c * Config::lanes + lane;
    if (column < Config::head_dim_v) piece.out[c] = __ldcg(partials.outputs.at(index, column));
  }
  return piece;
}

template <class Config, class Problem, AttentionVariant V>
__device__ void finish_row(const Problem& problem, const V& variant, const QueryRow<Config>& row,
                           const RowState<Config>& state) {
  const int lane = threadIdx.x % Config::lanes;
  const auto [scale, lse] = state.softmax.finish(prior_of(variant, row.head));
  auto* const out = problem.out.at(row.token, row.head, 0);
  for (int c = 0; c < Config::value_columns; ++c) {
    const int column = c * Config::lanes + lane;
    if (column < Config::head_dim_v) out[column] = from_float<typename Problem::Output>(scale * state.out[c]);
  }
  if (lane == 0 && !problem.lse.empty()) problem.lse(row.token, row.head) = lse;
}

}  // namespace detail

template <class Config, class Problem, AttentionVariant V>
__global__ void __launch_bounds__(Config::max_threads, Config::min_ctas_per_sm)
    paged_decode_simt_kernel(const __grid_constant__ Problem problem, const __grid_constant__ V variant,
                             const __grid_constant__ DecodeSchedule schedule,
                             const __grid_constant__ Partials partials) {
  using namespace detail;
  const AttentionPlan& plan = schedule.plan;
  const int warp = threadIdx.x / Config::lanes, num_warps = blockDim.x / Config::lanes;

  for (std::int64_t unit = blockIdx.x; unit < schedule.units; unit += gridDim.x) {
    const int share = static_cast<int>(unit % schedule.num_shares);
    const std::int64_t group = unit / schedule.num_shares;  // of rows that share a tile of queries and a KV head
    const int kv_head = static_cast<int>(group % problem.kv_heads());
    const std::int64_t tile = group / problem.kv_heads();
    const int sequence = static_cast<int>(tile / plan.tiles_per_seq);
    const int q_len = problem.tables.q_len(sequence), kv_len = problem.tables.kv_len(sequence);

    const WorkItem first = plan.item(tile, share, q_len, kv_len);
    if (first.rows.empty()) continue;                // the bounds allow longer rows than this one
    if (q_len > problem.tables.max_q_len) continue;  // another kernel's: see DecodeCut::max_q_len
    const int num_pairs = first.rows.size() * problem.group_size();
    const int num_shares = min(schedule.num_shares, first.num_splits);
    const auto partial_index = [&](const QueryRow<Config>& row, int split) {
      return (row.token * problem.q_heads() + row.head) * plan.max_splits + split;
    };

    for (int pair = warp; pair < num_pairs; pair += num_warps) {
      const QueryRow<Config> row = load_query<Config>(problem, first.rows, pair, kv_head, kv_len);
      RowState<Config> state;
      for (int split = share; split < first.num_splits; split += num_shares) {
        const KeyRange keys = plan.item(tile, split, q_len, kv_len).keys;
        const RowState<Config> piece = attend_keys(problem, variant, row, keys, kv_len);
        if (num_shares == 1)
          state.merge(piece);
        else
          store_partial(partials, partial_index(row, split), piece);
      }
      if (num_shares == 1) finish_row(problem, variant, row, state);
    }

    __shared__ bool is_last;
    if (num_shares == 1 || !is_last_to_arrive(partials.arrivals(group), num_shares, is_last)) continue;
    for (int pair = warp; pair < num_pairs; pair += num_warps) {
      const QueryRow<Config> row = load_query<Config>(problem, first.rows, pair, kv_head, kv_len);
      RowState<Config> state;
#pragma unroll 4
      for (int split = 0; split < first.num_splits; ++split)
        state.merge(load_partial<Config>(partials, partial_index(row, split)));
      finish_row(problem, variant, row, state);
    }
  }
}

/// Enqueues the kernel; the entry has checked that Config fits the problem and the workspace fits the schedule.
template <class Config, class Problem, AttentionVariant V>
void decode_simt(const Problem& problem, const V& variant, const DecodeSchedule& schedule, const Partials& partials,
                 cudaStream_t stream) {
  if (schedule.units == 0) return;
  const auto grid = static_cast<unsigned>(schedule.num_ctas), threads = static_cast<unsigned>(32 * schedule.warps);
  paged_decode_simt_kernel<Config><<<grid, threads, 0, stream>>>(problem, variant, schedule, partials);
  check(cudaGetLastError(), "decode_simt: launch");
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
