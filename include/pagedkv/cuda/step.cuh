// What a step asks of a pool in device memory: copy shared tails once, then store each layer's new rows of K and V.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/copy_blocks.cuh"
#include "pagedkv/cuda/kernels/store_kv.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Copy-on-write: executes the step's copies in all layers; only the valid rows of a block move. Once a step, before
/// any store_kv. Enqueues one kernel, none if there is nothing to copy; can be captured. Throws InvalidArgument, before
/// launching, on an impossible cache.
template <StorageType T>
void copy_blocks(const StepView& step, const KvLayers<T, Space::device>& layers, cudaStream_t stream) {
  layers.first.validate();
  constexpr int max_layers = 32767;  // two for each of a grid's y
  require(layers.num_layers <= max_layers, "copy_blocks: layers, at most", max_layers, layers.num_layers);
  if (step.copies.extents[0] == 0 || layers.num_layers == 0) return;
  const bool aligned = detail::consists_of<uint4>(layers.first.k, layers.layer_stride) &&
                       detail::consists_of<uint4>(layers.first.v, layers.layer_stride);
  if (aligned)
    launch_block_copies<uint4>(step.copies, layers, stream);
  else
    launch_block_copies<T>(step.copies, layers, stream);
}

template <StorageType T>
void copy_blocks(const StepView& step, KvPool<T>& pool, cudaStream_t stream) {
  copy_blocks(step, pool.layers(), stream);
}

/// Writes one layer's new rows to the step's slots, in the order of the appends; rows of dead slots are skipped.
///   k  [num_rows, kv_heads, head_dim], v  [num_rows, kv_heads, head_dim_v]; last stride 1; converted X -> T, to
///   nearest
/// num_rows may be less than the step's slots. Enqueues one kernel; can be captured: with workspace.step(num_rows) a
/// replay stores as many rows as the last upload filled. Throws InvalidArgument, before launching, where shapes
/// disagree.
template <StorageType T, class X>
void store_kv(const StepView& step, const KvView<T, Space::device>& layer, const View<X, 3, Space::device>& k,
              const View<X, 3, Space::device>& v, cudaStream_t stream) {
  layer.validate();
  require(k.extents[0] == v.extents[0], "store_kv: v rows like k's,", k.extents[0], v.extents[0]);
  require(k.extents[0] <= step.slots.extents[0], "store_kv: k rows, at most the step's,", step.slots.extents[0],
          k.extents[0]);
  validate_rows("store_kv: k", k, layer.k);
  validate_rows("store_kv: v", v, layer.v);
  if (k.extents[0] == 0) return;
  launch_kv_store<T, std::remove_const_t<X>>(step.slots, layer, k, v, stream);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
