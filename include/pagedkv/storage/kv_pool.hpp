// KvPool: owns the bytes of a pool in host memory.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// K and V of all layers, zeroed when made. Who owns which block is BlockAllocator's affair; the pool only has bytes,
/// out of `Allocator`.
template <StorageType T, class Allocator = std::allocator<T>>
class KvPool {
 public:
  /// Throws InvalidArgument on an impossible layout.
  explicit KvPool(const KvLayout& layout)
      : layout_(layout.validated()), elements_(static_cast<std::size_t>(layout.num_elements())) {}

  const KvLayout& layout() const { return layout_; }
  std::size_t size_bytes() const { return elements_.size() * sizeof(T); }

  KvLayers<T, Space::host> layers() { return layers_view(elements_.data(), layout_); }

  /// Throws InvalidArgument unless 0 <= index < num_layers.
  KvView<T, Space::host> layer(int index) {
    require(index >= 0 && index < layout_.num_layers, "KvPool: layer index below num_layers", layout_.num_layers,
            index);
    return layers().layer(index);
  }

 private:
  KvLayout layout_;
  std::vector<T, Allocator> elements_;
};

}  // namespace v0
}  // namespace pagedkv
