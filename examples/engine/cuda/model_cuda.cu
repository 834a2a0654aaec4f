// make_cuda_model: the one place where the decoder is compiled for the GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/cuda/cuda_model.cuh"
#include "engine/cuda/device_memory.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"

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

// CUDA loads a kernel when it is first launched, which takes time and memory: here, not in a user's first step. What
// this leaves in the pool lies in blocks that nobody owns.
void warm_up(LanguageModel& model, const ModelOptions& options) {
  const int capacity = options.block_size * std::min(options.num_blocks, options.max_blocks_per_seq);
  for (const int wanted : {1, 16, options.max_rows}) {
    const int num_rows = std::min({wanted, options.max_rows, capacity});
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(num_rows));
    pagedkv::BlockAllocator blocks{{.num_blocks = options.num_blocks, .block_size = options.block_size}};
    pagedkv::Sequence sequence{blocks};
    pagedkv::StepPlan plan;
    const bool fits = sequence.append(num_rows, plan);
    PAGEDKV_ASSERT(fits);
    pagedkv::BatchTables tables(
        {.max_seqs = 1, .max_blocks_per_seq = options.max_blocks_per_seq, .block_size = options.block_size});
    tables.add(sequence, num_rows);
    const std::int32_t logit_row = 0;
    model.forward({.tokens = zeros,
                   .positions = zeros,
                   .plan = plan,
                   .tables = tables.view(),
                   .logit_rows = std::span(&logit_row, 1)});
    plan.commit();
  }
}

}  // namespace

DeviceMemory device_memory() {
  DeviceMemory memory;
  pagedkv::cuda::check(cudaMemGetInfo(&memory.free, &memory.total), "device_memory");
  return memory;
}

ModelMemory cuda_model_memory(const ModelConfig& config, const ModelOptions& options) {
  const auto n = [](int count) { return static_cast<std::size_t>(count); };
  const std::size_t q_width = n(config.q_heads) * n(config.head_dim),
                    kv_width = n(config.kv_heads) * n(config.head_dim);
  const std::size_t qkv_width = q_width + 2 * kv_width, hidden = n(config.hidden),
                    intermediate = n(config.intermediate);
  const std::size_t layer = hidden * (qkv_width + q_width + 3 * intermediate);
  const std::size_t layer_floats =
      2 * hidden + (config.attention_bias ? qkv_width : 0) + (config.qk_norm ? 2 * n(config.head_dim) : 0);
  const std::size_t row = (qkv_width + q_width + 2 * intermediate + hidden) * sizeof(CudaBackend::Element) +
                          hidden * sizeof(float) + n(config.head_dim) * sizeof(float);  // with the angles' turns
  const std::size_t logit_row = (hidden + n(config.vocab)) * sizeof(float);
  return {.weights = (n(config.num_layers) * layer + n(config.tie_embeddings ? 1 : 2) * n(config.vocab) * hidden) *
                         sizeof(CudaBackend::Element) +
                     (n(config.num_layers) * layer_floats + hidden) * sizeof(float),
          .activations = n(options.max_rows) * row + n(options.max_logit_rows) * logit_row +
                         CudaBackend::scratch_bytes(config, options),
          .code = std::size_t{256} << 20};
}

std::unique_ptr<LanguageModel> make_cuda_model(const ModelConfig& config, const Checkpoint& checkpoint,
                                               const ModelOptions& options) {
  if (!has_usable_gpu()) return nullptr;
  auto model = std::make_unique<CudaModel>(config, checkpoint, options);
  warm_up(*model, options);
  return model;
}

}  // namespace engine
