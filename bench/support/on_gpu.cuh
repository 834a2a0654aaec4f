// on_gpu(): a benchmark's function where there is a GPU; what it throws is its result, and the other cases go on.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <exception>

namespace bench {

template <void (*Function)(benchmark::State&)>
void on_gpu(benchmark::State& state) try {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) return state.SkipWithError("no GPU");
  Function(state);
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

}  // namespace bench
