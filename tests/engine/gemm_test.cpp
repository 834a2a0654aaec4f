// Matrix products against a sum in double, and their promise: a row's bits do not depend on its company.
#include "engine/gemm.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "pagedkv/cpu/executor.hpp"

using namespace engine;
using pagedkv::dense_view;

namespace {

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = std::uniform_real_distribution<float>(-1, 1)(random);
  return values;
}

}  // namespace

TEST_CASE("products agree with a sum in double for every remainder of rows, panels and columns") {
  for (const int rows : {1, 2, 3, 4, 5, 7, 16, 33})
    for (const int outputs : {1, 2, 31, 32, 33, 70})
      for (const int cols : {1, 2, 17, 64, 1025}) {
        const auto x = random_floats(static_cast<std::size_t>(rows * (cols + 3)), 1);  // a row is part of a wider one
        const auto w = random_floats(static_cast<std::size_t>(outputs * cols), 2);
        std::vector<float> out(static_cast<std::size_t>(rows * (outputs + 2)), -9);
        pagedkv::View<const float, 2> x_view = dense_view(x.data(), {rows, cols + 3});
        x_view.extents[1] = cols;
        pagedkv::View<float, 2> out_view = dense_view(out.data(), {rows, outputs + 2});
        out_view.extents[1] = outputs;
        matmul(x_view, PackedMatrix(w, outputs, cols), out_view, pagedkv::cpu::InlineExecutor{});
        for (int r = 0; r < rows; ++r) {
          for (int o = 0; o < outputs; ++o) {
            double sum = 0;
            for (int k = 0; k < cols; ++k)
              sum += static_cast<double>(x_view(r, k)) * static_cast<double>(w[static_cast<std::size_t>(o * cols + k)]);
            CHECK(std::abs(out_view(r, o) - sum) < 1e-5 * cols);
          }
          CHECK(out[static_cast<std::size_t>(r * (outputs + 2) + outputs)] == -9);  // nothing behind the row's end
        }
      }
}

TEST_CASE("a row's bits are the same alone, in any batch and with any number of threads") {
  constexpr int rows = 23, outputs = 300, cols = 257;
  const auto x = random_floats(rows * cols, 3);
  const PackedMatrix w(random_floats(outputs * cols, 4), outputs, cols);
  std::vector<float> together(rows * outputs), alone(outputs), threaded(rows * outputs);
  matmul(dense_view(x.data(), {rows, cols}), w, dense_view(together.data(), {rows, outputs}),
         pagedkv::cpu::InlineExecutor{});
  pagedkv::cpu::ThreadExecutor threads(3);
  matmul(dense_view(x.data(), {rows, cols}), w, dense_view(threaded.data(), {rows, outputs}), threads);
  CHECK(threaded == together);
  for (int r = 0; r < rows; ++r) {
    matmul(dense_view(x.data() + r * cols, {1, cols}), w, dense_view(alone.data(), {1, outputs}),
           pagedkv::cpu::InlineExecutor{});
    CHECK(alone == std::vector<float>(together.begin() + r * outputs, together.begin() + (r + 1) * outputs));
  }
}

TEST_CASE("weights in bf16 give the bits of their values in float, row by row and together") {
  constexpr int rows = 8, outputs = 100, cols = 1030;  // k in three pieces, the last panel not full
  const auto x = random_floats(rows * cols, 6);
  std::vector<float> values = random_floats(outputs * cols, 7);
  const PackedWeights<pagedkv::bf16> half(values, outputs, cols);
  for (float& value : values) value = pagedkv::to_float(pagedkv::from_float<pagedkv::bf16>(value));
  const PackedMatrix whole(values, outputs, cols);
  std::vector<float> expected(rows * outputs), got(rows * outputs), row(cols);
  matmul(dense_view(x.data(), {rows, cols}), whole, dense_view(expected.data(), {rows, outputs}),
         pagedkv::cpu::InlineExecutor{});
  matmul(dense_view(x.data(), {rows, cols}), half, dense_view(got.data(), {rows, outputs}),
         pagedkv::cpu::InlineExecutor{});
  CHECK(got == expected);
  for (int r = 0; r < rows; ++r)
    matmul(dense_view(x.data() + r * cols, {1, cols}), half, dense_view(got.data() + r * outputs, {1, outputs}),
           pagedkv::cpu::InlineExecutor{});
  CHECK(got == expected);
  half.copy_row(99, row.data());
  CHECK(row == std::vector<float>(values.end() - cols, values.end()));
}

TEST_CASE("a packed matrix gives its rows back, and shapes that disagree are refused") {
  const auto values = random_floats(50 * 7, 5);
  const PackedMatrix w(values, 50, 7);
  std::vector<float> row(7);
  for (int r = 0; r < 50; ++r) {
    w.copy_row(r, row.data());
    CHECK(row == std::vector<float>(values.begin() + r * 7, values.begin() + (r + 1) * 7));
  }
  CHECK_THROWS_AS(PackedMatrix(values, 50, 8), pagedkv::InvalidArgument);
  std::vector<float> out(50);
  CHECK_THROWS_AS(
      matmul(dense_view(values.data(), {1, 8}), w, dense_view(out.data(), {1, 50}), pagedkv::cpu::InlineExecutor{}),
      pagedkv::InvalidArgument);
}
