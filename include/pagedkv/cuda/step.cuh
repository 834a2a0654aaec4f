// What a step asks of a pool in device memory: copy shared tails once, then store each layer's new rows of K and V.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
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

namespace detail {

template <class T, class X>
void validate_rows(const char* name, const View<X, 3, Space::device>& rows, const View<T, 4, Space::device>& blocks,
                   std::int64_t num_slots) {
  const std::string prefix = std::string("store_kv: ") + name;
  require(rows.extents[0] <= num_slots, prefix + " rows, at most the step's,", num_slots, rows.extents[0]);
  if (rows.extents[0] == 0) return;
  require(!rows.empty(), prefix + " pointer", "not null", "null");
  require(rows.extents[1] == blocks.extents[1], prefix + " kv_heads like the cache's,", blocks.extents[1],
          rows.extents[1]);
  require(rows.extents[2] == blocks.extents[3], prefix + " head_dim like the cache's,", blocks.extents[3],
          rows.extents[2]);
  require(rows.strides[2] == 1, prefix + " stride of head_dim", 1, rows.strides[2]);
}

}  // namespace detail

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
  detail::validate_rows("k", k, layer.k, step.slots.extents[0]);
  detail::validate_rows("v", v, layer.v, step.slots.extents[0]);
  if (k.extents[0] == 0) return;
  launch_kv_store<T, std::remove_const_t<X>>(step.slots, layer, k, v, stream);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
