// ModelConfig: what is read from a Hugging Face folder, and every kind of folder that is refused.
#include "engine/model_config.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "engine/temp_folder.hpp"

namespace {

using engine::ModelConfig;
using engine_test::check_message;
using engine_test::complaint;
using engine_test::TempFolder;
using nlohmann::json;

json small_config() {
  return {{"model_type", "llama"},        {"architectures", {"LlamaForCausalLM"}},
          {"num_hidden_layers", 2},       {"hidden_size", 32},
          {"intermediate_size", 48},      {"vocab_size", 100},
          {"num_attention_heads", 4},     {"num_key_value_heads", 2},
          {"max_position_embeddings", 64}};
}

ModelConfig load(const json& config) {
  const TempFolder folder;
  folder.write("config.json", config.dump());
  return ModelConfig::load(folder.path());
}

std::string complaint_with(const char* field, const json& value) {
  json config = small_config();
  config[field] = value;
  return complaint([&] { load(config); });
}

}  // namespace

TEST_CASE("the embedded model's folder is read") {
  const ModelConfig config = ModelConfig::load(PAGEDKV_MODELS_DIR "/austen-5m");
  CHECK(config.num_layers == 5);
  CHECK(config.hidden == 256);
  CHECK(config.intermediate == 768);
  CHECK(config.vocab == 4096);
  CHECK(config.q_heads == 4);
  CHECK(config.kv_heads == 2);
  CHECK(config.head_dim == 64);
  CHECK(config.max_positions == 2048);
  CHECK(config.rms_eps == 1e-5f);
  CHECK(config.rope_theta == 10000);
  CHECK(config.tie_embeddings);
  CHECK(config.bos_ids == std::vector<std::int32_t>{0});
  CHECK(config.eos_ids == std::vector<std::int32_t>{1});
}

TEST_CASE("what config.json leaves out has the format's defaults") {
  json config = small_config();
  config.erase("num_key_value_heads");
  config["head_dim"] = nullptr;
  const ModelConfig model = load(config);
  CHECK(model.kv_heads == 4);
  CHECK(model.head_dim == 8);
  CHECK(model.rms_eps == 1e-6f);
  CHECK(model.rope_theta == 10000);
  CHECK_FALSE(model.tie_embeddings);
  CHECK(model.eos_ids.empty());
}

TEST_CASE("plain rotary embedding is accepted in each of its spellings") {
  json config = small_config();
  config["rope_theta"] = 500000.0;
  config["rope_scaling"] = nullptr;
  CHECK(load(config).rope_theta == 500000);
  config["rope_scaling"] = {{"rope_type", "default"}};
  CHECK(load(config).rope_theta == 500000);
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  CHECK(load(config).rope_theta == 1e6);
}

TEST_CASE("token ids may be lists, and generation_config.json overrides") {
  json config = small_config();
  config["bos_token_id"] = 1;
  config["eos_token_id"] = {2, 3};
  const TempFolder folder;
  folder.write("config.json", config.dump());
  CHECK(ModelConfig::load(folder.path()).eos_ids == std::vector<std::int32_t>{2, 3});
  folder.write("generation_config.json", R"({"eos_token_id": [4, 5, 6]})");
  CHECK(ModelConfig::load(folder.path()).eos_ids == std::vector<std::int32_t>{4, 5, 6});
  CHECK(ModelConfig::load(folder.path()).bos_ids == std::vector<std::int32_t>{1});
  folder.write("generation_config.json", R"({"eos_token_id": 100})");
  check_message(complaint([&] { ModelConfig::load(folder.path()); }),
                {"generation_config.json: eos_token_id: an integer from 0 to 99 expected, 100 found"});
}

TEST_CASE("a field that would change the arithmetic is refused by name, expectation and finding") {
  const struct {
    const char* field;
    json value;
    const char* message;
  } cases[] = {
      {"model_type", "qwen3", R"(model_type: "llama" expected, "qwen3" found)"},
      {"architectures", {"LlamaForSequenceClassification"}, R"(architectures: ["LlamaForCausalLM"] expected, ["Llama)"},
      {"hidden_act", "gelu", R"(hidden_act: "silu" expected, "gelu" found)"},
      {"attention_bias", true, "attention_bias: false expected, true found"},
      {"mlp_bias", true, "mlp_bias: false expected, true found"},
      {"pretraining_tp", 2, "pretraining_tp: 1 expected, 2 found"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor: 1 expected, 0.5 found"},
      {"sliding_window", 4096, "sliding_window: null expected, 4096 found"},
      {"quantization_config", {{"bits", 4}}, R"(quantization_config: null expected, {"bits":4} found)"},
      {"rope_scaling",
       {{"rope_type", "llama3"}, {"factor", 8}},
       R"(rope_scaling.rope_type: "default" expected, "llama3" found)"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2}}, R"(rope_scaling.type: "default" expected, "linear" found)"},
      {"rope_scaling", {{"factor", 2}}, "rope_scaling.factor: no such field expected, 2 found"},
      {"rope_parameters",
       {{"rope_type", "yarn"}, {"rope_theta", 1e6}},
       R"(rope_parameters.rope_type: "default" expected, "yarn" found)"},
      {"rope_scaling", 3, "rope_scaling: an object expected, 3 found"},
  };
  for (const auto& c : cases) check_message(complaint_with(c.field, c.value), {"/config.json: ", c.message});
  json two_thetas = small_config();
  two_thetas["rope_theta"] = 10000.0;
  two_thetas["rope_parameters"] = {{"rope_theta", 5.0}};
  check_message(complaint([&] { load(two_thetas); }), {"rope_parameters.rope_theta: the same as rope_theta, 10000.0"});
}

TEST_CASE("a size that cannot be is refused") {
  const struct {
    const char* field;
    json value;
    const char* message;
  } cases[] = {
      {"num_hidden_layers", 0, "num_hidden_layers: an integer from 1 to 16384 expected, 0 found"},
      {"hidden_size", -32, "hidden_size: an integer from 1 to 1048576 expected, -32 found"},
      {"hidden_size", 32.5, "hidden_size: an integer from 1 to 1048576 expected, 32.5 found"},
      {"hidden_size", 30, "hidden_size: a multiple of num_attention_heads, 4, expected, 30 found"},
      {"vocab_size", "many", R"(vocab_size: an integer from 1 to 16777216 expected, "many" found)"},
      {"vocab_size", 18446744073709551615u, "vocab_size: an integer from 1 to 16777216 expected, 18446744073709551615"},
      {"num_key_value_heads", 3, "num_key_value_heads: a divisor of num_attention_heads, 4, expected, 3 found"},
      {"head_dim", 7, "head_dim: an even number expected, 7 found"},
      {"hidden_size", 20, "head_dim: an even number expected, 5 found"},
      {"rms_norm_eps", 0, "rms_norm_eps: a positive number expected, 0 found"},
      {"rope_theta", "big", R"(rope_theta: a positive number expected, "big" found)"},
      {"tie_word_embeddings", 1, "tie_word_embeddings: true or false expected, 1 found"},
      {"eos_token_id", {1, 100}, "eos_token_id[1]: an integer from 0 to 99 expected, 100 found"},
      {"bos_token_id", -1, "bos_token_id: an integer from 0 to 99 expected, -1 found"},
  };
  for (const auto& c : cases) check_message(complaint_with(c.field, c.value), {"/config.json: ", c.message});
  json incomplete = small_config();
  incomplete.erase("hidden_size");
  check_message(complaint([&] { load(incomplete); }), {"/config.json: field \"hidden_size\" expected, none found"});
}

TEST_CASE("a file that is missing or is not JSON is refused") {
  const TempFolder folder;
  const auto message = [&] { return complaint([&] { ModelConfig::load(folder.path()); }); };
  check_message(message(), {"/config.json: a readable file expected, none (No such file or directory) found"});
  folder.write("config.json", "");
  check_message(message(), {"/config.json: valid JSON expected, an error at byte 1 found"});
  folder.write("config.json", R"({"model_type": "llama")");
  check_message(message(), {"/config.json: valid JSON expected, an error at byte 23 found"});
  folder.write("config.json", "[]");
  check_message(message(), {"/config.json: an object expected, [] found"});
  folder.write("config.json", R"({"model_type": "llama", "model_type": "llama"})");
  check_message(message(), {"/config.json: each key once expected, key \"model_type\" twice found"});
  folder.write("config.json", R"({"rope_theta": 1e999})");
  check_message(message(), {"/config.json: valid JSON expected, a number beyond the range of double found"});
  folder.write("config.json", std::string(1'000'000, '['));
  check_message(message(), {"/config.json: JSON at most 32 levels deep expected, more found"});
  folder.write("config.json", R"({"model_type": "a\nb)" + std::string(1000, 'x') + "\"}");
  check_message(message(), {"model_type: \"llama\" expected, \"a\\nbxxx", "... found"});

  const TempFolder other;
  std::filesystem::create_directory(other.path() / "config.json");
  check_message(complaint([&] { ModelConfig::load(other.path()); }), {"a regular file expected, something else found"});
}

TEST_CASE("no damaged config.json does more than throw BadInput") {
  const TempFolder folder;
  const std::string good = small_config().dump();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    folder.write("config.json", engine_test::damaged(good, random));
    refused += complaint([&] { ModelConfig::load(folder.path()); }).empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}
