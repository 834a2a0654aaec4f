// make_cuda_model: the one place where the decoder is compiled for the GPU.
#include <cuda_runtime.h>

#include <memory>

#include "engine/backend_cuda.cuh"
#include "engine/model.hpp"

namespace engine {

namespace {

// Is there a driver, a GPU, and machine code for it in this program?
bool has_usable_gpu() {
  int num_gpus = 0;
  cudaFuncAttributes attributes{};
  const bool is_usable = cudaGetDeviceCount(&num_gpus) == cudaSuccess && num_gpus > 0 &&
                         cudaFuncGetAttributes(&attributes, ops::row_add_kernel<CudaBackend::Element>) == cudaSuccess;
  static_cast<void>(cudaGetLastError());  // a no is an answer, not an error that a later call should report
  return is_usable;
}

}  // namespace

std::unique_ptr<LanguageModel> make_cuda_model(const ModelConfig& config, const Checkpoint& checkpoint,
                                               const ModelOptions& options) {
  if (!has_usable_gpu()) return nullptr;
  return std::make_unique<Model<CudaBackend>>(config, checkpoint, options);
}

}  // namespace engine
