// KvPool: owns the bytes of a pool in host memory.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {

/// std::allocator whose memory begins where a cache line does: no row of a usual head_dim then lies across one more.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), alignment)); }
  void deallocate(T* data, std::size_t) { ::operator delete(data, alignment); }
  friend bool operator==(const CacheLineAllocator&, const CacheLineAllocator&) { return true; }
};

/// K and V of all layers, zeroed when made. Who owns which block is BlockAllocator's affair; the pool only has bytes,
/// out of `Allocator`.
template <StorageType T, class Allocator = CacheLineAllocator<T>>
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
