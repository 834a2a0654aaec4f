// Writing answers in the shapes of OpenAI's completions and chat completions.
#include "engine/server/api_response.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "engine/text/utf8.hpp"

namespace engine::server {

namespace {

OrderedJson name_of(Finish finish) {
  switch (finish) {
    case Finish::none:
      return nullptr;
    case Finish::length:
      return "length";
    case Finish::aborted:
      return "abort";
    default:
      return "stop";
  }
}

// Text is UTF-8 already, but a token alone may be any bytes.
std::string dump(const OrderedJson& json) { return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

// JSON knows no infinity.
double finite(double logprob) { return std::max(logprob, -9999.0); }

// A token's text, or where its bytes are no text, "bytes:\xe2\x80", so that different tokens have different names.
std::string spelling_of(std::string_view bytes) {
  if (utf8::find_invalid(bytes) == std::string_view::npos) return std::string(bytes);
  std::string name = "bytes:";
  for (const char c : bytes) {
    char hex[8];
    std::snprintf(hex, sizeof hex, "\\x%02x", static_cast<unsigned char>(c));
    name += hex;
  }
  return name;
}

int count_characters(std::string_view bytes) {
  return static_cast<int>(std::count_if(bytes.begin(), bytes.end(),
                                        [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }));
}

void append(OrderedJson& to, const OrderedJson& lists) {
  if (to.is_null()) {
    to = lists;
    return;
  }
  for (const auto& [name, list] : lists.items())
    if (list.is_array()) to[name].insert(to[name].end(), list.begin(), list.end());
}

}  // namespace

std::string error_json(const ApiError& error) {
  const auto or_null = [](const std::string& text) { return text.empty() ? OrderedJson(nullptr) : OrderedJson(text); };
  return dump({{"error",
                {{"message", error.what()},
                 {"type", error.type()},
                 {"param", or_null(error.param())},
                 {"code", or_null(error.code())}}}});
}

std::string models_json(const ServedModel& model, std::int64_t created) {
  const OrderedJson entry = {{"id", model.name},
                             {"object", "model"},
                             {"created", created},
                             {"owned_by", "pagedkv"},
                             {"max_model_len", model.config.max_positions},
                             {"has_chat", model.has_chat}};
  return dump({{"object", "list"}, {"data", OrderedJson::array({entry})}});
}

std::string sse_event(std::string_view data) { return "data: " + std::string(data) + "\n\n"; }

ApiResponse::ApiResponse(const ApiRequest& request, std::string id, std::string model, std::int64_t created,
                         const Tokenizer& tokenizer)
    : api_(request.api),
      has_logprobs_(request.params.top_logprobs >= 0),
      include_usage_(request.include_usage),
      prompt_len_(static_cast<int>(request.prompt.size())),
      id_(std::move(id)),
      model_(std::move(model)),
      created_(created),
      tokenizer_(tokenizer),
      samples_(static_cast<std::size_t>(request.params.n)) {}

void ApiResponse::add(const Piece& piece) {
  Sample& sample = samples_.at(static_cast<std::size_t>(piece.sample));
  sample.text += piece.text;
  sample.finish = piece.finish;
  ++sample.num_tokens;
  if (has_logprobs_) append(sample.logprobs, logprobs_of(piece, sample));
}

std::string ApiResponse::json(int num_cached) const {
  OrderedJson answer = head(false);
  for (std::size_t i = 0; i < samples_.size(); ++i) {
    const Sample& sample = samples_[i];
    OrderedJson text = sample.text;
    if (is_chat()) text = {{"role", "assistant"}, {"content", sample.text}, {"refusal", nullptr}};
    answer["choices"].push_back(choice_of(static_cast<int>(i), std::move(text), sample.logprobs, sample.finish));
  }
  answer["usage"] = usage(num_cached);
  return dump(answer);
}

std::string ApiResponse::opening() const {
  std::string events;
  for (std::size_t i = 0; is_chat() && i < samples_.size(); ++i)
    events += chunk(choice_of(static_cast<int>(i), {{"role", "assistant"}, {"content", ""}}, nullptr, Finish::none));
  return events;
}

std::string ApiResponse::events_of(const Piece& piece) {
  Sample& sample = samples_.at(static_cast<std::size_t>(piece.sample));
  ++sample.num_tokens;
  const OrderedJson logprobs = has_logprobs_ ? logprobs_of(piece, sample) : OrderedJson();
  if (piece.text.empty() && !has_logprobs_ && piece.finish == Finish::none) return "";
  OrderedJson text = piece.text;
  if (is_chat()) text = piece.text.empty() ? OrderedJson::object() : OrderedJson{{"content", piece.text}};
  return chunk(choice_of(piece.sample, std::move(text), logprobs, piece.finish));
}

std::string ApiResponse::closing(int num_cached) const {
  std::string events;
  if (include_usage_) {
    OrderedJson last = head(true);
    last["usage"] = usage(num_cached);
    events = sse_event(dump(last));
  }
  return events + sse_event("[DONE]");
}

OrderedJson ApiResponse::head(bool is_chunk) const {
  const char* const object = !is_chat() ? "text_completion" : is_chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}, {"choices", OrderedJson::array()}};
}

OrderedJson ApiResponse::usage(int num_cached) const {
  int num_tokens = 0;
  for (const Sample& sample : samples_) num_tokens += sample.num_tokens;
  return {{"prompt_tokens", prompt_len_},
          {"completion_tokens", num_tokens},
          {"total_tokens", prompt_len_ + num_tokens},
          {"prompt_tokens_details", {{"cached_tokens", num_cached}}}};
}

OrderedJson ApiResponse::choice_of(int index, OrderedJson content, OrderedJson logprobs, Finish finish) const {
  const char* const name = !is_chat() ? "text" : content.contains("refusal") ? "message" : "delta";
  return {{"index", index},
          {name, std::move(content)},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", name_of(finish)}};
}

std::string ApiResponse::chunk(OrderedJson choice) const {
  OrderedJson json = head(true);
  json["choices"].push_back(std::move(choice));
  if (include_usage_) json["usage"] = nullptr;
  return sse_event(dump(json));
}

OrderedJson ApiResponse::logprobs_of(const Piece& piece, Sample& sample) const {
  if (is_chat()) {
    OrderedJson entry = chat_logprob(piece.token, piece.logprob);
    entry["top_logprobs"] = OrderedJson::array();
    for (const TokenLogprob& top : piece.top) entry["top_logprobs"].push_back(chat_logprob(top.token, top.logprob));
    return {{"content", OrderedJson::array({std::move(entry)})}, {"refusal", nullptr}};
  }
  const std::string_view bytes = tokenizer_.token_bytes(piece.token);
  OrderedJson tops = OrderedJson::object();
  for (const TokenLogprob& top : piece.top) tops[spelling_of(tokenizer_.token_bytes(top.token))] = finite(top.logprob);
  const int offset = std::exchange(sample.num_characters, sample.num_characters + count_characters(bytes));
  return {{"tokens", OrderedJson::array({spelling_of(bytes)})},
          {"token_logprobs", OrderedJson::array({finite(piece.logprob)})},
          {"top_logprobs", OrderedJson::array({std::move(tops)})},
          {"text_offset", OrderedJson::array({offset})}};
}

OrderedJson ApiResponse::chat_logprob(std::int32_t token, double logprob) const {
  const std::string_view bytes = tokenizer_.token_bytes(token);
  OrderedJson list = OrderedJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return {{"token", spelling_of(bytes)}, {"logprob", finite(logprob)}, {"bytes", std::move(list)}};
}

}  // namespace engine::server
