// MemoryPlan: how an engine divides a machine's memory, computed before anything is allocated.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine/cuda/device_memory.hpp"
#include "engine/files/model_config.hpp"
#include "engine/flags.hpp"
#include "engine/language_model.hpp"

namespace engine {

struct EngineOptions;

struct MachineMemory {
  bool is_gpu = false;
  std::int64_t bytes = 0;       // of a GPU what is free, of a host what is built in
  std::int64_t host_bytes = 0;  // built in
};

/// The same for a model on the CPU as cuda_model_memory() is for one on a GPU.
ModelMemory cpu_model_memory(const ModelConfig& config, const ModelOptions& options);

/// Bytes of what is kept all the time; loading needs more for a moment, on the host.
struct MemoryPlan {
  MachineMemory machine;
  ModelMemory model;
  int weight_bytes = 0;           // of one element of a matrix
  std::int64_t step_weights = 0;  // what a step reads of the weights: all but an embedding that is not the head, too
  std::int64_t logits = 0;        // a part of the model's activations
  std::int64_t block_bytes = 0;   // K and V of all layers

  ModelOptions sizes;
  int max_model_len = 0;

  std::int64_t pool() const { return sizes.num_blocks * block_bytes; }
  std::int64_t host_pool() const { return sizes.num_host_blocks * block_bytes; }
  std::int64_t tokens() const { return std::int64_t{sizes.num_blocks} * sizes.block_size; }

  /// How many sequences of max_model_len tokens the pool holds at once.
  double concurrency() const { return static_cast<double>(sizes.num_blocks) / sizes.max_blocks_per_seq; }

  /// Lines of "name  value" for people.
  std::string table() const;
  nlohmann::ordered_json json() const;
};

/// What the flags leave open is chosen for the machine: on a GPU 256 sequences, steps of 8,192 tokens, and a pool of
/// all that the memory fraction allows, but no more than twice what the sequences can fill; on a CPU 32, 512, and a
/// pool of four full lengths within a quarter of the memory. `memory_of` knows the back end. Throws BadInput where the
/// wanted blocks, or on a GPU a single one, do not fit.
MemoryPlan plan_memory(const ModelConfig& config, const EngineFlags& flags, const MachineMemory& machine,
                       ModelMemory (*memory_of)(const ModelConfig&, const ModelOptions&), int default_block_size = 16);

EngineOptions engine_options(const MemoryPlan& plan, const EngineFlags& flags);

}  // namespace engine
