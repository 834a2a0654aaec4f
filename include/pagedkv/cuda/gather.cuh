// gather_kv: the keys and values of a batch out of their blocks, as contiguous arrays: for kernels that know no blocks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/gather_kv.cuh"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/storage/kv_view.hpp"
#include "pagedkv/storage/pieces.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

template <class P, class T>
void launch_kv_gather(const TablesView<Space::device>& tables,
                      const View<const std::int32_t, 1, Space::device>& key_begin,
                      const KvView<const T, Space::device>& layer, const View<T, 3, Space::device>& k,
                      const View<T, 3, Space::device>& v, cudaStream_t stream, Launch mode) {
  using Config = MoveConfig<P, P, choose_move()>;
  constexpr auto count = static_cast<std::int64_t>(sizeof(P) / sizeof(T));
  const std::int64_t num_pieces = k.extents[0] * k.extents[1] * max(k.extents[2], v.extents[2]) / count;
  constexpr std::int64_t max_pieces = 2'000'000'000;  // a kernel counts them, to the end of a tile, in 31 bits
  require(num_pieces <= max_pieces, "gather_kv: pieces of K or V in one call, at most", max_pieces, num_pieces);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div<std::int64_t>(num_pieces, Config::tile_pieces)), 2),
      .threads = Config::threads};
  const KvView<const P, Space::device> pieces{.k = in_pieces<P>(layer.k), .v = in_pieces<P>(layer.v)};
  launch(kv_gather_kernel<Config>, shape, mode, stream, "gather_kv: launch", tables, key_begin, pieces, in_pieces<P>(k),
         in_pieces<P>(v), make_piece_shape(pieces));
}

}  // namespace detail

/// Copies the first keys and values of every sequence out of one layer's blocks, one sequence behind the other.
///   key_begin  [num_seqs + 1], starts at 0: sequence s fills rows key_begin[s] .. key_begin[s + 1], at most kv_len[s];
///              empty for a batch of one sequence, whose kv_len rows are copied
///   k  [num_rows, kv_heads, head_dim], v  [num_rows, kv_heads, head_dim_v]; last stride 1
/// num_rows is an upper bound: rows behind key_begin[num_seqs], and rows of blocks that a window has dropped, keep what
/// they hold. Enqueues one kernel; can be captured. Throws InvalidArgument, before launching, where shapes disagree.
template <StorageType T>
void gather_kv(const TablesView<Space::device>& tables, const View<const std::int32_t, 1, Space::device>& key_begin,
               const KvView<T, Space::device>& layer, const View<T, 3, Space::device>& k,
               const View<T, 3, Space::device>& v, cudaStream_t stream, Launch mode = Launch::after_previous) {
  layer.validate();
  const std::int64_t num_seqs = tables.num_seqs();
  if (key_begin.empty())
    require(num_seqs == 1, "gather_kv: sequences without key_begin", 1, num_seqs);
  else
    require(key_begin.extents[0] == num_seqs + 1, "gather_kv: key_begin entries", num_seqs + 1, key_begin.extents[0]);
  require(k.extents[0] == v.extents[0], "gather_kv: v rows like k's,", k.extents[0], v.extents[0]);
  validate_rows("gather_kv: k", k, layer.k);
  validate_rows("gather_kv: v", v, layer.v);
  if (k.extents[0] == 0 || num_seqs == 0) return;
  constexpr int count = 16 / sizeof(T);
  if (consists_of(k, count) && consists_of(v, count) && consists_of(layer.k, count) && consists_of(layer.v, count))
    detail::launch_kv_gather<Piece<16>, T>(tables, key_begin, layer, k, v, stream, mode);
  else
    detail::launch_kv_gather<Piece<sizeof(T)>, T>(tables, key_begin, layer, k, v, stream, mode);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
