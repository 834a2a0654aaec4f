// The GPU's ceiling: a large matrix product by cuBLAS, of numbers that are not all alike.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

#include "bench/engine/compute_speed.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"

namespace bench {

namespace {

constexpr int size = 8192;

__global__ void elements_fill_kernel(pagedkv::bf16* values, std::int64_t count, unsigned seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u ^ seed;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    values[i] = pagedkv::from_float<pagedkv::bf16>(static_cast<float>(x >> 8) * 0x1p-23f - 1);
  }
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw pagedkv::CudaError(std::string(what) + ": " + cublasGetStatusString(status));
}

struct Destroy {
  void operator()(cublasHandle_t handle) const { static_cast<void>(cublasDestroy(handle)); }
  void operator()(cudaEvent_t event) const { static_cast<void>(cudaEventDestroy(event)); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy>;

Event make_event() {
  cudaEvent_t event = nullptr;
  pagedkv::cuda::check(cudaEventCreate(&event), "event");
  return Event(event);
}

}  // namespace

double gpu_compute_speed() {
  constexpr int num_passes = 5, calls = 10;
  constexpr std::int64_t count = std::int64_t{size} * size;
  using pagedkv::cuda::check;
  const pagedkv::cuda::DeviceArray<pagedkv::bf16> a(count), b(count), c(count);
  elements_fill_kernel<<<1024, 256>>>(a.data(), count, 1);
  elements_fill_kernel<<<1024, 256>>>(b.data(), count, 2);
  check(cudaGetLastError(), "compute speed");
  cublasHandle_t made = nullptr;
  bench::check(cublasCreate(&made), "cublasCreate");
  const std::unique_ptr<std::remove_pointer_t<cublasHandle_t>, Destroy> handle(made);
  const float one = 1, zero = 0;
  const Event start = make_event(), end = make_event();
  double least = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    check(cudaEventRecord(start.get()), "compute speed");
    for (int call = 0; call < calls; ++call)
      bench::check(cublasGemmEx(handle.get(), CUBLAS_OP_T, CUBLAS_OP_N, size, size, size, &one, a.data(), CUDA_R_16BF,
                                size, b.data(), CUDA_R_16BF, size, &zero, c.data(), CUDA_R_16BF, size,
                                CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                   "cublasGemmEx");
    check(cudaEventRecord(end.get()), "compute speed");
    check(cudaEventSynchronize(end.get()), "compute speed");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.get(), end.get()), "compute speed");
    const double seconds = milliseconds * 1e-3 / calls;
    least = pass == 0 ? seconds : std::min(least, seconds);
  }
  return 2. * size * size * size / least;
}

}  // namespace bench
