// Matrix products on the CPU: each output element is one chain of multiply-adds over k, whatever the batch and the
// threads, so a row's bits never depend on the company it is computed in. A BLAS gives no such promise: it chooses
// kernels by shape. That is why none is used here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <vector>

#include "pagedkv/core/error.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"

namespace engine {

namespace gemm_detail {
#if defined(__AVX512F__)
inline constexpr int lanes = 16;
#elif defined(__AVX__)
inline constexpr int lanes = 8;
#else
inline constexpr int lanes = 4;
#endif
using Lanes [[gnu::vector_size(lanes * sizeof(float))]] = float;
inline constexpr int panel_vectors = 2;
inline constexpr int panel_width = lanes * panel_vectors;
}  // namespace gemm_detail

/// A weight matrix [rows, cols] packed for `matmul`: panels of a few output rows, k by k, so that the inner loop reads
/// memory in order. The last panel is padded with zeros.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  /// `values` are row-major, as checkpoints store them.
  PackedMatrix(std::span<const float> values, int rows, int cols)
      : rows_(rows), cols_(cols), packed_(static_cast<std::size_t>(num_panels()) * panel_elements()) {
    pagedkv::require(std::ssize(values) == std::int64_t{rows} * cols, "PackedMatrix: values", std::int64_t{rows} * cols,
                     std::ssize(values));
    for (int row = 0; row < rows; ++row)
      for (int col = 0; col < cols; ++col)
        packed_[static_cast<std::size_t>(row / width) * panel_elements() + static_cast<std::size_t>(col) * width +
                static_cast<std::size_t>(row % width)] =
            values[static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(col)];
  }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int num_panels() const { return pagedkv::ceil_div(rows_, width); }
  const float* panel(int index) const { return packed_.data() + static_cast<std::size_t>(index) * panel_elements(); }

  /// Unpacks one row into `out`, [cols].
  void copy_row(int row, float* out) const {
    const float* first = panel(row / width) + row % width;
    for (std::int64_t col = 0; col < cols_; ++col) out[col] = first[col * width];
  }

  static constexpr int width = gemm_detail::panel_width;

 private:
  std::size_t panel_elements() const { return static_cast<std::size_t>(cols_) * width; }

  int rows_ = 0;
  int cols_ = 0;
  std::vector<float> packed_;
};

namespace gemm_detail {

// out[NumRows, panel] = x[NumRows, cols] panel[cols, panel]. The accumulators stay in registers for all of k.
template <int NumRows>
void multiply_tile(const float* x, std::int64_t x_stride, const float* panel, int cols, float* out,
                   std::int64_t out_stride, int num_outputs) {
  Lanes sum[NumRows][panel_vectors] = {};
  for (int k = 0; k < cols; ++k) {
    Lanes w[panel_vectors];
    std::memcpy(w, panel + std::int64_t{k} * panel_width, sizeof w);
    for (int r = 0; r < NumRows; ++r)
      for (int v = 0; v < panel_vectors; ++v) sum[r][v] += x[r * x_stride + k] * w[v];
  }
  for (int r = 0; r < NumRows; ++r)
    std::memcpy(out + r * out_stride, sum[r], static_cast<std::size_t>(num_outputs) * sizeof(float));
}

inline constexpr decltype(&multiply_tile<1>) tiles[] = {multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,
                                                        multiply_tile<4>};
inline constexpr int max_tile_rows = static_cast<int>(std::size(tiles));

}  // namespace gemm_detail

/// out[n, w.rows] = x[n, w.cols] transpose(w), in float. Panels are shared out by `executor` (cpu::Executor).
template <class Executor>
void matmul(pagedkv::View<const float, 2> x, const PackedMatrix& w, pagedkv::View<float, 2> out, Executor&& executor) {
  using namespace gemm_detail;
  pagedkv::require(x.extents[1] == w.cols(), "matmul: columns of x", w.cols(), x.extents[1]);
  pagedkv::require(out.extents[1] == w.rows() && out.extents[0] == x.extents[0], "matmul: columns of out", w.rows(),
                   out.extents[1]);
  const std::int64_t num_rows = x.extents[0];
  executor(w.num_panels(), [&](int p) {
    const int first = p * panel_width;
    const int num_outputs = std::min(panel_width, w.rows() - first);
    for (std::int64_t row = 0; row < num_rows; row += max_tile_rows) {
      const auto tile = tiles[std::min<std::int64_t>(max_tile_rows, num_rows - row) - 1];
      tile(x.at(row, 0), x.strides[0], w.panel(p), w.cols(), out.at(row, first), out.strides[0], num_outputs);
    }
  });
}

}  // namespace engine
