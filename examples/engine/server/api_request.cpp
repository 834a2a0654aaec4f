// Reading requests: a table of the fields of OpenAI's two APIs that are understood, and of a few that sampling engines
// share. Any other is refused by its name.
#include "engine/server/api_request.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

#include "engine/bad_input.hpp"
#include "engine/files/json_field.hpp"
#include "engine/server/api_error.hpp"

namespace engine::server {

namespace {

constexpr int max_int = std::numeric_limits<int>::max();

double number(const JsonField& field, double lowest, double highest) {
  const Json& value = field.value();
  if (!value.is_number() || !(value.get<double>() >= lowest && value.get<double>() <= highest))
    field.fail("a number from " + Json(lowest).dump() + " to " + Json(highest).dump());
  return value.get<double>();
}

float float_number(const JsonField& field, double lowest, double highest) {
  return static_cast<float>(number(field, lowest, highest));
}

int integer(const JsonField& field, int lowest, int highest) {
  return static_cast<int>(field.integer(lowest, highest));
}

class Reader {
 public:
  Reader(Api api, const ServedModel& model) : model_(model) {
    request_.api = api;
    const GenerationDefaults& defaults = model.config.generation;
    request_.params.temperature = defaults.temperature.value_or(1.0f);
    request_.params.top_k = defaults.top_k.value_or(0);
    request_.params.top_p = defaults.top_p.value_or(1.0f);
    request_.params.min_p = defaults.min_p.value_or(0.0f);
    request_.params.repetition_penalty = defaults.repetition_penalty.value_or(1.0f);
  }

  ApiRequest read(std::string_view body);

 private:
  struct Field {
    const char* name;
    bool in_completions, in_chat;
    void (Reader::*read)(const JsonField&);  // null: only the one value that changes nothing is taken
    const char* neutral = nullptr;           // that value
  };
  static const Field fields[];

  void read_field(const Json& body, const Field& field);
  static void refuse_unknown(Api api, const Json& body);
  void read_model(const JsonField& field) {
    if (field.string() != model_.name)
      throw ApiError(404, "model: " + in_quotes(model_.name) + " expected, " + in_quotes(field.string()) + " found",
                     "model", "model_not_found");
  }
  void read_prompt(const JsonField& field);
  void read_messages(const JsonField& field);
  static ChatMessage read_message(const JsonField& field);
  void read_max_tokens(const JsonField& field) { max_tokens_ = integer(field, 1, max_int); }
  void read_max_completion_tokens(const JsonField& field) { max_completion_tokens_ = integer(field, 1, max_int); }
  void read_min_tokens(const JsonField& field) { params().min_tokens = integer(field, 0, max_int); }
  void read_n(const JsonField& field) { params().n = integer(field, 1, model_.max_samples); }
  void read_temperature(const JsonField& field) { params().temperature = float_number(field, 0, 2); }
  void read_top_p(const JsonField& field) {
    params().top_p = float_number(field, 0, 1);
    if (params().top_p == 0) field.fail("a number above 0 and at most 1");
  }
  void read_top_k(const JsonField& field) { params().top_k = std::max(0, integer(field, -1, max_int)); }  // -1: all
  void read_min_p(const JsonField& field) { params().min_p = float_number(field, 0, 1); }
  void read_presence_penalty(const JsonField& field) { params().presence_penalty = float_number(field, -2, 2); }
  void read_frequency_penalty(const JsonField& field) { params().frequency_penalty = float_number(field, -2, 2); }
  void read_repetition_penalty(const JsonField& field) { params().repetition_penalty = float_number(field, 0.01, 100); }
  void read_logit_bias(const JsonField& field);
  void read_seed(const JsonField& field) {
    constexpr auto limits = std::numeric_limits<std::int64_t>();
    params().seed = static_cast<std::uint64_t>(field.integer(limits.min(), limits.max()));
    request_.has_seed = true;
  }
  void read_stop(const JsonField& field);
  void read_stop_token_ids(const JsonField& field) {
    for (const JsonField& id : field.elements()) params().stop_ids.push_back(token(id));
  }
  void read_ignore_eos(const JsonField& field) { params().ignore_eos = field.boolean(); }
  void read_logprobs(const JsonField& field) {
    if (request_.api == Api::completions)
      params().top_logprobs = integer(field, 0, 5);
    else if (field.boolean())
      params().top_logprobs = 0;
  }
  void read_top_logprobs(const JsonField& field) {
    const int count = integer(field, 0, 20);
    if (params().top_logprobs < 0) throw BadInput("request: top_logprobs", "logprobs: true beside it", "none");
    params().top_logprobs = count;
  }
  void read_stream(const JsonField& field) { request_.stream = field.boolean(); }
  void read_stream_options(const JsonField& field);
  void read_user(const JsonField& field) { field.string(); }  // nothing here depends on who asks

  std::int32_t token(const JsonField& field) const { return integer(field, 0, model_.config.vocab - 1); }
  std::vector<std::int32_t> encode(const std::string& text) const { return model_.tokenizer.encode(text); }
  void settle_max_tokens();
  SamplingParams& params() { return request_.params; }

  const ServedModel& model_;
  ApiRequest request_;
  std::optional<int> max_tokens_, max_completion_tokens_;
};

// In the order in which they are read: `top_logprobs` looks at `logprobs`.
const Reader::Field Reader::fields[] = {
    {"model", true, true, &Reader::read_model},
    {"prompt", true, false, &Reader::read_prompt},
    {"messages", false, true, &Reader::read_messages},
    {"max_tokens", true, true, &Reader::read_max_tokens},
    {"max_completion_tokens", false, true, &Reader::read_max_completion_tokens},
    {"min_tokens", true, true, &Reader::read_min_tokens},
    {"n", true, true, &Reader::read_n},
    {"temperature", true, true, &Reader::read_temperature},
    {"top_p", true, true, &Reader::read_top_p},
    {"top_k", true, true, &Reader::read_top_k},
    {"min_p", true, true, &Reader::read_min_p},
    {"presence_penalty", true, true, &Reader::read_presence_penalty},
    {"frequency_penalty", true, true, &Reader::read_frequency_penalty},
    {"repetition_penalty", true, true, &Reader::read_repetition_penalty},
    {"logit_bias", true, true, &Reader::read_logit_bias},
    {"seed", true, true, &Reader::read_seed},
    {"stop", true, true, &Reader::read_stop},
    {"stop_token_ids", true, true, &Reader::read_stop_token_ids},
    {"ignore_eos", true, true, &Reader::read_ignore_eos},
    {"logprobs", true, true, &Reader::read_logprobs},
    {"top_logprobs", false, true, &Reader::read_top_logprobs},
    {"stream", true, true, &Reader::read_stream},
    {"stream_options", true, true, &Reader::read_stream_options},
    {"user", true, true, &Reader::read_user},
    {"best_of", true, false, nullptr, "1"},
    {"echo", true, false, nullptr, "false"},
    {"suffix", true, false, nullptr, "\"\""},
    {"response_format", false, true, nullptr, R"({"type":"text"})"},
    {"modalities", false, true, nullptr, R"(["text"])"},
    {"tools", false, true, nullptr, "[]"},
    {"tool_choice", false, true, nullptr, "\"none\""},
    {"store", false, true, nullptr, "false"},
};

ApiRequest Reader::read(std::string_view text) {
  try {
    const Json body = parse_json(text, "request");
    if (!body.is_object()) JsonField(body, "request").fail("an object");
    refuse_unknown(request_.api, body);
    for (const Field& field : fields) read_field(body, field);
    settle_max_tokens();
  } catch (const BadInput& error) {
    throw ApiError(400, error.what());
  }
  return std::move(request_);
}

void Reader::refuse_unknown(Api api, const Json& body) {
  for (const auto& [key, value] : body.items()) {
    const auto is_it = [&, &name = key](const Field& field) {
      return name == field.name && (api == Api::chat ? field.in_chat : field.in_completions);
    };
    if (std::none_of(std::begin(fields), std::end(fields), is_it))
      throw ApiError(400, shortened(key) + ": this server does not support this field", shortened(key),
                     "unsupported_parameter");
  }
}

void Reader::read_field(const Json& body, const Field& field) {
  if (!(request_.api == Api::chat ? field.in_chat : field.in_completions)) return;
  try {
    const JsonField all(body, "request");
    const std::string name = field.name;
    const bool is_required = name == "model" || name == "prompt" || name == "messages";
    if (!all.has(field.name)) {
      if (is_required) throw BadInput("request", "field " + in_quotes(name), "none");
      return;
    }
    if (field.read != nullptr)
      (this->*field.read)(all.at(name));
    else
      all.at(name).must_be(Json::parse(field.neutral));
  } catch (const BadInput& error) {
    throw ApiError(400, error.what(), field.name);
  }
}

// A text or token ids. A list of one text is a text, too; several prompts are several requests.
void Reader::read_prompt(const JsonField& field) {
  if (field.value().is_string()) {
    request_.prompt = encode(field.string());
  } else if (!field.value().is_array()) {
    field.fail("a string or a list of token ids");
  } else if (field.value().size() == 1 && field.value()[0].is_string()) {
    request_.prompt = encode(field.elements()[0].string());
  } else {
    if (!field.value().empty() && !field.value()[0].is_number())
      field.fail("one prompt", "a list of " + std::to_string(field.value().size()));
    for (const JsonField& id : field.elements()) request_.prompt.push_back(token(id));
  }
  if (request_.prompt.empty()) field.fail("at least 1 token", "0");
}

void Reader::read_messages(const JsonField& field) {
  std::vector<ChatMessage> messages;
  for (const JsonField& element : field.elements()) messages.push_back(read_message(element));
  if (messages.empty()) field.fail("at least one message", "none");
  request_.prompt = model_.encode_chat(messages);
}

// A text may come in parts. An assistant's message may hold, as null, what its kind can hold elsewhere.
ChatMessage Reader::read_message(const JsonField& field) {
  for (const auto& [key, value] : field.members())
    if (key != "role" && key != "content" && !value.value().is_null())
      throw BadInput("request: messages", "role and content alone", in_quotes(key));
  ChatMessage message{.role = field.at("role").string(), .content = {}};
  if (message.role == "developer") message.role = "system";
  if (message.role != "system" && message.role != "user" && message.role != "assistant")
    field.at("role").fail("system, developer, user or assistant");
  const JsonField content = field.at("content");
  if (!content.value().is_array()) {
    message.content = content.string();
    return message;
  }
  for (const JsonField& part : content.elements()) {
    part.at("type").must_be("text");
    message.content += part.at("text").string();
  }
  return message;
}

void Reader::read_logit_bias(const JsonField& field) {
  for (const auto& [key, bias] : field.members()) {
    std::int32_t id = 0;
    const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc{} || stop != key.data() + key.size() || id < 0 || id >= model_.config.vocab)
      field.fail("token ids from 0 to " + std::to_string(model_.config.vocab - 1), in_quotes(key));
    params().logit_bias.emplace_back(id, float_number(bias, -100, 100));
  }
}

void Reader::read_stop(const JsonField& field) {
  std::vector<JsonField> elements{field};
  if (field.value().is_array()) elements = field.elements();
  if (elements.size() > max_stop_strings)
    field.fail("at most " + std::to_string(max_stop_strings) + " strings", std::to_string(elements.size()));
  for (const JsonField& element : elements) {
    const std::string& text = element.string();
    if (text.empty() || text.size() > max_stop_bytes)
      element.fail("1 to " + std::to_string(max_stop_bytes) + " bytes", std::to_string(text.size()));
    request_.stop.push_back(text);
  }
}

void Reader::read_stream_options(const JsonField& field) {
  if (!request_.stream) field.fail("stream: true beside it", "none");
  for (const auto& [key, value] : field.members()) {
    if (key != "include_usage") throw BadInput("request: stream_options", "include_usage alone", in_quotes(key));
    request_.include_usage = value.boolean();
  }
}

void Reader::settle_max_tokens() {
  const bool is_chat = request_.api == Api::chat;
  const char* const prompt_name = is_chat ? "messages" : "prompt";
  const int max_positions = model_.config.max_positions;
  if (std::ssize(request_.prompt) >= max_positions)
    throw ApiError(400,
                   std::string("request: ") + prompt_name + ": fewer tokens than the model's " +
                       std::to_string(max_positions) + " positions expected, " +
                       std::to_string(request_.prompt.size()) + " found",
                   prompt_name, "context_length_exceeded");
  const int room = max_positions - static_cast<int>(request_.prompt.size());
  if (max_tokens_ && max_completion_tokens_ && *max_tokens_ != *max_completion_tokens_)
    throw ApiError(400, "request: max_tokens: the same as max_completion_tokens expected, another number found",
                   "max_tokens");
  const std::optional<int> asked = max_completion_tokens_ ? max_completion_tokens_ : max_tokens_;
  const char* const name = max_completion_tokens_ ? "max_completion_tokens" : "max_tokens";
  if (asked && *asked > room)
    throw ApiError(400,
                   std::string("request: ") + name + ": at most " + std::to_string(room) + " (" +
                       std::to_string(max_positions) + " positions, " + std::to_string(request_.prompt.size()) +
                       " taken by the prompt) expected, " + std::to_string(*asked) + " found",
                   name, "context_length_exceeded");
  params().max_tokens = asked.value_or(is_chat ? room : std::min(room, 16));  // 16: as OpenAI's
  if (params().min_tokens > params().max_tokens)
    throw ApiError(400,
                   "request: min_tokens: at most max_tokens, " + std::to_string(params().max_tokens) + ", expected, " +
                       std::to_string(params().min_tokens) + " found",
                   "min_tokens");
}

}  // namespace

ApiRequest parse_request(Api api, std::string_view body, const ServedModel& model) {
  return Reader(api, model).read(body);
}

}  // namespace engine::server
