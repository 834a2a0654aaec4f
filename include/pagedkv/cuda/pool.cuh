// cuda::KvPool: owns the bytes of a pool in device memory; PinnedKvPool: in host memory that swaps with it.
#pragma once

#include <cstddef>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// K and V of all layers, zeroed when made. Like pagedkv::KvPool, in the memory of the current device.
template <StorageType T>
class KvPool {
 public:
  /// Throws InvalidArgument on an impossible layout, CudaError where memory runs out.
  explicit KvPool(const KvLayout& layout)
      : layout_(layout.validated()), elements_(static_cast<std::size_t>(layout.num_elements())) {}

  const KvLayout& layout() const { return layout_; }
  std::size_t size_bytes() const { return elements_.size_bytes(); }

  KvLayers<T, Space::device> layers() { return layers_view<Space::device>(elements_.data(), layout_); }

  /// Throws InvalidArgument unless 0 <= index < num_layers.
  KvView<T, Space::device> layer(int index) {
    require(index >= 0 && index < layout_.num_layers, "cuda::KvPool: layer index below", layout_.num_layers, index);
    return layers().layer(index);
  }

 private:
  KvLayout layout_;
  DeviceArray<T> elements_;
};

/// A pool in host memory that the GPU can copy from and to while the host goes on: what swap_blocks wants. Throws CudaError
/// where pinned memory runs out.
template <StorageType T>
using PinnedKvPool = pagedkv::KvPool<T, PinnedAllocator<T>>;

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
