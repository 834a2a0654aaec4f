// Reading config.json: what we need is checked, what we do not compute is refused.
#include "engine/model_config.hpp"

#include <optional>

#include "engine/bad_input.hpp"
#include "engine/json_field.hpp"

namespace engine {
namespace {

void refuse_other_models(const JsonField& config) {
  config.at("model_type").must_be("llama");
  if (config.has("architectures")) config.at("architectures").must_be(Json::array({"LlamaForCausalLM"}));

  // Each of these changes the arithmetic; beside it stands the one value that this engine computes. Absent or null is
  // that value too.
  const std::pair<const char*, Json> computed[] = {{"hidden_act", "silu"},
                                                   {"attention_bias", false},
                                                   {"mlp_bias", false},
                                                   {"pretraining_tp", 1},
                                                   {"partial_rotary_factor", 1},
                                                   {"sliding_window", nullptr},
                                                   {"use_sliding_window", false},
                                                   {"layer_types", nullptr},
                                                   {"quantization_config", nullptr},
                                                   {"compression_config", nullptr},
                                                   {"attn_logit_softcapping", nullptr},
                                                   {"final_logit_softcapping", nullptr}};
  for (const auto& [name, value] : computed)
    if (config.has(name)) config.at(name).must_be(value);
}

/// rope_theta stands at the top, or (newer files) inside rope_parameters; only plain rotary embedding is computed.
double read_rope_theta(const JsonField& config) {
  std::optional<double> theta;
  if (config.has("rope_theta")) theta = config.at("rope_theta").positive_number();
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(name)) continue;
    const JsonField rope = config.at(name);
    for (const char* type : {"rope_type", "type"})
      if (rope.has(type)) rope.at(type).must_be("default");
    for (const auto& [key, field] : rope.members()) {
      if (key == "rope_type" || key == "type") continue;
      if (key != "rope_theta") field.fail("no such field");
      const double inner = field.positive_number();
      if (theta && *theta != inner) field.fail("the same as rope_theta, " + Json(*theta).dump() + ",");
      theta = inner;
    }
  }
  return theta.value_or(10000);
}

/// A token id, a list of them, or nothing.
void read_ids(const JsonField& config, const char* name, int vocab, std::vector<std::int32_t>& ids) {
  if (!config.has(name)) return;
  const JsonField field = config.at(name);
  const auto fields = field.value().is_array() ? field.elements() : std::vector{field};
  ids.clear();
  for (const JsonField& id : fields) ids.push_back(static_cast<std::int32_t>(id.integer(0, vocab - 1)));
}

}  // namespace

ModelConfig ModelConfig::load(const std::filesystem::path& dir) {
  const auto path = dir / "config.json";
  const Json document = read_json(path);
  const JsonField config(document, path.string());
  refuse_other_models(config);

  // The limits are far above any model; they keep products of two sizes within an int.
  const auto count = [&](const char* name, int highest) {
    return static_cast<int>(config.at(name).integer(1, highest));
  };
  ModelConfig model;
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
  model.rope_theta = read_rope_theta(config);
  if (config.has("tie_word_embeddings")) model.tie_embeddings = config.at("tie_word_embeddings").boolean();

  read_ids(config, "bos_token_id", model.vocab, model.bos_ids);
  read_ids(config, "eos_token_id", model.vocab, model.eos_ids);
  if (const auto generation_path = dir / "generation_config.json"; std::filesystem::exists(generation_path)) {
    const Json generation_document = read_json(generation_path);
    const JsonField generation(generation_document, generation_path.string());
    read_ids(generation, "bos_token_id", model.vocab, model.bos_ids);
    read_ids(generation, "eos_token_id", model.vocab, model.eos_ids);
  }
  return model;
}

}  // namespace engine
