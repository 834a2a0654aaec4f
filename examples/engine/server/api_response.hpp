// ApiResponse: what OpenAI's clients are told about a request, whole or as server-sent events.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/server/api_error.hpp"
#include "engine/server/api_request.hpp"
#include "engine/service.hpp"
#include "engine/text/tokenizer.hpp"

namespace engine::server {

using OrderedJson = nlohmann::ordered_json;

/// {"error": {"message", "type", "param", "code"}}
std::string error_json(const ApiError& error);

/// {"object": "list", "data": [the one model]}
std::string models_json(const ServedModel& model, std::int64_t created);

/// One server-sent event that carries `data`.
std::string sse_event(std::string_view data);

/// The answer to one request: collects its pieces, or turns each into events as it comes.
class ApiResponse {
 public:
  /// `created`: seconds since 1970. `tokenizer` outlives it.
  ApiResponse(const ApiRequest& request, std::string id, std::string model, std::int64_t created,
              const Tokenizer& tokenizer);

  /// For an answer in one JSON object.
  void add(const Piece& piece);
  std::string json(int num_cached) const;

  /// For a stream: what opens it, what a piece adds ("" if nothing shows), what closes it.
  std::string opening() const;
  std::string events_of(const Piece& piece);
  std::string closing(int num_cached) const;

 private:
  struct Sample {
    std::string text;
    OrderedJson logprobs;  // null: not asked for
    Finish finish = Finish::none;
    int num_tokens = 0;
    int num_characters = 0;  // that the tokens so far have begun
  };

  bool is_chat() const { return api_ == Api::chat; }
  OrderedJson head(bool is_chunk) const;
  OrderedJson usage(int num_cached) const;
  OrderedJson choice_of(int index, OrderedJson content, OrderedJson logprobs, Finish finish) const;
  std::string chunk(OrderedJson choice) const;
  OrderedJson logprobs_of(const Piece& piece, Sample& sample) const;
  OrderedJson chat_logprob(std::int32_t token, double logprob) const;

  Api api_;
  bool has_logprobs_, include_usage_;
  int prompt_len_;
  std::string id_, model_;
  std::int64_t created_;
  const Tokenizer& tokenizer_;
  std::vector<Sample> samples_;
};

}  // namespace engine::server
