// What a step asks of a pool in device memory: copy shared tails once, then store each layer's new rows of K and V.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/copy_blocks.cuh"
#include "pagedkv/cuda/kernels/move_pieces.cuh"
#include "pagedkv/cuda/kernels/store_kv.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/kv_view.hpp"
#include "pagedkv/storage/pieces.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

template <class P, class T>
void launch_block_copies(const StepView& step, const KvLayers<T, Space::device>& layers, cudaStream_t stream,
                         Launch mode) {
  using Config = MoveConfig<P, P, choose_move()>;
  const KvLayers<P, Space::device> pieces = in_pieces<P>(layers);
  const CopyGrid grid = make_copy_grid(step.copies.extents[0], pieces, choose_move());
  constexpr std::int64_t max_tiles = 32767;  // two for each of a grid's y
  require(grid.num_tiles <= max_tiles, "copy_blocks: tiles of one block, at most", max_tiles, grid.num_tiles);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(grid.num_copies), static_cast<unsigned>(2 * grid.num_tiles),
                   static_cast<unsigned>(grid.num_groups)),
      .threads = Config::threads};
  launch(block_copy_kernel<Config>, shape, mode, stream, "copy_blocks: launch", step.copies, pieces,
         make_piece_shape(pieces.first), grid.layers_per_cta);
}

template <class T, class X, int Count>
void launch_kv_store(const StepView& step, const KvView<T, Space::device>& layer,
                     const View<const X, 3, Space::device>& k, const View<const X, 3, Space::device>& v,
                     cudaStream_t stream, Launch mode) {
  using Config = StoreConfig<T, X, Count, choose_move()>;
  const std::int64_t num_pieces = k.extents[0] * k.extents[1] * max(k.extents[2], v.extents[2]) / Count;
  constexpr std::int64_t max_pieces = 2'000'000'000;  // a kernel counts them, to the end of a tile, in 31 bits
  require(num_pieces <= max_pieces, "store_kv: pieces of K or V in one call, at most", max_pieces, num_pieces);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div<std::int64_t>(num_pieces, Config::tile_pieces)), 2),
      .threads = Config::threads};
  using From = typename Config::From;
  using To = typename Config::To;
  const KvView<To, Space::device> pieces{.k = in_pieces<To>(layer.k), .v = in_pieces<To>(layer.v)};
  launch(kv_store_kernel<Config>, shape, mode, stream, "store_kv: launch", step.slots, pieces, in_pieces<From>(k),
         in_pieces<From>(v), make_piece_shape(pieces));
}

}  // namespace detail

/// Copy-on-write: executes the step's copies in all layers; only the valid rows of a block move. Once a step, before
/// any store_kv. Enqueues one kernel, none if there is nothing to copy; can be captured: copies behind the fill cost
/// next to nothing. 16 bytes at a time where pointers and strides allow, else an element. Throws InvalidArgument,
/// before launching, on an impossible cache.
template <StorageType T>
void copy_blocks(const StepView& step, const KvLayers<T, Space::device>& layers, cudaStream_t stream,
                 Launch mode = Launch::after_previous) {
  layers.first.validate();
  if (step.copies.extents[0] == 0 || layers.num_layers == 0) return;
  constexpr int count = 16 / sizeof(T);
  if (consists_of(layers, count))
    detail::launch_block_copies<Piece<16>>(step, layers, stream, mode);
  else
    detail::launch_block_copies<Piece<sizeof(T)>>(step, layers, stream, mode);
}

template <StorageType T>
void copy_blocks(const StepView& step, KvPool<T>& pool, cudaStream_t stream, Launch mode = Launch::after_previous) {
  copy_blocks(step, pool.layers(), stream, mode);
}

/// Writes one layer's new rows to the step's slots, in the order of the appends; rows of dead slots are skipped.
///   k  [num_rows, kv_heads, head_dim], v  [num_rows, kv_heads, head_dim_v]; last stride 1; converted X -> T, to
///   nearest
/// num_rows may be less than the step's slots. Enqueues one kernel; can be captured: with workspace.step(num_rows) a
/// replay stores as many rows as the last upload filled. 16 bytes at a time where pointers and strides allow, else an
/// element. Throws InvalidArgument, before launching, where shapes disagree.
template <StorageType T, class X>
void store_kv(const StepView& step, const KvView<T, Space::device>& layer, const View<X, 3, Space::device>& k,
              const View<X, 3, Space::device>& v, cudaStream_t stream, Launch mode = Launch::after_previous) {
  layer.validate();
  require(k.extents[0] == v.extents[0], "store_kv: v rows like k's,", k.extents[0], v.extents[0]);
  require(k.extents[0] <= step.slots.extents[0], "store_kv: k rows, at most the step's,", step.slots.extents[0],
          k.extents[0]);
  validate_rows("store_kv: k", k, layer.k);
  validate_rows("store_kv: v", v, layer.v);
  if (k.extents[0] == 0) return;
  using Given = std::remove_const_t<X>;
  constexpr int count = 16 / max(sizeof(T), sizeof(Given));
  if (consists_of(k, count) && consists_of(v, count) && consists_of(layer.k, count) && consists_of(layer.v, count))
    detail::launch_kv_store<T, Given, count>(step, layer, k, v, stream, mode);
  else
    detail::launch_kv_store<T, Given, 1>(step, layer, k, v, stream, mode);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
