// New rows of K and V to their slots in one layer's cache, converted to the cache's type.
//
//   grid  one CTA a row; dead rows end at once
//   CTA   walks over [kv_heads, head_dim] of K, then of V
#pragma once

#include <cuda_runtime_api.h>

#include <concepts>
#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

template <class T, class X>
__device__ void store_row(const View<T, 4, Space::device>& blocks, Slot slot,
                          const View<const X, 3, Space::device>& rows, std::int64_t row) {
  const std::int64_t block = slot / blocks.extents[2], offset = slot % blocks.extents[2];
  PAGEDKV_ASSERT(block < blocks.extents[0]);
  const int dim = static_cast<int>(blocks.extents[3]), num_elements = static_cast<int>(blocks.extents[1]) * dim;
  for (int i = threadIdx.x; i < num_elements; i += blockDim.x) {
    const int head = i / dim, column = i % dim;
    const X x = rows(row, head, column);
    if constexpr (std::same_as<X, T>)
      blocks(block, head, offset, column) = x;
    else
      blocks(block, head, offset, column) = from_float<T>(to_float(x));
  }
}

}  // namespace detail

template <class T, class X>
__global__ void kv_store_kernel(const View<const Slot, 1, Space::device> slots, const KvView<T, Space::device> layer,
                                const View<const X, 3, Space::device> k, const View<const X, 3, Space::device> v) {
  const Slot slot = slots(blockIdx.x);
  if (slot < 0) return;
  detail::store_row(layer.k, slot, k, blockIdx.x);
  detail::store_row(layer.v, slot, v, blockIdx.x);
}

/// Enqueues one launch for the rows of k and v.
template <class T, class X>
void launch_kv_store(const View<const Slot, 1, Space::device>& slots, const KvView<T, Space::device>& layer,
                     const View<const X, 3, Space::device>& k, const View<const X, 3, Space::device>& v,
                     cudaStream_t stream) {
  kv_store_kernel<<<static_cast<unsigned>(k.extents[0]), 128, 0, stream>>>(slots, layer, k, v);
  check(cudaGetLastError(), "store_kv: launch");
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
