// Parity of the CPU engine in float32 with transformers, on a small random model of each architecture, made by
// examples/models/write_random_model.py; and their bits, which depend on nothing but the text.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/language_model.hpp"
#include "engine/temp_folder.hpp"
#include "support/sequence_logits.hpp"

using namespace engine;
using namespace pagedkv_test;
using Tokens = std::vector<std::int32_t>;

namespace {

const std::filesystem::path models_dir = PAGEDKV_SOURCE_DIR "/tests/engine/golden/models";

struct SmallModel {
  std::filesystem::path dir;
  ModelConfig config = ModelConfig::load(dir);
  Checkpoint weights = Checkpoint::open(dir);
  nlohmann::json golden = nlohmann::json::parse(std::ifstream(dir / "golden.json"));
  Tokens text = golden["tokens"];

  ModelOptions options(int max_chunk, int block_size = 16) const {
    return {.num_blocks = pagedkv::ceil_div(config.max_positions, block_size),
            .block_size = block_size,
            .max_rows = max_chunk,
            .max_blocks_per_seq = pagedkv::ceil_div(config.max_positions, block_size),
            .max_logit_rows = max_chunk};
  }

  /// Behind each of `tokens`, [tokens, vocab].
  std::vector<float> logits(const Tokens& tokens, const ModelOptions& options) const {
    const auto model = make_cpu_model(config, weights, options);
    return sequence_logits(tokens, options, [&](const Batch& batch) { return model->forward(batch); });
  }
};

/// Llama 3: scaled rotary embedding, tied head. Llama 2: linear scaling, a config.json of older spelling, f32. Qwen2:
/// biases, f16, three shards. Qwen3: norms of heads. Mistral: a window of 7 keys. The variable names a folder of more.
std::vector<SmallModel> small_models() {
  std::vector<SmallModel> models;
  for (const char* name : {"llama2", "llama3", "mistral", "qwen2", "qwen3"})
    models.push_back({.dir = models_dir / name});
  if (const char* more = std::getenv("PAGEDKV_PARITY_MODELS"))
    for (const auto& entry : std::filesystem::directory_iterator(more)) models.push_back({.dir = entry.path()});
  return models;
}

}  // namespace

TEST_CASE("logits agree with those of transformers within 1e-3") {
  for (const SmallModel& model : small_models()) {
    CAPTURE(model.dir.string());
    const auto vocab = static_cast<std::size_t>(model.config.vocab);
    const std::vector<float> logits = model.logits(model.text, model.options(static_cast<int>(model.text.size())));
    float largest = 0;
    for (std::size_t i = 0; i < model.golden["positions"].size(); ++i) {
      const auto expected = model.golden["logits"][i].get<std::vector<float>>();
      const std::size_t row = model.golden["positions"][i].get<std::size_t>() * vocab;
      REQUIRE(expected.size() == vocab);
      for (std::size_t id = 0; id < vocab; ++id) largest = std::max(largest, std::abs(logits[row + id] - expected[id]));
    }
    MESSAGE(model.dir.filename().string() << ": largest difference " << largest);
    CHECK(largest < 1e-3f);
  }
}

TEST_CASE("greedy search goes on as in transformers") {
  for (const SmallModel& model : small_models()) {
    CAPTURE(model.dir.string());
    const auto vocab = static_cast<std::ptrdiff_t>(model.config.vocab);
    for (const auto& expected : model.golden["greedy"]) {
      const Tokens continuation = expected["tokens"];
      const auto prompt_len = expected["prompt_len"].get<std::ptrdiff_t>();
      REQUIRE(!continuation.empty());
      // If each token of the continuation is the best behind those in front of it, then greedy search chooses them all.
      Tokens tokens(model.text.begin(), model.text.begin() + prompt_len);
      tokens.insert(tokens.end(), continuation.begin(), continuation.end());
      const std::vector<float> logits = model.logits(tokens, model.options(static_cast<int>(tokens.size())));
      Tokens best;
      for (std::ptrdiff_t row = prompt_len - 1; row < std::ssize(tokens) - 1; ++row) {
        const auto begin = logits.begin() + row * vocab;
        best.push_back(static_cast<std::int32_t>(std::max_element(begin, begin + vocab) - begin));
      }
      CHECK(best == continuation);
    }
  }
}

TEST_CASE("logits have the same bits for any chunks, block size and number of threads") {
  for (const SmallModel& model : small_models()) {
    CAPTURE(model.dir.string());
    const std::vector<float> expected = model.logits(model.text, model.options(static_cast<int>(model.text.size())));
    for (const int chunk : {1, 7})
      for (const int block_size : {1, 8}) {
        ModelOptions options = model.options(chunk, block_size);
        options.num_threads = chunk == 1 ? 1 : 2;
        CHECK(model.logits(model.text, options) == expected);
      }
  }
}

TEST_CASE("weights that the config does not speak of are refused by name") {
  const auto complaint = [](const SmallModel& model) {
    return engine_test::complaint([&] { make_cpu_model(model.config, model.weights, model.options(1)); });
  };
  SmallModel qwen2{.dir = models_dir / "qwen2"}, qwen3{.dir = models_dir / "qwen3"};
  CHECK(complaint(qwen2).empty());
  qwen2.config.attention_bias = false;
  engine_test::check_message(complaint(qwen2), {"no tensor that the model does not use", "self_attn.k_proj.bias"});
  qwen3.config.qk_norm = false;
  engine_test::check_message(complaint(qwen3), {"no tensor that the model does not use", "self_attn.k_norm.weight"});
}
