// The one inner loop of attention and matrix products on a CPU: a few rows times a panel of a few columns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cpu/lanes.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

/// Sums of max_panel_rows rows fill the vector registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int panel_vectors = 4;
#else
inline constexpr int panel_vectors = 2;
#endif
inline constexpr int panel_width = panel_vectors * num_lanes;
inline constexpr int max_panel_rows = 6;

/// A matrix with `depth` rows of panel_width elements each.
template <StorageType T, int Width = panel_width>
struct Panel {
  const T* data;
  std::int64_t stride;  // from row to row
  int depth;
};

namespace detail {

template <int Rows, StorageType T>
void multiply_rows(const float* x, std::int64_t x_stride, Panel<T> panel, bool add, float* out,
                   std::int64_t out_stride) {
  Lanes sums[Rows][panel_vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < panel_vectors; ++v)
      sums[r][v] = add ? load_lanes(out + r * out_stride + v * num_lanes) : Lanes{};
  for (int k = 0; k < panel.depth; ++k) {
    Lanes row[panel_vectors];
    for (int v = 0; v < panel_vectors; ++v) row[v] = load_lanes(panel.data + k * panel.stride + v * num_lanes);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < panel_vectors; ++v) sums[r][v] += x[r * x_stride + k] * row[v];
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < panel_vectors; ++v) store_lanes(sums[r][v], out + r * out_stride + v * num_lanes);
}

template <StorageType T, int Width>
inline constexpr auto multiply_by_rows = []<int... i>(std::integer_sequence<int, i...>) {
  return std::array{&multiply_rows<i + 1, T>...};
}(std::make_integer_sequence<int, max_panel_rows>{});

}  // namespace detail

/// out[num_rows, panel_width] = x[num_rows, panel.depth] panel, or += that. 1 <= num_rows <= max_panel_rows. Each
/// element of `out` is one chain of multiply-adds, in the order of the panel's rows, whatever num_rows is.
template <StorageType T>
void multiply(int num_rows, const float* x, std::int64_t x_stride, Panel<T> panel, bool add, float* out,
              std::int64_t out_stride) {
  const auto multiply_rows = detail::multiply_by_rows<T, panel_width>[static_cast<std::size_t>(num_rows - 1)];
  multiply_rows(x, x_stride, panel, add, out, out_stride);
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
