// ApiRequest: what a client asked for in JSON, checked field by field and made ready for the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/files/model_config.hpp"
#include "engine/sampling.hpp"
#include "engine/text/chat_template.hpp"
#include "engine/text/tokenizer.hpp"

namespace engine::server {

/// What requests are checked against and made with.
struct ServedModel {
  std::string name;  // that requests must give
  const ModelConfig& config;
  const Tokenizer& tokenizer;
  int max_samples;  // of one request
  bool has_chat;
  /// The tokens after which the assistant's answer comes. Throws BadInput where the model cannot do with the messages.
  std::function<std::vector<std::int32_t>(const std::vector<ChatMessage>&)> encode_chat;
};

enum class Api { completions, chat };

struct ApiRequest {
  Api api = Api::completions;
  std::vector<std::int32_t> prompt;
  SamplingParams params;
  bool has_seed = false;          // else each request gets one of its own
  std::vector<std::string> stop;  // a text ends before the first of them
  bool stream = false;
  bool include_usage = false;  // in a last chunk of the stream
};

inline constexpr std::size_t max_stop_strings = 4, max_stop_bytes = 1024;  // of each

/// Throws ApiError naming the field: for broken JSON, unknown and unsupported fields, wrong types, values out of range,
/// another model (404), and prompts that leave no room for max_tokens in the model's positions. A field that is null is
/// a field that is not there.
ApiRequest parse_request(Api api, std::string_view body, const ServedModel& model);

}  // namespace engine::server
