// Answers: OpenAI's shapes for both APIs, whole and as server-sent events, and the metrics' text.
#include "engine/server/api_response.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "engine/server/metrics.hpp"
#include "engine/small_tokenizer.hpp"

using engine::Finish;
using engine::Piece;
using engine::server::Api;
using engine::server::ApiError;
using engine::server::ApiRequest;
using engine::server::ApiResponse;
using nlohmann::json;

namespace {

const engine::Tokenizer& tokenizer() {  // of bytes, with a few merges
  static const engine::Tokenizer it = engine_test::load_tokenizer(engine_test::small_tokenizer());
  return it;
}

ApiResponse response_to(Api api, int n, int top_logprobs = -1, bool include_usage = false) {
  ApiRequest request;
  request.api = api;
  request.prompt = {1, 2, 3};
  request.params.n = n;
  request.params.top_logprobs = top_logprobs;
  request.include_usage = include_usage;
  return ApiResponse(request, "the-id", "tiny", 1234, tokenizer());
}

/// The JSON of each event; "[DONE]" as a string. Checks the framing.
std::vector<json> events_in(const std::string& text) {
  std::vector<json> events;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find("\n\n", begin);
    REQUIRE(end != std::string::npos);
    const std::string event = text.substr(begin, end - begin);
    CHECK(event.starts_with("data: "));
    CHECK(event.find('\n') == std::string::npos);
    events.push_back(event == "data: [DONE]" ? json("[DONE]") : json::parse(event.substr(6)));
    begin = end + 2;
  }
  return events;
}

Piece piece(int sample, std::int32_t token, const std::string& text, Finish finish = Finish::none) {
  return {.sample = sample, .token = token, .text = text, .finish = finish, .logprob = -0.5, .top = {}};
}

}  // namespace

TEST_CASE("a completion in one object") {
  ApiResponse response = response_to(Api::completions, 2);
  response.add(piece(0, 'a', "a"));
  response.add(piece(1, 'b', "b", Finish::length));
  response.add(piece(0, 'c', "\"\n", Finish::eos));
  const json answer = json::parse(response.json(2));
  CHECK(answer == json{{"id", "the-id"},
                       {"object", "text_completion"},
                       {"created", 1234},
                       {"model", "tiny"},
                       {"choices",
                        {{{"index", 0}, {"text", "a\"\n"}, {"logprobs", nullptr}, {"finish_reason", "stop"}},
                         {{"index", 1}, {"text", "b"}, {"logprobs", nullptr}, {"finish_reason", "length"}}}},
                       {"usage",
                        {{"prompt_tokens", 3},
                         {"completion_tokens", 3},
                         {"total_tokens", 6},
                         {"prompt_tokens_details", {{"cached_tokens", 2}}}}}});
}

TEST_CASE("a chat completion in one object") {
  ApiResponse response = response_to(Api::chat, 1);
  response.add(piece(0, 'a', "hello", Finish::stop));
  const json answer = json::parse(response.json(0));
  CHECK(answer["object"] == "chat.completion");
  CHECK(answer["choices"] ==
        json::array({{{"index", 0},
                      {"message", {{"role", "assistant"}, {"content", "hello"}, {"refusal", nullptr}}},
                      {"logprobs", nullptr},
                      {"finish_reason", "stop"}}}));
}

TEST_CASE("a completion as events") {
  ApiResponse response = response_to(Api::completions, 1);
  CHECK(response.opening() == "");
  const auto events = events_in(response.events_of(piece(0, 'a', "a\n\nb")));
  REQUIRE(events.size() == 1);
  CHECK(events[0] ==
        json{{"id", "the-id"},
             {"object", "text_completion"},
             {"created", 1234},
             {"model", "tiny"},
             {"choices", {{{"index", 0}, {"text", "a\n\nb"}, {"logprobs", nullptr}, {"finish_reason", nullptr}}}}});
  CHECK(response.events_of(piece(0, 'a', "")) == "");  // nothing to show
  const auto last = events_in(response.events_of(piece(0, 'a', "", Finish::length)));
  REQUIRE(last.size() == 1);
  CHECK(last[0]["choices"][0]["finish_reason"] == "length");
  CHECK(response.closing(0) == "data: [DONE]\n\n");
}

TEST_CASE("a chat completion as events: who speaks, what is said, why it ends, what it cost") {
  ApiResponse response = response_to(Api::chat, 2, -1, true);
  const auto opening = events_in(response.opening());
  REQUIRE(opening.size() == 2);
  CHECK(opening[1] == json{{"id", "the-id"},
                           {"object", "chat.completion.chunk"},
                           {"created", 1234},
                           {"model", "tiny"},
                           {"choices",
                            {{{"index", 1},
                              {"delta", {{"role", "assistant"}, {"content", ""}}},
                              {"logprobs", nullptr},
                              {"finish_reason", nullptr}}}},
                           {"usage", nullptr}});
  CHECK(events_in(response.events_of(piece(1, 'a', "a"))).at(0)["choices"][0]["delta"] == json{{"content", "a"}});
  const json end = events_in(response.events_of(piece(0, 'a', "", Finish::stop))).at(0);
  CHECK(end["choices"][0]["delta"] == json::object());
  CHECK(end["choices"][0]["finish_reason"] == "stop");
  const auto closing = events_in(response.closing(2));
  REQUIRE(closing.size() == 2);
  CHECK(closing[0]["choices"] == json::array());
  CHECK(closing[0]["usage"]["completion_tokens"] == 2);
  CHECK(closing[0]["usage"]["prompt_tokens_details"]["cached_tokens"] == 2);
  CHECK(closing[1] == "[DONE]");
}

TEST_CASE("logprobs of a completion: lists side by side, offsets in characters") {
  ApiResponse response = response_to(Api::completions, 1, 2);
  Piece first = piece(0, 0xc3, "");
  first.top = {{'a', -0.25f}, {0xa9, -std::numeric_limits<float>::infinity()}};
  response.add(first);
  response.add(piece(0, 0xa9, "\u00e9"));
  response.add(piece(0, 'x', "x", Finish::length));
  const json logprobs = json::parse(response.json(0))["choices"][0]["logprobs"];
  CHECK(logprobs["tokens"] == json{"bytes:\\xc3", "bytes:\\xa9", "x"});
  CHECK(logprobs["token_logprobs"] == json{-0.5, -0.5, -0.5});
  CHECK(logprobs["top_logprobs"][0] == json{{"a", -0.25}, {"bytes:\\xa9", -9999.0}});  // JSON knows no infinity
  CHECK(logprobs["top_logprobs"][1] == json::object());
  CHECK(logprobs["text_offset"] == json{0, 1, 1});
}

TEST_CASE("logprobs of a chat: one entry a token, in events too, even where no text shows") {
  ApiResponse response = response_to(Api::chat, 1, 1);
  Piece first = piece(0, 0xc3, "");
  first.top = {{'a', -0.25f}};
  const json expected = {{"token", "bytes:\\xc3"},
                         {"logprob", -0.5},
                         {"bytes", {0xc3}},
                         {"top_logprobs", {{{"token", "a"}, {"logprob", -0.25}, {"bytes", {'a'}}}}}};
  const auto events = events_in(response.events_of(first));
  REQUIRE(events.size() == 1);
  CHECK(events[0]["choices"][0]["logprobs"]["content"] == json::array({expected}));
  response.add(first);
  response.add(piece(0, 'b', "b"));
  const json whole = json::parse(response.json(0))["choices"][0]["logprobs"]["content"];
  REQUIRE(whole.size() == 2);
  CHECK(whole[0] == expected);
  CHECK(whole[1]["token"] == "b");
}

TEST_CASE("errors have OpenAI's shape") {
  CHECK(
      json::parse(engine::server::error_json(ApiError(400, "n: too \"large\"", "n"))) ==
      json{{"error",
            {{"message", "n: too \"large\""}, {"type", "invalid_request_error"}, {"param", "n"}, {"code", nullptr}}}});
  CHECK(json::parse(engine::server::error_json(ApiError(429, "later", "", "overloaded"))) ==
        json{{"error",
              {{"message", "later"}, {"type", "rate_limit_error"}, {"param", nullptr}, {"code", "overloaded"}}}});
  CHECK_NOTHROW(json::parse(engine::server::error_json(ApiError(400, "\xff"))));
}

TEST_CASE("metrics: every family has its help and type, histograms accumulate, states of blocks add up") {
  engine::ServiceStats stats;
  stats.num_blocks = 10;
  stats.num_free = 5;
  stats.num_idle = 2;
  for (const double seconds : {0.001, 0.002, 0.5, 1000.0}) stats.inter_token.add(seconds);
  stats.num_samples[static_cast<std::size_t>(Finish::eos)] = 2;
  stats.num_samples[static_cast<std::size_t>(Finish::stop)] = 1;
  const std::string text = engine::server::metrics_text(stats);
  for (const std::string line :
       {"pagedkv_kv_blocks{state=\"free\"} 5\n", "pagedkv_kv_blocks{state=\"cached\"} 2\n",
        "pagedkv_kv_blocks{state=\"owned\"} 3\n", "pagedkv_samples_total{finish=\"stop\"} 3\n",
        "# TYPE pagedkv_inter_token_latency_seconds histogram\n",
        "pagedkv_inter_token_latency_seconds_bucket{le=\"0.001\"} 1\n",
        "pagedkv_inter_token_latency_seconds_bucket{le=\"0.0025\"} 2\n",
        "pagedkv_inter_token_latency_seconds_bucket{le=\"0.5\"} 3\n",
        "pagedkv_inter_token_latency_seconds_bucket{le=\"60\"} 3\n",
        "pagedkv_inter_token_latency_seconds_bucket{le=\"+Inf\"} 4\n", "pagedkv_inter_token_latency_seconds_count 4\n",
        "pagedkv_inter_token_latency_seconds_sum 1000.503\n"}) {
    CAPTURE(line);
    CHECK(text.find(line) != std::string::npos);
  }
  std::istringstream lines(text);
  std::string family;
  for (std::string line; std::getline(lines, line);) {
    CAPTURE(line);
    if (line.starts_with("# TYPE ")) family = line.substr(7, line.find(' ', 7) - 7);
    if (!line.starts_with("#")) CHECK(line.starts_with(family));
  }
}
