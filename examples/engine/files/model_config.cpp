// Reading config.json: what we need is checked, what we do not compute is refused.
#include "engine/files/model_config.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "engine/bad_input.hpp"
#include "engine/files/json_field.hpp"

namespace engine {
namespace {

enum class Window { none, always, switched };  // of a family: switched by use_sliding_window

struct Family {
  const char* model_type;
  const char* architecture;
  bool attention_bias = false;
  bool qk_norm = false;
  Window window = Window::none;
};
constexpr Family families[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM"},
    {.model_type = "mistral", .architecture = "MistralForCausalLM", .window = Window::always},
    {.model_type = "qwen2", .architecture = "Qwen2ForCausalLM", .attention_bias = true, .window = Window::switched},
    {.model_type = "qwen3", .architecture = "Qwen3ForCausalLM", .qk_norm = true, .window = Window::switched}};

const Family& read_family(const JsonField& config) {
  const JsonField type = config.at("model_type");
  const auto* const family = std::ranges::find(families, type.value(), [](const Family& f) { return f.model_type; });
  if (family == std::end(families)) type.fail(R"("llama", "mistral", "qwen2" or "qwen3")");
  if (config.has("architectures")) config.at("architectures").must_be(Json::array({family->architecture}));
  return *family;
}

void refuse_uncomputed(const JsonField& config, const Family& family) {
  // Each of these changes the arithmetic; beside it stands the one value that this engine computes. Absent or null is
  // that value too.
  const std::pair<const char*, Json> computed[] = {{"hidden_act", "silu"},
                                                   {"attention_bias", family.attention_bias},
                                                   {"mlp_bias", false},
                                                   {"pretraining_tp", 1},
                                                   {"partial_rotary_factor", 1},
                                                   {"rope_interleaved", false},
                                                   {"use_mrope", false},
                                                   {"quantization_config", nullptr},
                                                   {"compression_config", nullptr},
                                                   {"attn_logit_softcapping", nullptr},
                                                   {"final_logit_softcapping", nullptr}};
  for (const auto& [name, value] : computed)
    if (config.has(name)) config.at(name).must_be(value);
  // Left out, these would mean numbers that stand in the code of the file's writer; llama's follow from others.
  const std::string type = family.model_type;
  if (type != "llama") static_cast<void>(config.at("num_key_value_heads"));
  if (type == "qwen3") config.at("head_dim").integer(1, 1 << 16);
}

double number(const JsonField& field, double lowest, double highest, bool may_be_lowest = true) {
  const double value = field.value().is_number() ? field.value().get<double>() : lowest - 1;
  if (value < lowest || value > highest || (value == lowest && !may_be_lowest))
    field.fail((may_be_lowest ? "a number from " : "a number above ") + Json(lowest).dump() +
               (may_be_lowest ? " to " : " and at most ") + Json(highest).dump());
  return value;
}

/// What rope_scaling or rope_parameters holds beside rope_theta.
RopeScaling read_rope_scaling(const JsonField& rope) {
  using Kind = RopeScaling::Kind;
  RopeScaling scaling;
  const char* const name = rope.has("rope_type") ? "rope_type" : "type";  // older files have the latter, some have both
  if (rope.has(name)) {
    const JsonField type = rope.at(name);
    if (rope.has("type")) rope.at("type").must_be(type.value());
    if (type.value() == "linear")
      scaling.kind = Kind::linear;
    else if (type.value() == "llama3")
      scaling.kind = Kind::llama3;
    else if (type.value() != "default")
      type.fail(R"("default", "linear" or "llama3")");
  }

  std::set<std::string> known{"rope_type", "type", "rope_theta"};
  if (scaling.kind != Kind::none) {
    scaling.factor = number(rope.at("factor"), 1, 1e6);
    known.insert("factor");
  }
  if (scaling.kind == Kind::llama3) {
    scaling.low_freq_factor = rope.at("low_freq_factor").positive_number();
    scaling.high_freq_factor = rope.at("high_freq_factor").positive_number();
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      rope.at("high_freq_factor").fail("more than low_freq_factor, " + Json(scaling.low_freq_factor).dump() + ",");
    scaling.original_positions = static_cast<int>(rope.at("original_max_position_embeddings").integer(1, 1 << 30));
    known.insert({"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
  }
  for (const auto& [key, field] : rope.members()) {
    if (key == "partial_rotary_factor")
      field.must_be(1);
    else if (!known.contains(key))
      field.fail("no such field");
  }
  return scaling;
}

/// rope_theta stands at the top, with rope_scaling beside it, or (newer files) inside rope_parameters with the rest.
void read_rope(const JsonField& config, ModelConfig& model) {
  std::optional<double> theta;
  if (config.has("rope_theta")) theta = config.at("rope_theta").positive_number();
  if (config.has("rope_scaling") && config.has("rope_parameters"))
    config.at("rope_parameters").fail("none beside rope_scaling");
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(name)) continue;
    const JsonField rope = config.at(name);
    model.rope_scaling = read_rope_scaling(rope);
    if (!rope.has("rope_theta")) continue;
    const JsonField field = rope.at("rope_theta");
    const double inner = field.positive_number();
    if (theta && *theta != inner) field.fail("the same as rope_theta, " + Json(*theta).dump() + ",");
    theta = inner;
  }
  model.rope_theta = theta.value_or(10000);
}

/// The window of every layer, or 0. A window of some layers only is refused.
int read_sliding_window(const JsonField& config, const Family& family, int num_layers) {
  const bool is_switched_on = config.has("use_sliding_window") && config.at("use_sliding_window").boolean();
  const bool is_used = family.window == Window::always || (family.window == Window::switched && is_switched_on);
  int window = 0;
  if (is_used && !config.at("sliding_window").value().is_null())
    window = static_cast<int>(config.at("sliding_window").integer(1, std::numeric_limits<int>::max()));
  if (family.window == Window::none && config.has("sliding_window")) config.at("sliding_window").must_be(nullptr);
  if (family.window != Window::switched && is_switched_on) config.at("use_sliding_window").must_be(window > 0);

  const auto each_layer = [&](const char* type) { return Json(static_cast<std::size_t>(num_layers), type); };
  if (config.has("layer_types")) {
    const JsonField types = config.at("layer_types");
    if (family.window == Window::switched && types.value() == each_layer("full_attention")) return 0;
    const char* const type = window > 0 ? "sliding_attention" : "full_attention";
    if (types.value() != each_layer(type))
      types.fail(in_quotes(type) + " for each of " + std::to_string(num_layers) + " layers");
  } else if (family.window == Window::switched && window > 0) {  // layers from max_window_layers on have it
    const JsonField first = config.at("max_window_layers");
    const std::int64_t first_windowed = first.integer(0, std::numeric_limits<int>::max());
    if (first_windowed >= num_layers) return 0;
    if (first_windowed > 0) first.fail("0 or at least num_hidden_layers, " + std::to_string(num_layers) + ",");
  }
  return window;
}

/// A token id, a list of them, or nothing.
void read_ids(const JsonField& config, const char* name, int vocab, std::vector<std::int32_t>& ids) {
  if (!config.has(name)) return;
  const JsonField field = config.at(name);
  const auto fields = field.value().is_array() ? field.elements() : std::vector{field};
  ids.clear();
  for (const JsonField& id : fields) ids.push_back(static_cast<std::int32_t>(id.integer(0, vocab - 1)));
}

GenerationDefaults read_generation(const JsonField& file) {
  const auto read = [&](const char* name, double highest, bool may_be_0) -> std::optional<float> {
    if (!file.has(name)) return std::nullopt;
    return static_cast<float>(number(file.at(name), 0, highest, may_be_0));
  };
  GenerationDefaults defaults{.temperature = read("temperature", 1e6, true),
                              .top_k = std::nullopt,
                              .top_p = read("top_p", 1, false),
                              .min_p = read("min_p", 1, true),
                              .repetition_penalty = read("repetition_penalty", 1e6, false)};
  if (file.has("top_k"))
    defaults.top_k = static_cast<int>(file.at("top_k").integer(0, std::numeric_limits<int>::max()));
  if (file.has("do_sample") && !file.at("do_sample").boolean()) defaults.temperature = 0;
  return defaults;
}

}  // namespace

ModelConfig ModelConfig::load(const std::filesystem::path& dir) {
  const auto path = dir / "config.json";
  const Json document = read_json(path);
  const JsonField config(document, path.string());
  const Family& family = read_family(config);
  refuse_uncomputed(config, family);

  // The limits are far above any model; they keep products of two sizes within an int.
  const auto count = [&](const char* name, int highest) {
    return static_cast<int>(config.at(name).integer(1, highest));
  };
  ModelConfig model;
  model.attention_bias = family.attention_bias;
  model.qk_norm = family.qk_norm;
  model.num_layers = count("num_hidden_layers", 1 << 14);
  model.hidden = count("hidden_size", 1 << 20);
  model.intermediate = count("intermediate_size", 1 << 20);
  model.vocab = count("vocab_size", 1 << 24);
  model.max_positions = count("max_position_embeddings", 1 << 30);
  model.q_heads = count("num_attention_heads", 1 << 12);
  model.kv_heads = config.has("num_key_value_heads") ? count("num_key_value_heads", 1 << 12) : model.q_heads;
  if (model.q_heads % model.kv_heads != 0)
    config.at("num_key_value_heads").fail("a divisor of num_attention_heads, " + std::to_string(model.q_heads) + ",");
  if (config.has("head_dim"))
    model.head_dim = count("head_dim", 1 << 16);
  else if (model.hidden % model.q_heads == 0)
    model.head_dim = model.hidden / model.q_heads;
  else
    config.at("hidden_size").fail("a multiple of num_attention_heads, " + std::to_string(model.q_heads) + ",");
  if (model.head_dim % 2 != 0)  // rotary embedding turns pairs
    throw BadInput(path.string() + ": head_dim", "an even number", std::to_string(model.head_dim));

  if (config.has("rms_norm_eps")) model.rms_eps = static_cast<float>(config.at("rms_norm_eps").positive_number());
  read_rope(config, model);
  model.sliding_window = read_sliding_window(config, family, model.num_layers);
  if (config.has("tie_word_embeddings")) model.tie_embeddings = config.at("tie_word_embeddings").boolean();

  read_ids(config, "bos_token_id", model.vocab, model.bos_ids);
  read_ids(config, "eos_token_id", model.vocab, model.eos_ids);
  if (const auto generation_path = dir / "generation_config.json"; std::filesystem::exists(generation_path)) {
    const Json generation_document = read_json(generation_path);
    const JsonField generation(generation_document, generation_path.string());
    read_ids(generation, "bos_token_id", model.vocab, model.bos_ids);
    read_ids(generation, "eos_token_id", model.vocab, model.eos_ids);
    model.generation = read_generation(generation);
  }
  return model;
}

}  // namespace engine
