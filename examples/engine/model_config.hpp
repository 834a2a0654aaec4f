// ModelConfig: the shape of a Llama model, read from a Hugging Face folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace engine {

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
  bool tie_embeddings = false;  // lm_head is the embedding
  std::vector<std::int32_t> bos_ids;
  std::vector<std::int32_t> eos_ids;  // any of them ends a text

  /// Reads `dir`/config.json and, where present, the ids in generation_config.json, which override. Throws BadInput
  /// unless the folder holds a Llama of which this engine computes every part: a field that would change the arithmetic
  /// is an error, never ignored.
  static ModelConfig load(const std::filesystem::path& dir);
};

}  // namespace engine
