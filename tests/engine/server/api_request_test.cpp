// Requests in JSON: every field that is understood, and for every bad one an error that names it.
#include "engine/server/api_request.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/server/api_error.hpp"
#include "engine/small_tokenizer.hpp"

using engine::server::Api;
using engine::server::ApiError;
using engine::server::ApiRequest;
using engine::server::parse_request;
using engine::server::ServedModel;
using nlohmann::json;
using Tokens = std::vector<std::int32_t>;

namespace {

const engine::ModelConfig& config() {
  static const engine::ModelConfig it = [] {
    engine::ModelConfig config;
    config.vocab = 302;
    config.max_positions = 100;
    return config;
  }();
  return it;
}

const engine::Tokenizer& tokenizer() {  // of bytes, with a few merges
  static const engine::Tokenizer it = engine_test::load_tokenizer(engine_test::small_tokenizer());
  return it;
}

ServedModel model() {
  return {.name = "tiny",
          .config = config(),
          .tokenizer = tokenizer(),
          .max_samples = 8,
          .has_chat = true,
          .encode_chat = [](const std::vector<engine::ChatMessage>& messages) {
            std::string text;
            for (const engine::ChatMessage& message : messages) text += message.role[0] + message.content + "|";
            return Tokens(text.begin(), text.end());
          }};
}

json minimal(Api api) {
  json body = {{"model", "tiny"}};
  if (api == Api::completions)
    body["prompt"] = "xyz";
  else
    body["messages"] = json::array({{{"role", "user"}, {"content", "hi"}}});
  return body;
}

ApiRequest parse(Api api, const json& body) { return parse_request(api, body.dump(), model()); }

ApiRequest with(Api api, const json& fields) {
  json body = minimal(api);
  body.update(fields);
  return parse(api, body);
}

/// Why `text` is refused.
std::optional<ApiError> refusal(Api api, const std::string& text) {
  try {
    parse_request(api, text, model());
  } catch (const ApiError& error) {
    return error;
  }
  return std::nullopt;
}

// A 400 that names `param` and says each of `parts`.
void check_refused(Api api, const json& fields, const std::string& param, const std::vector<std::string>& parts = {}) {
  json body = minimal(api);
  body.update(fields);
  CAPTURE(body.dump());
  const std::optional<ApiError> error = refusal(api, body.dump());
  REQUIRE(error);
  CHECK(error->status() == 400);
  CHECK(error->param() == param);
  CHECK(std::string(error->what()).find('\n') == std::string::npos);
  CHECK(std::string(error->what()).size() < 500);
  for (const std::string& part : parts) {
    CAPTURE(error->what());
    CHECK(std::string(error->what()).find(part) != std::string::npos);
  }
}

constexpr Api both[] = {Api::completions, Api::chat};

}  // namespace

TEST_CASE("what is not given is as OpenAI has it") {
  const ApiRequest completion = parse(Api::completions, minimal(Api::completions));
  CHECK(completion.prompt == Tokens{'x', 'y', 'z'});
  CHECK(completion.params.max_tokens == 16);
  const ApiRequest chat = parse(Api::chat, minimal(Api::chat));
  CHECK(chat.prompt == Tokens{'u', 'h', 'i', '|'});
  CHECK(chat.params.max_tokens == 100 - 4);
  for (const ApiRequest& request : {completion, chat}) {
    CHECK(request.params.n == 1);
    CHECK(request.params.temperature == 1);
    CHECK(request.params.top_p == 1);
    CHECK(request.params.top_k == 0);
    CHECK(request.params.top_logprobs == -1);
    CHECK(!request.params.ignore_eos);
    CHECK(!request.has_seed);
    CHECK(!request.stream);
    CHECK(request.stop.empty());
  }
}

TEST_CASE("every field arrives") {
  for (const Api api : both) {
    const ApiRequest request = with(api, {{"max_tokens", 7},
                                          {"min_tokens", 2},
                                          {"n", 8},
                                          {"temperature", 0.5},
                                          {"top_p", 0.25},
                                          {"top_k", 40},
                                          {"min_p", 0.125},
                                          {"presence_penalty", -2},
                                          {"frequency_penalty", 1.5},
                                          {"repetition_penalty", 1.25},
                                          {"logit_bias", {{"0", -100}, {"301", 2.5}}},
                                          {"seed", -1},
                                          {"stop", {"a", "bc"}},
                                          {"stop_token_ids", {5, 6}},
                                          {"ignore_eos", true},
                                          {"stream", true},
                                          {"stream_options", {{"include_usage", true}}},
                                          {"user", "somebody"}});
    CHECK(request.api == api);
    CHECK(request.params.max_tokens == 7);
    CHECK(request.params.min_tokens == 2);
    CHECK(request.params.n == 8);
    CHECK(request.params.temperature == 0.5f);
    CHECK(request.params.top_p == 0.25f);
    CHECK(request.params.top_k == 40);
    CHECK(request.params.min_p == 0.125f);
    CHECK(request.params.presence_penalty == -2);
    CHECK(request.params.frequency_penalty == 1.5f);
    CHECK(request.params.repetition_penalty == 1.25f);
    CHECK(request.params.logit_bias == std::vector<std::pair<std::int32_t, float>>{{0, -100.0f}, {301, 2.5f}});
    CHECK(request.params.seed == std::numeric_limits<std::uint64_t>::max());
    CHECK(request.has_seed);
    CHECK(request.stop == std::vector<std::string>{"a", "bc"});
    CHECK(request.params.stop_ids == Tokens{5, 6});
    CHECK(request.params.ignore_eos);
    CHECK(request.stream);
    CHECK(request.include_usage);
  }
  CHECK(with(Api::completions, {{"stop", "one"}}).stop == std::vector<std::string>{"one"});
  CHECK(with(Api::completions, {{"logprobs", 5}}).params.top_logprobs == 5);
  CHECK(with(Api::completions, {{"top_k", -1}}).params.top_k == 0);
  CHECK(with(Api::chat, {{"max_completion_tokens", 9}}).params.max_tokens == 9);
  CHECK(with(Api::chat, {{"logprobs", true}}).params.top_logprobs == 0);
  CHECK(with(Api::chat, {{"logprobs", true}, {"top_logprobs", 20}}).params.top_logprobs == 20);
  CHECK(with(Api::chat, {{"logprobs", false}}).params.top_logprobs == -1);
}

TEST_CASE("what the model recommends is the default, and what the request says counts more") {
  engine::ModelConfig recommending = config();
  recommending.generation.temperature = 0.25f;
  recommending.generation.top_k = 20;
  recommending.generation.top_p = 0.5f;
  ServedModel served{.name = "tiny",
                     .config = recommending,
                     .tokenizer = tokenizer(),
                     .max_samples = 8,
                     .has_chat = false,
                     .encode_chat = {}};
  json body = minimal(Api::completions);
  CHECK(parse_request(Api::completions, body.dump(), served).params.temperature == 0.25f);
  CHECK(parse_request(Api::completions, body.dump(), served).params.top_k == 20);
  body["temperature"] = 2;
  body["top_k"] = 0;
  CHECK(parse_request(Api::completions, body.dump(), served).params.temperature == 2);
  CHECK(parse_request(Api::completions, body.dump(), served).params.top_k == 0);
  CHECK(parse_request(Api::completions, body.dump(), served).params.top_p == 0.5f);
}

TEST_CASE("a prompt is a text, a list of one text, or token ids") {
  CHECK(with(Api::completions, {{"prompt", {"xyz"}}}).prompt == Tokens{'x', 'y', 'z'});
  CHECK(with(Api::completions, {{"prompt", {0, 7, 301}}}).prompt == Tokens{0, 7, 301});
  check_refused(Api::completions, {{"prompt", {"a", "b"}}}, "prompt", {"one prompt expected"});
  check_refused(Api::completions, {{"prompt", {{1, 2}}}}, "prompt", {"one prompt expected"});
  check_refused(Api::completions, {{"prompt", {1, "a"}}}, "prompt", {"prompt[1]"});
  check_refused(Api::completions, {{"prompt", {1, 302}}}, "prompt", {"prompt[1]", "0 to 301", "302"});
  check_refused(Api::completions, {{"prompt", {-1}}}, "prompt");
  check_refused(Api::completions, {{"prompt", {1.5}}}, "prompt");
  check_refused(Api::completions, {{"prompt", ""}}, "prompt", {"at least 1 token"});
  check_refused(Api::completions, {{"prompt", json::array()}}, "prompt", {"at least 1 token"});
  check_refused(Api::completions, {{"prompt", 5}}, "prompt");
  check_refused(Api::completions, {{"prompt", {{"a", 1}}}}, "prompt");
}

TEST_CASE("messages have a role and a text, whole or in parts") {
  const json parts = json::array({{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}});
  const json messages = json::array({{{"role", "developer"}, {"content", "s"}},
                                     {{"role", "user"}, {"content", parts}},
                                     {{"role", "assistant"}, {"content", "c"}, {"refusal", nullptr}}});
  const std::string expected = "ss|uab|ac|";
  CHECK(with(Api::chat, {{"messages", messages}}).prompt == Tokens(expected.begin(), expected.end()));
  const auto check_message = [](const json& message, const std::string& part) {
    check_refused(Api::chat, {{"messages", json::array({message})}}, "messages", {part});
  };
  check_message({{"role", "tool"}, {"content", "x"}}, "role");
  check_message({{"role", 1}, {"content", "x"}}, "role");
  check_message({{"content", "x"}}, "role");
  check_message({{"role", "user"}}, "content");
  check_message({{"role", "user"}, {"content", nullptr}}, "content");
  check_message({{"role", "user"}, {"content", "x"}, {"name", "Emma"}}, "name");
  check_message({{"role", "assistant"}, {"content", "x"}, {"tool_calls", json::array()}}, "tool_calls");
  check_message({{"role", "user"}, {"content", {{{"type", "image_url"}}}}}, "type");
  check_message("hi", "messages[0]");
  check_refused(Api::chat, {{"messages", json::array()}}, "messages", {"at least one message"});
  check_refused(Api::chat, {{"messages", "hi"}}, "messages", {"an array"});
}

TEST_CASE("what a chat template complains about is a complaint about the messages") {
  ServedModel served = model();
  served.encode_chat = [](const auto&) -> Tokens { throw engine::BadInput("messages", "a user's first", "another"); };
  try {
    parse_request(Api::chat, minimal(Api::chat).dump(), served);
    CHECK(false);
  } catch (const ApiError& error) {
    CHECK(error.status() == 400);
    CHECK(error.param() == "messages");
    CHECK(std::string(error.what()) == "messages: a user's first expected, another found");
  }
}

TEST_CASE("values out of range and of wrong types are refused by name") {
  const json wrong = "a text";
  const std::vector<std::pair<std::string, std::vector<json>>> fields = {
      {"max_tokens", {0, -1, 1.5, 1e30, wrong, true, std::int64_t{1} << 40, std::uint64_t{1} << 63, json::array()}},
      {"min_tokens", {-1, 0.5, wrong, std::int64_t{1} << 40}},
      {"n", {0, -1, 9, 1 << 30, std::int64_t{1} << 62, 1.5, wrong}},
      {"temperature", {-0.1, 2.1, 1e300, wrong, false}},
      {"top_p", {0, -0.5, 1.1, wrong}},
      {"top_k", {-2, 1.5, std::int64_t{1} << 40, wrong}},
      {"min_p", {-0.1, 1.1, wrong}},
      {"presence_penalty", {-2.1, 2.1, wrong}},
      {"frequency_penalty", {-2.1, 2.1, wrong}},
      {"repetition_penalty", {0, -1, 101, wrong}},
      {"logit_bias",
       {5,
        wrong,
        json::array(),
        {{"302", 1}},
        {{"-1", 1}},
        {{"a", 1}},
        {{"1 ", 1}},
        {{"", 1}},
        {{"1", 101}},
        {{"1", "2"}}}},
      {"seed", {1.5, wrong, std::uint64_t{1} << 63}},
      {"stop", {5, "", {"a", ""}, {"a", "b", "c", "d", "e"}, {1}, std::string(1025, 'a')}},
      {"stop_token_ids", {5, {302}, {-1}, {"a"}}},
      {"ignore_eos", {1, wrong}},
      {"stream", {1, wrong}},
      {"stream_options", {{{"include_usage", true}}}},  // without stream
      {"user", {5}},
      {"model", {5, json::array()}}};
  for (const Api api : both)
    for (const auto& [name, values] : fields)
      for (const json& value : values) check_refused(api, {{name, value}}, name, {name});
  check_refused(Api::completions, {{"logprobs", 6}}, "logprobs", {"0 to 5", "6"});
  check_refused(Api::completions, {{"logprobs", -1}}, "logprobs");
  check_refused(Api::completions, {{"logprobs", true}}, "logprobs");
  check_refused(Api::chat, {{"logprobs", 1}}, "logprobs");
  check_refused(Api::chat, {{"logprobs", true}, {"top_logprobs", 21}}, "top_logprobs", {"0 to 20", "21"});
  check_refused(Api::chat, {{"top_logprobs", 2}}, "top_logprobs", {"logprobs: true"});
  check_refused(Api::chat, {{"max_completion_tokens", 0}}, "max_completion_tokens");
  check_refused(Api::chat, {{"max_completion_tokens", 5}, {"max_tokens", 6}}, "max_tokens");
  check_refused(Api::chat, {{"stream", true}, {"stream_options", {{"frob", 1}}}}, "stream_options", {"frob"});
  check_refused(Api::completions, {{"max_tokens", 5}, {"min_tokens", 6}}, "min_tokens", {"at most max_tokens, 5"});
}

TEST_CASE("fields that are not supported are refused by name, in their own API and in the other's") {
  for (const Api api : both)
    for (const std::string name : {"frob", "functions", "audio", "guided_json", "use_beam_search", "Model"}) {
      check_refused(api, {{name, 1}}, name, {name, "does not support"});
      check_refused(api, {{name, nullptr}}, name);
    }
  for (const std::string name : {"prompt", "best_of", "echo", "suffix"}) check_refused(Api::chat, {{name, 1}}, name);
  for (const std::string name : {"messages", "tools", "response_format", "top_logprobs", "max_completion_tokens"})
    check_refused(Api::completions, {{name, 1}}, name);
  const std::vector<std::pair<const char*, json>> neutral = {{"response_format", {{"type", "text"}}},
                                                             {"modalities", {"text"}},
                                                             {"tools", json::array()},
                                                             {"tool_choice", "none"},
                                                             {"store", false}};
  for (const auto& [name, value] : neutral) {
    CHECK_NOTHROW(with(Api::chat, {{name, value}}));
    check_refused(Api::chat, {{name, "other"}}, name);
  }
  CHECK_NOTHROW(with(Api::completions, {{"echo", false}, {"best_of", 1}, {"suffix", ""}}));
  check_refused(Api::completions, {{"echo", true}}, "echo", {"false expected, true found"});
  check_refused(Api::completions, {{"best_of", 2}}, "best_of");
}

TEST_CASE("null means that the field is not there") {
  json body = minimal(Api::completions);
  for (const char* name : {"max_tokens", "n", "temperature", "stop", "seed", "logit_bias", "stream_options", "echo"})
    body[name] = nullptr;
  CHECK(parse(Api::completions, body).params.max_tokens == 16);
  check_refused(Api::completions, {{"model", nullptr}}, "model", {"\"model\" expected, none"});
  check_refused(Api::completions, {{"prompt", nullptr}}, "prompt");
  check_refused(Api::chat, {{"messages", nullptr}}, "messages");
}

TEST_CASE("another model is not found") {
  json body = minimal(Api::chat);
  body["model"] = "gpt";
  const auto error = refusal(Api::chat, body.dump());
  REQUIRE(error);
  CHECK(error->status() == 404);
  CHECK(error->param() == "model");
  CHECK(error->code() == "model_not_found");
}

TEST_CASE("prompt and max_tokens together stay within the model's positions") {
  CHECK(with(Api::completions, {{"prompt", Tokens(98, 1)}}).params.max_tokens == 2);  // the default gives way
  CHECK(with(Api::completions, {{"prompt", Tokens(98, 1)}, {"max_tokens", 2}}).params.max_tokens == 2);
  check_refused(Api::completions, {{"prompt", Tokens(98, 1)}, {"max_tokens", 3}}, "max_tokens",
                {"at most 2", "100 positions", "98 taken", "3 found"});
  check_refused(Api::completions, {{"prompt", Tokens(100, 1)}}, "prompt", {"100 positions", "100 found"});
  check_refused(Api::completions, {{"prompt", std::string(101, 'x')}}, "prompt", {"101 found"});
  check_refused(Api::chat, {{"max_completion_tokens", 97}}, "max_completion_tokens", {"at most 96"});
  check_refused(Api::chat, {{"max_tokens", std::numeric_limits<int>::max()}}, "max_tokens", {"at most 96"});
}

TEST_CASE("what is not JSON, not UTF-8, not an object, too deep or ambiguous is a 400") {
  const std::string deep = R"({"model":"tiny","prompt":)" + std::string(10000, '[');
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("null"), std::string("[]"), std::string("5"), deep,
        std::string(R"({"model":"tiny","prompt":"xyz")"), std::string(R"({"model":"tiny","prompt":"xyz"} x)"),
        std::string("{\"model\":\"tiny\",\"prompt\":\"\xff\"}"), std::string(R"({"model":"tiny","prompt":"\ud800"})"),
        std::string(R"({"model":"tiny","prompt":"a","prompt":"b"})"),
        std::string(R"({"model":"tiny","prompt":"a","temperature":1e999})"),
        std::string(R"({"model":"tiny","prompt":"a","temperature":NaN})"), std::string("\0{}", 3)}) {
    CAPTURE(text.substr(0, 100));
    for (const Api api : both) {
      const auto error = refusal(api, text);
      REQUIRE(error);
      CHECK(error->status() == 400);
    }
  }
}

TEST_CASE("damaged requests are parsed or refused, nothing else") {
  std::mt19937 random(1);
  const std::string whole = json{{"model", "tiny"},
                                 {"messages", json::array({{{"role", "user"}, {"content", "h\u00e9llo \U0001f600"}}})},
                                 {"max_tokens", 5},
                                 {"stop", {"a", "b"}},
                                 {"logit_bias", {{"12", 3}}},
                                 {"logprobs", true},
                                 {"top_logprobs", 3},
                                 {"stream", true},
                                 {"stream_options", {{"include_usage", true}}}}
                                .dump();
  CHECK(!refusal(Api::chat, whole));
  int num_parsed = 0, num_refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = engine_test::damaged(whole, random);
    const std::optional<ApiError> error = refusal(Api::chat, text);
    if (error) CHECK((error->status() == 400 || error->status() == 404));
    ++(error ? num_refused : num_parsed);
  }
  CHECK(num_parsed > 100);
  CHECK(num_refused > 1000);
}
