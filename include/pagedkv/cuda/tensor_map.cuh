// tensor_map(): the driver's encoding of a tensor for TMA, found at run time so that nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cstdint>
#include <string>

#include "pagedkv/core/error.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/tensor_map.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

namespace detail {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

/// The driver's own function; asked for once. Throws CudaError where the driver is older than CUDA 12.0.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &found),
          "tensor_map");
    if (found != cudaDriverEntryPointSuccess)
      pagedkv::detail::raise<CudaError>("tensor_map: the driver knows no tensor maps");
    return reinterpret_cast<EncodeTiled>(address);
  }();
  return function;
}

}  // namespace detail

/// The map of `tensor`, for cp_async_bulk_tensor_5d. Computed by the CPU alone: nothing is enqueued, and a graph that
/// is being captured does not mind. Throws CudaError where the driver refuses.
inline ptx::TensorMap tensor_map(const BoxedTensor& tensor) {
  constexpr std::uint32_t every_element[5] = {1, 1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = tensor.box[0] == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : tensor.box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                           : CU_TENSOR_MAP_SWIZZLE_32B;
  CUtensorMap map;
  const CUresult status =
      detail::encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 5, const_cast<void*>(tensor.data), tensor.extents,
                             tensor.strides_bytes, tensor.box, every_element, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    pagedkv::detail::raise<CudaError>("tensor_map: the driver answers " + std::to_string(static_cast<int>(status)));
  return std::bit_cast<ptx::TensorMap>(map);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
