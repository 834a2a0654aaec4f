// Session: a model folder made ready to generate: config, weights on a back end, KV pool, engine, tokenizer.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/engine.hpp"
#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/flags.hpp"
#include "engine/language_model.hpp"
#include "engine/machine.hpp"
#include "engine/memory_plan.hpp"
#include "engine/step_meter.hpp"
#include "engine/text/chat_template.hpp"
#include "engine/text/tokenizer.hpp"

namespace engine {

/// Token ids in, token ids out: all of a session but the tokenizer.
class LoadedModel {
 public:
  /// Throws BadInput where the folder cannot be used, or the pool does not fit the machine. `default_block_size` counts
  /// where the flags leave it open; `on_launch` sees each batch.
  explicit LoadedModel(const EngineFlags& flags, int default_block_size = 16,
                       std::function<void(const Batch&)> on_launch = {})
      : config_(ModelConfig::load(flags.model)),
        plan_(plan_for(config_, flags, default_block_size)),
        model_(make_model(limited(config_, plan_), flags, plan_)),
        engine_(config_, *model_, observed(engine_options(plan_, flags), std::move(on_launch))) {}

  /// Its max_positions are those of the memory plan.
  const ModelConfig& config() const { return config_; }
  const MemoryPlan& plan() const { return plan_; }
  const LanguageModel& model() const { return *model_; }
  Engine& engine() { return engine_; }

 private:
  static MemoryPlan plan_for(const ModelConfig& config, const EngineFlags& flags, int default_block_size) {
#if defined(PAGEDKV_ENGINE_CUDA)
    if (flags.backend != BackendKind::cpu) {
      if (const auto memory = gpu_memory())
        return plan_memory(config, flags, *memory, cuda_model_memory, default_block_size);
      if (flags.backend == BackendKind::cuda) throw BadInput("backend", "cpu (no usable GPU here)", "cuda");
    }
#else
    if (flags.backend == BackendKind::cuda)
      throw BadInput("backend", "cpu (this program was built without CUDA)", "cuda");
#endif
    return plan_memory(config, flags, host_memory(), cpu_model_memory, default_block_size);
  }

  static ModelConfig& limited(ModelConfig& config, const MemoryPlan& plan) {
    config.max_positions = plan.max_model_len;
    return config;
  }

  static EngineOptions observed(EngineOptions options, std::function<void(const Batch&)> on_launch) {
    options.on_launch = std::move(on_launch);
    return options;
  }

  static std::unique_ptr<LanguageModel> make_model(const ModelConfig& config, const EngineFlags& flags,
                                                   const MemoryPlan& plan) {
    const Checkpoint checkpoint = Checkpoint::open(flags.model);
#if defined(PAGEDKV_ENGINE_CUDA)
    if (plan.machine.is_gpu) {
      auto model = make_cuda_model(config, checkpoint, plan.sizes);
      pagedkv::require(model != nullptr, "make_cuda_model", "a model, as there is a usable GPU", "none");
      return model;
    }
#endif
    return make_cpu_model(config, checkpoint, plan.sizes);
  }

  ModelConfig config_;
  MemoryPlan plan_;
  std::unique_ptr<LanguageModel> model_;
  Engine engine_;
};

/// For LoadedModel's `on_launch`, once the model is loaded: what its steps read and compute.
inline StepMeter step_meter(const LoadedModel& loaded, const EngineFlags& flags) {
  return StepMeter(loaded.plan().sizes.block_size, loaded.config().sliding_window,
                   engine_options(loaded.plan(), flags).run_ahead ? 1 : 0);
}

/// Bytes per second that the machine reads at best where the model's steps read theirs. Measures it.
inline double machine_read_speed(const MemoryPlan& plan) {
#if defined(PAGEDKV_ENGINE_CUDA)
  if (plan.machine.is_gpu) return gpu_read_speed();
#endif
  return host_read_speed(plan.sizes.num_threads);
}

class Session : public LoadedModel {
 public:
  /// Throws like LoadedModel, and where the tokenizer cannot be used.
  explicit Session(const EngineFlags& flags, int default_block_size = 16,
                   std::function<void(const Batch&)> on_launch = {})
      : LoadedModel(flags, default_block_size, std::move(on_launch)),
        tokenizer_(Tokenizer::load(flags.model)),
        chat_(ChatTemplate::load(flags.model)) {
    if (tokenizer_.vocab_size() > config().vocab)
      throw BadInput("tokenizer.json: tokens", "at most the model's " + std::to_string(config().vocab),
                     std::to_string(tokenizer_.vocab_size()));
  }

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const ChatTemplate& chat() const { return chat_; }

  int submit(const std::string& prompt, const SamplingParams& params) {
    return engine().submit(tokenizer_.encode(prompt), params);
  }

  /// Queues the answer to what a user says. Throws BadInput where the folder has no chat template that is known here.
  int ask(const std::string& message, const SamplingParams& params) {
    const ChatMessage messages[] = {{.role = "user", .content = message}};
    return engine().submit(chat_.encode(tokenizer_, messages), params);
  }

  /// What was generated, without the prompt.
  std::string text_of(const Request& request, const Branch& branch) const {
    return tokenizer_.decode(std::span(branch.tokens).subspan(static_cast<std::size_t>(request.prompt_len)));
  }

 private:
  Tokenizer tokenizer_;
  ChatTemplate chat_;
};

}  // namespace engine
