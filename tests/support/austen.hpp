// The embedded model, loaded once a test program, with engines of any shape around it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/language_model.hpp"

namespace pagedkv_test {

/// Sanitizers look for wrong accesses, not for wrong numbers, and take their time: a part of the long cases will do.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool has_sanitizer = true;
#else
inline constexpr bool has_sanitizer = false;
#endif

inline std::filesystem::path austen_dir() { return std::filesystem::path(PAGEDKV_MODELS_DIR) / "austen-5m"; }

inline nlohmann::json golden(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(austen_dir() / "golden" / name));
}

inline const engine::ModelConfig& austen_config() {
  static const engine::ModelConfig config = engine::ModelConfig::load(austen_dir());
  return config;
}

inline const engine::Checkpoint& austen_weights() {
  static const engine::Checkpoint checkpoint = engine::Checkpoint::open(austen_dir());
  return checkpoint;
}

inline engine::ModelOptions model_options(const engine::EngineOptions& options) {
  return {.num_blocks = options.num_blocks,
          .num_host_blocks = options.num_host_blocks,
          .block_size = options.block_size,
          .max_rows = options.scheduler.max_batched_tokens,
          .max_seqs = options.scheduler.max_seqs,
          .max_blocks_per_seq = engine::Engine::max_blocks_per_seq(austen_config(), options.block_size),
          .max_logit_rows = options.scheduler.max_seqs * (1 + options.drafts.max_drafts)};
}

/// The model and an engine that uses it.
class AustenEngine {
 public:
  explicit AustenEngine(const engine::EngineOptions& options = {},
                        decltype(&engine::make_cpu_model) make_model = engine::make_cpu_model)
      : model_(make_model(austen_config(), austen_weights(), model_options(options))),
        engine_(austen_config(), *model_, options) {}

  engine::Engine& operator*() { return engine_; }
  engine::Engine* operator->() { return &engine_; }

  /// What sample `index` of a finished request generated.
  std::vector<std::int32_t> generated(int id, int index = 0) const {
    const engine::Request& request = engine_.request(id);
    const auto& tokens = request.branches.at(static_cast<std::size_t>(index)).tokens;
    return {tokens.begin() + request.prompt_len, tokens.end()};
  }

 private:
  std::unique_ptr<engine::LanguageModel> model_;
  engine::Engine engine_;
};

}  // namespace pagedkv_test
