// make_cpu_model: the one place where the decoder is compiled for the CPU.
#include <memory>

#include "engine/backend_cpu.hpp"
#include "engine/model.hpp"

namespace engine {

std::unique_ptr<LanguageModel> make_cpu_model(const ModelConfig& config, const Checkpoint& checkpoint,
                                              const ModelOptions& options) {
  return std::make_unique<Model<CpuBackend>>(config, checkpoint, options);
}

}  // namespace engine
