// Session: a model folder made ready to generate: config, tokenizer, weights on a back end, KV pool, engine.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "engine/bad_input.hpp"
#include "engine/engine.hpp"
#include "engine/language_model.hpp"
#include "engine/model_config.hpp"
#include "engine/options.hpp"
#include "engine/safetensors.hpp"
#include "engine/tokenizer.hpp"

namespace engine {

class Session {
 public:
  /// Throws BadInput where the folder cannot be used, or the pool does not fit the machine. `default_block_size` counts
  /// where the options leave it open.
  explicit Session(const Options& options, int default_block_size = 16)
      : config_(ModelConfig::load(options.model)),
        tokenizer_(Tokenizer::load(options.model)),
        engine_options_(engine_options(config_, options, options.block_size.value_or(default_block_size))),
        model_(make_model(config_, options, engine_options_)),
        engine_(config_, *model_, engine_options_) {
    if (tokenizer_.vocab_size() > config_.vocab)
      throw BadInput("tokenizer.json: tokens", "at most the model's " + std::to_string(config_.vocab),
                     std::to_string(tokenizer_.vocab_size()));
  }

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const LanguageModel& model() const { return *model_; }
  Engine& engine() { return engine_; }

  int submit(const std::string& prompt, const SamplingParams& params) {
    return engine_.submit(tokenizer_.encode(prompt), params);
  }

  /// What was generated, without the prompt.
  std::string text_of(const Request& request, const Branch& branch) const {
    return tokenizer_.decode(std::span(branch.tokens).subspan(static_cast<std::size_t>(request.prompt_len)));
  }

 private:
  static EngineOptions engine_options(const ModelConfig& config, const Options& options, int block_size) {
    const int max_seqs = std::min(std::max(32, options.sampling.width()), options.max_batched_tokens);
    const std::int64_t block_bytes = std::int64_t{2} * config.num_layers * config.kv_heads * config.head_dim *
                                     block_size * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    std::int64_t num_blocks = options.num_blocks;
    if (num_blocks == 0)  // four sequences of full length, but no more than a quarter of the memory
      num_blocks = std::clamp(4 * std::int64_t{Engine::max_blocks_per_seq(config, block_size)}, std::int64_t{1},
                              std::max(std::int64_t{1}, memory / 4 / block_bytes));
    if (num_blocks > memory / block_bytes)
      throw BadInput("kv-blocks", "at most " + std::to_string(memory / block_bytes) + " (this machine's memory)",
                     std::to_string(num_blocks));
    return {.num_blocks = static_cast<int>(num_blocks),
            .block_size = block_size,
            .prefix_cache = options.prefix_cache,
            .scheduler = {.max_batched_tokens = options.max_batched_tokens,
                          .max_seqs = max_seqs,
                          .watermark = static_cast<int>(num_blocks / 100)}};
  }

  static std::unique_ptr<LanguageModel> make_model(const ModelConfig& config, const Options& options,
                                                   const EngineOptions& engine) {
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    const ModelOptions sizes{.num_blocks = engine.num_blocks,
                             .block_size = engine.block_size,
                             .max_rows = engine.scheduler.max_batched_tokens,
                             .max_seqs = engine.scheduler.max_seqs,
                             .max_blocks_per_seq = Engine::max_blocks_per_seq(config, engine.block_size),
                             .max_logit_rows = engine.scheduler.max_seqs,
                             .num_threads = options.num_threads > 0 ? options.num_threads : static_cast<int>(cores)};
    const Checkpoint checkpoint = Checkpoint::open(options.model);
#if defined(PAGEDKV_ENGINE_CUDA)
    if (options.backend != BackendKind::cpu) {
      if (auto model = make_cuda_model(config, checkpoint, sizes)) return model;
      if (options.backend == BackendKind::cuda) throw BadInput("backend", "cpu (no usable GPU here)", "cuda");
    }
#else
    if (options.backend == BackendKind::cuda)
      throw BadInput("backend", "cpu (this program was built without CUDA)", "cuda");
#endif
    return make_cpu_model(config, checkpoint, sizes);
  }

  ModelConfig config_;
  Tokenizer tokenizer_;
  EngineOptions engine_options_;
  std::unique_ptr<LanguageModel> model_;
  Engine engine_;
};

}  // namespace engine
