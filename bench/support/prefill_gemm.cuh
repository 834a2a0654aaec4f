// The bound of prefill, measured in the same run: a large bf16 matrix product by cuBLASLt, which is loaded when it is
// first asked for (its static library is ten times the size of all benchmarks).
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/memory.cuh"
#include "support/kv_memory.cuh"

namespace bench {

namespace detail {

/// grid: the elements looked at; a warp each. Column-major, like the product itself. off[2]: the squared distance of C
/// from A B, and the squared norm of A B, over these.
template <int Size>
__global__ void gemm_check_kernel(const pagedkv::bf16* a, const pagedkv::bf16* b, const pagedkv::bf16* c, float* off) {
  const std::int64_t i = (blockIdx.x * 7919 + 13) % Size, j = (blockIdx.x * 6007 + 5) % Size;
  float sum = 0;
  for (int k = static_cast<int>(threadIdx.x); k < Size; k += 32)
    sum += pagedkv::to_float(a[i + std::int64_t{k} * Size]) * pagedkv::to_float(b[k + j * Size]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const float difference = pagedkv::to_float(c[i + j * Size]) - sum;
  if (threadIdx.x != 0) return;
  atomicAdd(off, difference * difference);
  atomicAdd(off + 1, sum * sum);
}

}  // namespace detail

/// C = A B, three pairs of A and B in turn, by the algorithm that cuBLASLt names first; PyTorch's torch.mm runs the
/// same.
class Gemm {
 public:
  static constexpr int size = 8192;
  static constexpr double flops = 2. * size * size * size;

  /// Null where cuBLASLt cannot be loaded, which is said once. `library`: a file, or "" for the one that the system
  /// finds. Throws std::runtime_error where it is there but cannot multiply. Lives as long as the program.
  static const Gemm* instance(const std::string& library) {
    static const std::unique_ptr<const Gemm> gemm = make(library);
    return gemm.get();
  }

  void enqueue(int call, cudaStream_t stream) const {
    const float one = 1, zero = 0;
    check(matmul_(handle_, product_, &one, a(call), square_, b(call), square_, &zero, c_.data(), square_, c_.data(),
                  square_, &algorithm_, workspace_.data(), workspace_.size(), stream),
          "matmul");
  }

 private:
  static constexpr std::int64_t elements = std::int64_t{size} * size;
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

  static std::unique_ptr<const Gemm> make(const std::string& library) {
    const std::string file = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    const std::vector<std::string> places =
        library.empty() ? std::vector{file, "/usr/local/cuda/lib64/" + file} : std::vector{library};
    for (const std::string& place : places)
      if (void* const handle = dlopen(place.c_str(), RTLD_NOW)) return std::unique_ptr<const Gemm>(new Gemm(handle));
    std::printf("no GEMM to compare with: %s\n", dlerror());
    return nullptr;
  }

  explicit Gemm(void* library)
      : c_(static_cast<std::size_t>(elements)), workspace_(workspace_bytes), data_(KvMemory::instance().data()) {
    if (KvMemory::instance().size_bytes() < 6 * elements * 2) throw std::runtime_error("GEMM: too little memory");
    matmul_ = function<decltype(&cublasLtMatmul)>(library, "cublasLtMatmul");
    check(function<decltype(&cublasLtCreate)>(library, "cublasLtCreate")(&handle_), "create");
    check(function<decltype(&cublasLtMatmulDescCreate)>(library, "cublasLtMatmulDescCreate")(
              &product_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "description");
    check(function<decltype(&cublasLtMatrixLayoutCreate)>(library, "cublasLtMatrixLayoutCreate")(&square_, CUDA_R_16BF,
                                                                                                 size, size, size),
          "layout");
    choose(library);
    verify();
  }

  template <class Function>
  static Function function(void* library, const char* name) {
    const auto found = reinterpret_cast<Function>(dlsym(library, name));
    if (found == nullptr) throw std::runtime_error(std::string("GEMM: cuBLASLt has no ") + name);
    return found;
  }

  static void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
      throw std::runtime_error(std::string("GEMM: ") + what + ": cuBLASLt status " + std::to_string(status));
  }

  void choose(void* library) {
    cublasLtMatmulPreference_t preference = nullptr;
    check(function<decltype(&cublasLtMatmulPreferenceCreate)>(library, "cublasLtMatmulPreferenceCreate")(&preference),
          "preference");
    check(function<decltype(&cublasLtMatmulPreferenceSetAttribute)>(library, "cublasLtMatmulPreferenceSetAttribute")(
              preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes),
          "workspace");
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    check(function<decltype(&cublasLtMatmulAlgoGetHeuristic)>(library, "cublasLtMatmulAlgoGetHeuristic")(
              handle_, product_, square_, square_, square_, square_, preference, 1, &result, &found),
          "choice");
    check(function<decltype(&cublasLtMatmulPreferenceDestroy)>(library, "cublasLtMatmulPreferenceDestroy")(preference),
          "preference");
    if (found == 0) throw std::runtime_error("GEMM: cuBLASLt knows no algorithm");
    algorithm_ = result.algo;
  }

  void verify() const {
    const pagedkv::cuda::DeviceArray<float> off(2);
    enqueue(0, nullptr);
    detail::gemm_check_kernel<size><<<1024, 32>>>(a(0), b(0), c_.data(), off.data());
    float sums[2];
    pagedkv::cuda::check(cudaMemcpy(sums, off.data(), sizeof sums, cudaMemcpyDeviceToHost), "GEMM");
    if (!(std::sqrt(sums[0] / sums[1]) < 1e-2)) throw std::runtime_error("GEMM: a wrong product");
  }

  const pagedkv::bf16* matrix(int number) const {
    return reinterpret_cast<const pagedkv::bf16*>(data_) + number * elements;
  }
  const pagedkv::bf16* a(int call) const { return matrix(2 * (call % 3)); }
  const pagedkv::bf16* b(int call) const { return matrix(2 * (call % 3) + 1); }

  pagedkv::cuda::DeviceArray<pagedkv::bf16> c_;
  pagedkv::cuda::DeviceArray<std::byte> workspace_;
  const uint4* data_;
  decltype(&cublasLtMatmul) matmul_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t square_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

}  // namespace bench
