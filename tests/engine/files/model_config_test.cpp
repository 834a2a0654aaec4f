// ModelConfig: what is read from a Hugging Face folder, and every kind of folder that is refused.
#include "engine/files/model_config.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "engine/rope.hpp"
#include "engine/temp_folder.hpp"

namespace {

using engine::ModelConfig;
using engine::rope_frequencies;
using engine::RopeScaling;
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

json small_config(const char* model_type) {
  json config = small_config();
  config["model_type"] = model_type;
  config.erase("architectures");
  config["head_dim"] = 8;
  config["sliding_window"] = nullptr;
  return config;
}

std::string complaint_with(const char* field, const json& value, json config = small_config()) {
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

TEST_CASE("each family brings its biases, its norms of heads and its name") {
  const struct {
    const char* model_type;
    const char* architecture;
    bool attention_bias, qk_norm;
  } cases[] = {{"llama", "LlamaForCausalLM", false, false},
               {"mistral", "MistralForCausalLM", false, false},
               {"qwen2", "Qwen2ForCausalLM", true, false},
               {"qwen3", "Qwen3ForCausalLM", false, true}};
  for (const auto& c : cases) {
    CAPTURE(c.model_type);
    json config = small_config(c.model_type);
    config["architectures"] = {c.architecture};
    const ModelConfig model = load(config);
    CHECK(model.attention_bias == c.attention_bias);
    CHECK(model.qk_norm == c.qk_norm);
    CHECK(model.sliding_window == 0);
    check_message(complaint_with("attention_bias", !c.attention_bias, config), {"attention_bias: "});
    check_message(complaint_with("architectures", {"GPT2LMHeadModel"}, config), {"architectures: [\"", c.architecture});
  }
}

TEST_CASE("what a family's own code would fill in must stand in the file") {
  for (const char* model_type : {"mistral", "qwen2", "qwen3"}) {
    json config = small_config(model_type);
    config.erase("num_key_value_heads");
    check_message(complaint([&] { load(config); }), {"field \"num_key_value_heads\" expected, none found"});
  }
  json qwen3 = small_config("qwen3");
  qwen3.erase("head_dim");
  check_message(complaint([&] { load(qwen3); }), {"field \"head_dim\" expected, none found"});
  json mistral = small_config("mistral");
  mistral.erase("sliding_window");
  check_message(complaint([&] { load(mistral); }), {"field \"sliding_window\" expected, none found"});
}

TEST_CASE("scaled rotary embedding is read from both of its places") {
  const json scaling = {{"rope_type", "llama3"},
                        {"factor", 8},
                        {"low_freq_factor", 1},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 32}};
  json older = small_config(), newer = small_config();
  older["rope_theta"] = 500000.0;
  older["rope_scaling"] = scaling;
  newer["rope_parameters"] = scaling;
  newer["rope_parameters"]["rope_theta"] = 500000.0;
  for (const json& config : {older, newer}) {
    const ModelConfig model = load(config);
    CHECK(model.rope_theta == 500000);
    CHECK(model.rope_scaling.kind == RopeScaling::Kind::llama3);
    CHECK(model.rope_scaling.factor == 8);
    CHECK(model.rope_scaling.low_freq_factor == 1);
    CHECK(model.rope_scaling.high_freq_factor == 4);
    CHECK(model.rope_scaling.original_positions == 32);
  }
  json linear = small_config();
  linear["rope_scaling"] = {{"type", "linear"}, {"rope_type", "linear"}, {"factor", 2.5}};
  CHECK(load(linear).rope_scaling.kind == RopeScaling::Kind::linear);
  CHECK(load(linear).rope_scaling.factor == 2.5);
  CHECK(load(small_config()).rope_scaling.kind == RopeScaling::Kind::none);

  const auto without = [&](const char* field) {
    json config = older;
    config["rope_scaling"].erase(field);
    return complaint([&] { load(config); });
  };
  for (const char* field : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    check_message(without(field), {"field \"", field, "\" expected, none found"});
}

TEST_CASE("rotary frequencies are plain, divided by a factor, or kept where they turn often enough") {
  ModelConfig model;
  model.head_dim = 8;
  model.rope_theta = 10000;
  CHECK(rope_frequencies(model) == std::vector<float>{1, 0.1f, 0.01f, 0.001f});
  model.rope_scaling = {.kind = RopeScaling::Kind::linear, .factor = 4};
  CHECK(rope_frequencies(model) == std::vector<float>{0.25f, 0.025f, 0.0025f, 0.00025f});
  // Turns within 126 positions: 20, 2.005, 0.2, 0.02. The second is kept to a third of the way from 1 turn to 4.
  model.rope_scaling = {.kind = RopeScaling::Kind::llama3, .factor = 4, .original_positions = 126};
  const std::vector<float> scaled = rope_frequencies(model);
  CHECK(scaled[0] == 1.f);
  CHECK(scaled[1] == doctest::Approx(0.1 * (0.25 + 0.75 * (2.00535 - 1) / 3)).epsilon(1e-5));
  CHECK(scaled[2] == 0.0025f);
  CHECK(scaled[3] == 0.00025f);
}

TEST_CASE("a window is Mistral's own, switched on in Qwen's files, and the same in all layers") {
  json mistral = small_config("mistral");
  mistral["sliding_window"] = 4096;
  CHECK(load(mistral).sliding_window == 4096);
  mistral["layer_types"] = {"sliding_attention", "sliding_attention"};
  CHECK(load(mistral).sliding_window == 4096);
  check_message(complaint_with("layer_types", {"full_attention", "full_attention"}, mistral),
                {R"(layer_types: "sliding_attention" for each of 2 layers expected, ["full_attention","full_)"});
  check_message(complaint_with("sliding_window", 0, mistral), {"sliding_window: an integer from 1 to "});
  check_message(complaint_with("use_sliding_window", true, small_config("mistral")), {"use_sliding_window: false"});
  CHECK(load(small_config("mistral")).sliding_window == 0);

  for (const char* model_type : {"qwen2", "qwen3"}) {
    json qwen = small_config(model_type);
    qwen["sliding_window"] = 32;
    qwen["max_window_layers"] = 1;
    CHECK(load(qwen).sliding_window == 0);
    qwen["use_sliding_window"] = false;
    CHECK(load(qwen).sliding_window == 0);
    qwen["use_sliding_window"] = true;
    check_message(complaint([&] { load(qwen); }),
                  {"max_window_layers: 0 or at least num_hidden_layers, 2, expected, 1 found"});
    qwen["max_window_layers"] = 2;
    CHECK(load(qwen).sliding_window == 0);
    qwen["max_window_layers"] = 0;
    CHECK(load(qwen).sliding_window == 32);
    qwen["max_window_layers"] = 1;
    qwen["layer_types"] = {"full_attention", "full_attention"};
    CHECK(load(qwen).sliding_window == 0);
    qwen["layer_types"] = {"sliding_attention", "sliding_attention"};
    CHECK(load(qwen).sliding_window == 32);
    qwen["layer_types"] = {"full_attention", "sliding_attention"};
    check_message(complaint([&] { load(qwen); }), {"layer_types: \"sliding_attention\" for each of 2 layers expected"});
    qwen["use_sliding_window"] = false;
    check_message(complaint([&] { load(qwen); }), {"layer_types: \"full_attention\" for each of 2 layers expected"});
  }

  json llama = small_config();
  llama["layer_types"] = {"full_attention", "full_attention"};
  CHECK(load(llama).sliding_window == 0);
  llama["layer_types"] = {"full_attention"};
  check_message(complaint([&] { load(llama); }), {"layer_types: \"full_attention\" for each of 2 layers expected"});
}

TEST_CASE("generation_config.json's defaults are those it names, and none of them may be out of range") {
  const TempFolder folder;
  folder.write("config.json", small_config().dump());
  const auto generation_of = [&](const json& generation) {
    folder.write("generation_config.json", generation.dump());
    return ModelConfig::load(folder.path()).generation;
  };
  CHECK_FALSE(ModelConfig::load(folder.path()).generation.temperature.has_value());
  const auto named = generation_of({{"do_sample", true},
                                    {"temperature", 0.5},
                                    {"top_k", 20},
                                    {"top_p", 0.75},
                                    {"min_p", 0.25},
                                    {"repetition_penalty", 1.125}});
  CHECK(named.temperature == 0.5f);
  CHECK(named.top_k == 20);
  CHECK(named.top_p == 0.75f);
  CHECK(named.min_p == 0.25f);
  CHECK(named.repetition_penalty == 1.125f);
  const auto greedy = generation_of({{"do_sample", false}, {"temperature", 0.5}, {"top_k", nullptr}});
  CHECK(greedy.temperature == 0.f);
  CHECK_FALSE(greedy.top_k.has_value());
  const struct {
    const char* field;
    json value;
    const char* message;
  } cases[] = {{"temperature", -1, "temperature: a number from 0.0 to 1000000.0 expected, -1 found"},
               {"temperature", "hot", "temperature: a number from 0.0 to 1000000.0 expected, \"hot\" found"},
               {"top_k", 1.5, "top_k: an integer from 0 to 2147483647 expected, 1.5 found"},
               {"top_p", 0, "top_p: a number above 0.0 and at most 1.0 expected, 0 found"},
               {"min_p", 2, "min_p: a number from 0.0 to 1.0 expected, 2 found"},
               {"repetition_penalty", 0.0, "repetition_penalty: a number above 0.0 and at most 1000000.0 expected"},
               {"do_sample", 1, "do_sample: true or false expected, 1 found"}};
  for (const auto& c : cases)
    check_message(complaint([&] { generation_of({{c.field, c.value}}); }), {"/generation_config.json: ", c.message});
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
      {"model_type", "gpt2", R"(model_type: "llama", "mistral", "qwen2" or "qwen3" expected, "gpt2" found)"},
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
       R"(rope_scaling: field "low_freq_factor" expected, none found)"},
      {"rope_scaling",
       {{"rope_type", "llama3"},
        {"factor", 8},
        {"low_freq_factor", 4},
        {"high_freq_factor", 4},
        {"original_max_position_embeddings", 8192}},
       "rope_scaling.high_freq_factor: more than low_freq_factor, 4.0, expected, 4 found"},
      {"rope_scaling",
       {{"type", "dynamic"}, {"factor", 2}},
       R"(rope_scaling.type: "default", "linear" or "llama3" expected, "dynamic" found)"},
      {"rope_scaling",
       {{"rope_type", "linear"}, {"type", "default"}, {"factor", 2}},
       R"(rope_scaling.type: "linear" expected, "default" found)"},
      {"rope_scaling",
       {{"rope_type", "linear"}, {"factor", 0.5}},
       "rope_scaling.factor: a number from 1.0 to 1000000.0 expected, 0.5 found"},
      {"rope_scaling",
       {{"rope_type", "linear"}, {"factor", 2}, {"low_freq_factor", 1}},
       "rope_scaling.low_freq_factor: no such field expected, 1 found"},
      {"rope_parameters",
       {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}},
       "rope_parameters.partial_rotary_factor: 1 expected, 0.5 found"},
      {"rope_scaling", {{"factor", 2}}, "rope_scaling.factor: no such field expected, 2 found"},
      {"rope_parameters",
       {{"rope_type", "yarn"}, {"rope_theta", 1e6}},
       R"(rope_parameters.rope_type: "default", "linear" or "llama3" expected, "yarn" found)"},
      {"use_sliding_window", true, "use_sliding_window: false expected, true found"},
      {"layer_types",
       {"full_attention", "sliding_attention"},
       R"(layer_types: "full_attention" for each of 2 layers expected, ["full_attention","sliding_)"},
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
  check_message(message(), {"model_type: \"llama\", \"mistral\"", "expected, \"a\\nbxxx", "... found"});

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
