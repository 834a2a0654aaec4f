// The engine's matrix product on the CPU. One row (decode): bytes of weights per second, against the rate at which the
// same threads can only read them. Many rows (prefill): FLOP/s, against OpenBLAS's sgemm on as many threads.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

#include "engine/gemm.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "support/cpu_bounds.hpp"

namespace {

using namespace pagedkv;

struct Shape {
  int rows, outputs, depth, num_matrices;
};

template <class T>
struct Layers {
  explicit Layers(const Shape& wanted)
      : shape(wanted), x(size(shape.rows) * size(shape.depth), 1.f), out(size(shape.rows) * size(shape.outputs)) {
    const std::vector<float> values(size(shape.outputs) * size(shape.depth), 0.01f);
    for (int i = 0; i < shape.num_matrices; ++i) weights.emplace_back(values, shape.outputs, shape.depth);
  }

  void run(cpu::ThreadExecutor& threads) {
    for (const auto& w : weights)
      engine::matmul(dense_view(static_cast<const float*>(x.data()), {shape.rows, shape.depth}), w,
                     dense_view(out.data(), {shape.rows, shape.outputs}), threads);
  }

  static std::size_t size(int count) { return static_cast<std::size_t>(count); }
  std::size_t matrix_bytes() const { return size(shape.outputs) * size(shape.depth) * sizeof(T); }

  Shape shape;
  std::vector<engine::PackedWeights<T>> weights;
  std::vector<float> x, out;
};

template <class T>
void one_row(benchmark::State& state, Shape shape) {
  Layers<T> layers(shape);
  cpu::ThreadExecutor threads(static_cast<int>(state.range(0)));
  const double bytes = static_cast<double>(layers.matrix_bytes()) * shape.num_matrices;
  const std::vector<char> memory(layers.matrix_bytes() * static_cast<std::size_t>(shape.num_matrices), 1);
  bench::run_in_turns(
      state, "GBps", bytes, [&] { layers.run(threads); }, "reading", bytes,
      [&] { bench::read_all(memory.data(), memory.size(), threads); });
}

template <class T>
void many_rows(benchmark::State& state, Shape shape) {
  Layers<T> layers(shape);
  const int num_threads = static_cast<int>(state.range(0));
  cpu::ThreadExecutor threads(num_threads);
  bench::Sgemm sgemm(num_threads);
  if (!sgemm.is_there()) return state.SkipWithError("OpenBLAS not found (Debian and Ubuntu: apt install libopenblas0)");
  const double flops = 2. * shape.rows * shape.outputs * shape.depth * shape.num_matrices;
  bench::run_in_turns(
      state, "GFLOPs", flops, [&] { layers.run(threads); }, "sgemm", bench::Sgemm::num_flops, [&] { sgemm.run(); });
}

void add(const std::string& name, void (*run)(benchmark::State&, Shape), Shape shape) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, shape); })
      ->Arg(1)
      ->Arg(2)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

[[maybe_unused]] const bool is_registered = [] {
  add("one_row<float>/4096x1024", one_row<float>, {1, 4096, 1024, 32});
  add("one_row<bf16>/4096x1024", one_row<bf16>, {1, 4096, 1024, 64});
  add("one_row<float>/576x1536", one_row<float>, {1, 576, 1536, 150});
  add("one_row<bf16>/576x1536", one_row<bf16>, {1, 576, 1536, 300});
  add("many_rows<float>/512_by_2048x2048", many_rows<float>, {512, 2048, 2048, 2});
  add("many_rows<bf16>/512_by_2048x2048", many_rows<bf16>, {512, 2048, 2048, 2});
  add("many_rows<float>/512_by_1536x576", many_rows<float>, {512, 1536, 576, 4});
  return true;
}();

}  // namespace
