// View: a pointer with extents and strides, trivially copyable, that knows on which side of the bus it may be read.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// A strided array of `Rank` dimensions that owns nothing. Strides are in elements and 64-bit: offsets may pass 2^32.
/// A default-made view is empty, which means "not wanted" where an output is optional.
template <class T, int Rank, Space S = Space::host>
struct View {
  T* data = nullptr;
  std::int64_t extents[Rank] = {};
  std::int64_t strides[Rank] = {};

  template <class... Index>
  PAGEDKV_HD constexpr T* at(Index... index) const {
    static_assert(sizeof...(Index) == Rank, "one index per dimension");
    const std::int64_t indices[] = {static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (int d = 0; d < Rank; ++d) offset += indices[d] * strides[d];
    return data + offset;
  }

  template <class... Index>
  PAGEDKV_HD constexpr T& operator()(Index... index) const {
    return *at(index...);
  }

  PAGEDKV_HD constexpr bool empty() const { return data == nullptr; }

  // A template, because nvcc warns of a conversion from View<const T> to itself, even of one that is constrained away.
  template <std::same_as<const T> ConstT>
  PAGEDKV_HD constexpr operator View<ConstT, Rank, S>() const {
    View<ConstT, Rank, S> view;
    view.data = data;
    for (int d = 0; d < Rank; ++d) {
      view.extents[d] = extents[d];
      view.strides[d] = strides[d];
    }
    return view;
  }
};

/// A dense row-major view: the last dimension has stride 1.
template <Space S = Space::host, class T, std::size_t Rank>
PAGEDKV_HD constexpr View<T, static_cast<int>(Rank), S> dense_view(T* data, const std::int64_t (&extents)[Rank]) {
  View<T, static_cast<int>(Rank), S> view;
  view.data = data;
  std::int64_t stride = 1;
  for (int d = static_cast<int>(Rank) - 1; d >= 0; --d) {
    view.extents[d] = extents[d];
    view.strides[d] = stride;
    stride *= extents[d];
  }
  return view;
}

/// Do all rows of the last axis start at a multiple of `bytes`? Axes of one element do not count.
template <class T, int Rank, Space S>
bool rows_aligned(const View<T, Rank, S>& view, std::size_t bytes) {
  bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % bytes == 0;
  for (int axis = 0; axis < Rank - 1; ++axis)
    aligned &= view.extents[axis] <= 1 ||
               view.strides[axis] * static_cast<std::int64_t>(sizeof(T)) % static_cast<std::int64_t>(bytes) == 0;
  return aligned;
}

}  // namespace v0
}  // namespace pagedkv
