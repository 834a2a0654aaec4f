// The one inner loop of attention and matrix products on a CPU: a few rows times a panel of a few columns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
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

/// Two bf16 of one column, the first from the row above: a row of them is two rows of a matrix.
struct RowPair {
  bf16 first, second;
};

/// bf16 whose sums may come in another order, without shuffles: of each 2 num_lanes columns the even ones, then the odd
/// ones. join_pairs() puts them right.
struct SplitBf16 {
  bf16 value;
};

/// A matrix with `depth` rows of panel_width elements each. With each row as many bytes are fetched of what is wanted
/// next.
template <class T, int Width = panel_width>
struct Panel {
  using Element = T;
  const T* data;
  std::int64_t stride;  // from row to row
  int depth;
  const char* const* ahead = nullptr;  // [depth]

  const T* row(int k) const { return data + k * stride; }
  const char* ahead_of(int k) const { return ahead[k]; }
};

/// The same where rows lie anywhere: columns from `column` on of each, which is stored as Stored and read as T.
template <class T, class Stored, int Width = panel_width>
struct ScatteredPanel {
  using Element = T;
  const Stored* const* rows;  // [depth]
  std::int64_t column;
  int depth;
  const Stored* const* ahead;  // [depth], from ahead_column on
  std::int64_t ahead_column;

  const T* row(int k) const { return reinterpret_cast<const T*>(rows[k] + column); }
  const char* ahead_of(int k) const { return reinterpret_cast<const char*>(ahead[k] + ahead_column); }
};

namespace detail {

template <class T>
inline constexpr int rows_of = std::is_same_v<T, RowPair> ? 2 : 1;

/// Vector v of the row, of a RowPair's first or second one.
template <class T>
[[gnu::always_inline]] inline Lanes load_vector(const T* source, int v, [[maybe_unused]] int row) {
  if constexpr (std::is_same_v<T, RowPair>) {
    const LaneBits pairs = load_pairs(source + v * num_lanes);
    return row == 0 ? first_of(pairs) : second_of(pairs);
  } else if constexpr (std::is_same_v<T, SplitBf16>) {
    const LaneBits pairs = load_pairs(source + v / 2 * 2 * num_lanes);
    return v % 2 == 0 ? first_of(pairs) : second_of(pairs);
  } else {
    return load_lanes(source + v * num_lanes);
  }
}

template <int Rows, class P>
void multiply_rows(const float* x, std::int64_t x_stride, P panel, bool add, float* out, std::int64_t out_stride) {
  using T = typename P::Element;
  constexpr int row_bytes = panel_width * sizeof(T);
  Lanes sums[Rows][panel_vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < panel_vectors; ++v)
      sums[r][v] = add ? load_lanes(out + r * out_stride + v * num_lanes) : Lanes{};
  for (int k = 0; k < panel.depth; ++k) {
    for (int i = 0; i < rows_of<T>; ++i) {
      Lanes row[panel_vectors];
      for (int v = 0; v < panel_vectors; ++v) row[v] = load_vector(panel.row(k), v, i);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < panel_vectors; ++v) sums[r][v] += x[r * x_stride + k * rows_of<T> + i] * row[v];
    }
    if (panel.ahead != nullptr)
      for (int byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(panel.ahead_of(k) + byte);
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < panel_vectors; ++v) store_lanes(sums[r][v], out + r * out_stride + v * num_lanes);
}

template <class P>
inline constexpr auto multiply_by_rows = []<int... i>(std::integer_sequence<int, i...>) {
  return std::array{&multiply_rows<i + 1, P>...};
}(std::make_integer_sequence<int, max_panel_rows>{});

}  // namespace detail

/// out[num_rows, panel_width] = x[num_rows, depth] panel, or += that. 1 <= num_rows <= max_panel_rows. Each element of
/// `out` is one chain of multiply-adds, in the order of the panel's rows, whatever num_rows and the panel's type are.
template <class P>
void multiply(int num_rows, const float* x, std::int64_t x_stride, P panel, bool add, float* out,
              std::int64_t out_stride) {
  const auto multiply_rows = detail::multiply_by_rows<P>[static_cast<std::size_t>(num_rows - 1)];
  multiply_rows(x, x_stride, panel, add, out, out_stride);
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
