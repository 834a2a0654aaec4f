// BoxedTensor: K, V or Q as a five-dimensional tensor out of which TMA lifts boxes, in numbers that need neither driver
// nor GPU.
#pragma once

#include <cstdint>

#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/tile/swizzle.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// Axes, innermost first. What does not exist arrives as zeros.
struct BoxedTensor {
  const void* data = nullptr;
  std::uint64_t extents[5] = {};
  std::uint64_t strides_bytes[4] = {};  // of axes 1 to 4
  std::uint32_t box[5] = {};
};

/// Can TMA lift boxes of `box_rows` slots out of this view, [num_blocks, kv_heads, block_size, dim] of 16-bit elements
/// in any order, or why not? O(1), on the host.
template <class T, Space S>
Support boxed_support(const View<T, 4, S>& view, int box_rows) {
  static_assert(sizeof(T) == 2, "a slab counts 16-bit elements");
  if (box_rows < 8 || box_rows > 256 || box_rows % 8 != 0) return {"a box has 8 to 256 rows, a multiple of 8"};
  if (view.extents[2] % box_rows != 0) return {"block_size must be a multiple of a box's rows"};
  if (view.extents[3] < 16 || view.extents[3] > 256 || view.extents[3] % 16 != 0)
    return {"head_dim must be a multiple of 16 up to 256"};
  if (view.strides[3] != 1) return {"rows of head_dim must be contiguous"};
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return {"K and V must start at a multiple of 16 bytes"};
  for (int axis = 0; axis < 3; ++axis) {
    if (view.extents[axis] < 1 || view.extents[axis] > std::int64_t{1} << 31)
      return {"TMA counts 1 to 2^31 blocks, heads and slots"};
    if (view.extents[axis] == 1) continue;  // a stride that nobody takes
    if (view.strides[axis] % 8 != 0) return {"strides must be multiples of 16 bytes"};
    if (view.strides[axis] < 0 || view.strides[axis] >= std::int64_t{1} << 39)
      return {"strides must not be negative and be less than 2^40 bytes"};
  }
  return {};
}

/// K or V, only where boxed_support() says yes: axes column in a slab, slot, slab, KV head, block. A box is {slab,
/// box_rows slots, box_slabs, 1, 1}: with all slabs (0) what TMA lays down is one box of BoxedTile<dim, box_rows>.
template <class T, Space S>
BoxedTensor boxed(const View<T, 4, S>& view, int box_rows, int box_slabs = 0) {
  const auto columns = static_cast<std::uint32_t>(slab_columns(static_cast<int>(view.extents[3])));
  const auto slabs = static_cast<std::uint32_t>(view.extents[3]) / columns;
  const auto extent = [&](int axis) { return static_cast<std::uint64_t>(view.extents[axis]); };
  const auto stride_bytes = [&](int axis) {  // 16 where nobody takes it: whatever stands there, the driver would check
    return view.extents[axis] == 1 ? 16 : 2 * static_cast<std::uint64_t>(view.strides[axis]);
  };
  return {.data = view.data,
          .extents = {columns, extent(2), slabs, extent(1), extent(0)},
          .strides_bytes = {stride_bytes(2), std::uint64_t{2} * columns, stride_bytes(1), stride_bytes(0)},
          .box = {columns, static_cast<std::uint32_t>(box_rows),
                  box_slabs == 0 ? slabs : static_cast<std::uint32_t>(box_slabs), 1, 1}};
}

/// Q [num_tokens, q_heads, head_dim], rows_aligned() to 16 bytes: axes column in a slab, head, token, slab, and one
/// more. A box is {slab, heads, rows / heads tokens, 1, 1}: rows whose heads come first.
template <class T, Space S>
BoxedTensor boxed_queries(const View<T, 3, S>& view, int heads, int rows) {
  const auto columns = static_cast<std::uint32_t>(slab_columns(static_cast<int>(view.extents[2])));
  const auto extent = [&](int axis) { return static_cast<std::uint64_t>(view.extents[axis]); };
  const auto stride_bytes = [&](int axis) {
    return view.extents[axis] == 1 ? 16 : 2 * static_cast<std::uint64_t>(view.strides[axis]);
  };
  return {.data = view.data,
          .extents = {columns, extent(1), extent(0), extent(2) / columns, 1},
          .strides_bytes = {stride_bytes(1), stride_bytes(0), std::uint64_t{2} * columns, 16},
          .box = {columns, static_cast<std::uint32_t>(heads), static_cast<std::uint32_t>(rows / heads), 1, 1}};
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
