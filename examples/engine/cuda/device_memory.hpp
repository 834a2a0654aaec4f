// What a GPU's memory holds, and what a model will take of it: to plan the KV pool before the model is made.
#pragma once

#include <cstddef>

#include "engine/files/model_config.hpp"
#include "engine/language_model.hpp"

namespace engine {

struct DeviceMemory {
  std::size_t total = 0, free = 0;  // bytes
};

/// Of the GPU that make_cuda_model would use. Makes a context, the first time; throws CudaError where there is no GPU.
DeviceMemory device_memory();

/// What make_cuda_model takes besides the blocks of the pool, in bytes.
struct ModelMemory {
  std::size_t weights = 0;
  std::size_t activations = 0;  // with logits, block tables, and scratch memory of cuBLAS and attention
  std::size_t code = 0;         // an estimate: kernels that CUDA loads, and captured graphs
  std::size_t total() const { return weights + activations + code; }
};

/// `options` as make_cuda_model will get them; num_blocks does not count.
ModelMemory cuda_model_memory(const ModelConfig& config, const ModelOptions& options);

}  // namespace engine
