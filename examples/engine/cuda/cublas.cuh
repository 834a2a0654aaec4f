// Cublas: matrix products of bf16 with float accumulation, on one stream, in memory taken once.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/memory.cuh"

namespace engine {

class Cublas {
  template <class T>
  using View = pagedkv::View<T, 2, pagedkv::Space::device>;

 public:
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;  // what NVIDIA advises for Hopper

  /// Products run on `stream`, which must live longer. Throws CudaError where cuBLAS does not start.
  explicit Cublas(cudaStream_t stream) : workspace_(workspace_bytes) {
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle), "cublasCreate");
    handle_.reset(handle);
    check(cublasSetStream(handle, stream), "cublasSetStream");
    check(cublasSetWorkspace(handle, workspace_.data(), workspace_bytes), "cublasSetWorkspace");
    // Parts of a long sum are added in float, too.
    check(cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION), "cublasSetMathMode");
  }

  /// Enqueues out[n, m] = x[n, k] transpose(w[m, k]). Rows may be strided, columns not.
  template <class Out>
  void matmul(const View<const pagedkv::bf16>& x, const View<const pagedkv::bf16>& w, const View<Out>& out) const {
    static_assert(std::is_same_v<Out, float> || std::is_same_v<Out, pagedkv::bf16>);
    pagedkv::require(x.extents[1] == w.extents[1], "matmul: columns of x", w.extents[1], x.extents[1]);
    pagedkv::require(out.extents[0] == x.extents[0], "matmul: rows of out", x.extents[0], out.extents[0]);
    pagedkv::require(out.extents[1] == w.extents[0], "matmul: columns of out", w.extents[0], out.extents[1]);
    if (x.extents[0] == 0) return;
    // cuBLAS counts by columns: to it every matrix here is its own transpose.
    const float one = 1, zero = 0;
    constexpr cudaDataType out_type = std::is_same_v<Out, float> ? CUDA_R_32F : CUDA_R_16BF;
    check(cublasGemmEx(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, to_int(w.extents[0]), to_int(x.extents[0]),
                       to_int(x.extents[1]), &one, w.data, CUDA_R_16BF, to_int(w.strides[0]), x.data, CUDA_R_16BF,
                       to_int(x.strides[0]), &zero, out.data, out_type, to_int(out.strides[0]), CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  }

 private:
  struct Destroy {
    void operator()(cublasHandle_t handle) const { static_cast<void>(cublasDestroy(handle)); }
  };

  static void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
      throw pagedkv::CudaError(std::string(what) + ": " + cublasGetStatusString(status));
  }
  static int to_int(std::int64_t size) {
    pagedkv::require(size <= std::numeric_limits<int>::max(), "matmul: size, at most", std::numeric_limits<int>::max(),
                     size);
    return static_cast<int>(size);
  }

  pagedkv::cuda::DeviceArray<std::byte> workspace_;
  std::unique_ptr<std::remove_pointer_t<cublasHandle_t>, Destroy> handle_;
};

}  // namespace engine
