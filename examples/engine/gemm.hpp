// Matrix products on the CPU: each output element is one chain of multiply-adds over k, whatever the batch and the
// threads, so a row's bits never depend on the company it is computed in. A BLAS gives no such promise: it chooses
// kernels by shape. That is why none is used here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/panel.hpp"

namespace engine {

/// A weight matrix [rows, cols] packed for `matmul`: panels of a few output rows, k by k, so that the inner loop reads
/// memory in order. The last panel is padded with zeros. In bf16 a weight has half the bytes, which is what limits
/// decoding, and is rounded once, here: weights that a checkpoint stores as bf16 stay what they are.
template <pagedkv::StorageType T, int PanelWidth = pagedkv::cpu::panel_width>
class PackedWeights {
 public:
  PackedWeights() = default;

  /// `values` are row-major, as checkpoints store them.
  PackedWeights(std::span<const float> values, int rows, int cols)
      : rows_(rows), cols_(cols), packed_(static_cast<std::size_t>(num_panels()) * panel_elements()) {
    pagedkv::require(std::ssize(values) == std::int64_t{rows} * cols, "PackedWeights: values",
                     std::int64_t{rows} * cols, std::ssize(values));
    for (int row = 0; row < rows; ++row)
      for (int col = 0; col < cols; ++col)
        packed_[static_cast<std::size_t>(row / width) * panel_elements() + static_cast<std::size_t>(col) * width +
                static_cast<std::size_t>(row % width)] =
            pagedkv::from_float<T>(
                values[static_cast<std::size_t>(row) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(col)]);
  }

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int num_panels() const { return pagedkv::ceil_div(rows_, width); }
  const T* panel(int index) const { return packed_.data() + static_cast<std::size_t>(index) * panel_elements(); }

  /// Unpacks one row into `out`, [cols].
  void copy_row(int row, float* out) const {
    const T* first = panel(row / width) + row % width;
    for (std::int64_t col = 0; col < cols_; ++col) out[col] = pagedkv::to_float(first[col * width]);
  }

  static constexpr int width = PanelWidth;

 private:
  std::size_t panel_elements() const { return static_cast<std::size_t>(cols_) * width; }

  int rows_ = 0;
  int cols_ = 0;
  std::vector<T> packed_;
};

using PackedMatrix = PackedWeights<float>;

/// out[n, w.rows] = x[n, w.cols] transpose(w), in float. Panels are shared out by `executor` (cpu::Executor).
template <pagedkv::StorageType T, class Executor>
void matmul(pagedkv::View<const float, 2> x, const PackedWeights<T>& w, pagedkv::View<float, 2> out,
            Executor&& executor) {
  using namespace pagedkv::cpu;
  pagedkv::require(x.extents[1] == w.cols(), "matmul: columns of x", w.cols(), x.extents[1]);
  pagedkv::require(out.extents[1] == w.rows() && out.extents[0] == x.extents[0], "matmul: columns of out", w.rows(),
                   out.extents[1]);
  // Of k, as much of a panel as stays in the cache while all rows pass by. The sums wait in `out`: same chains.
  constexpr int depth = 512;
  const std::int64_t num_rows = x.extents[0];
  executor(w.num_panels(), [&](int p) {
    const int first = p * panel_width;
    const bool is_whole = first + panel_width <= w.rows();
    for (int k = 0; k < w.cols(); k += depth) {
      const Panel<T> panel{w.panel(p) + std::int64_t{k} * panel_width, panel_width, std::min(depth, w.cols() - k)};
      for (std::int64_t row = 0; row < num_rows; row += max_panel_rows) {
        const int count = static_cast<int>(std::min<std::int64_t>(max_panel_rows, num_rows - row));
        if (is_whole) {
          multiply(count, x.at(row, k), x.strides[0], panel, k > 0, out.at(row, first), out.strides[0]);
          continue;
        }
        float sums[max_panel_rows * panel_width];
        const int num_outputs = w.rows() - first;
        for (int r = 0; r < count; ++r) std::copy_n(out.at(row + r, first), num_outputs, sums + r * panel_width);
        multiply(count, x.at(row, k), x.strides[0], panel, k > 0, sums, panel_width);
        for (int r = 0; r < count; ++r) std::copy_n(sums + r * panel_width, num_outputs, out.at(row + r, first));
      }
    }
  });
}

}  // namespace engine
