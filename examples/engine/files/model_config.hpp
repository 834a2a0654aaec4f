// ModelConfig: the shape of a dense decoder (Llama, Mistral, Qwen2, Qwen3), read from a Hugging Face folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace engine {

/// How rotary frequencies are stretched for texts longer than those of the first training.
struct RopeScaling {
  enum class Kind { none, linear, llama3 };
  Kind kind = Kind::none;
  double factor = 1;
  double low_freq_factor = 1;   // llama3: turns within original_positions below which a frequency is divided by factor,
  double high_freq_factor = 4;  // and above which it stays
  int original_positions = 0;   // llama3: length of the first training's texts
};

/// What generation_config.json recommends where a request asks for nothing; absent: the engine's own default.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 where the file says do_sample: false
  std::optional<int> top_k;          // 0: all
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

struct ModelConfig {
  int num_layers = 0;
  int hidden = 0;
  int intermediate = 0;
  int vocab = 0;  // rows of the embedding; a tokenizer may know fewer tokens
  int q_heads = 0;
  int kv_heads = 0;  // divides q_heads
  int head_dim = 0;  // even
  int max_positions = 0;
  float rms_eps = 1e-6f;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  int sliding_window = 0;       // newest keys that a query sees, its own included; 0: all
  bool attention_bias = false;  // q, k and v have one
  bool qk_norm = false;         // an RMSNorm with gain over each head of q and k, in front of rotary embedding
  bool tie_embeddings = false;  // lm_head is the embedding
  std::vector<std::int32_t> bos_ids;
  std::vector<std::int32_t> eos_ids;  // any of them ends a text
  GenerationDefaults generation;

  /// Reads `dir`/config.json and, where present, generation_config.json, whose token ids override. Throws BadInput
  /// unless the folder holds a model of which this engine computes every part: a field that would change the arithmetic
  /// is an error, never ignored.
  static ModelConfig load(const std::filesystem::path& dir);
};

}  // namespace engine
