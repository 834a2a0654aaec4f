// The server over a socket, in front of a model that is a function of its context: answers, streams, keys, limits,
// clients that break the rules or leave, and its end.
#include "engine/server/http_server.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/server/open_files.hpp"
#include "engine/server/raw_client.hpp"
#include "engine/server/stack_size.hpp"
#include "engine/small_tokenizer.hpp"
#include "support/fake_model.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using engine::server::HttpOptions;
using engine::server::HttpServer;
using engine_test::ask;
using engine_test::http_request;
using engine_test::HttpAnswer;
using engine_test::RawClient;
using nlohmann::json;
using pagedkv_test::FakeModel;
using pagedkv_test::Watchdog;

namespace {

constexpr int vocab = 128, max_positions = 2000, num_blocks = 400;

const engine::Tokenizer& tokenizer() {  // whose token i below 256 is byte i
  static const engine::Tokenizer it = engine_test::load_tokenizer(engine_test::small_tokenizer());
  return it;
}

/// Takes a moment for each step: long enough that who gets 1900 tokens is served for longer than any test looks on.
class SlowModel final : public FakeModel {
 public:
  SlowModel() : FakeModel(vocab, num_blocks, 16) {}
  std::span<const float> forward(const engine::Batch& batch) override {
    if (is_slow) std::this_thread::sleep_for(10ms);
    forget_passes();
    return FakeModel::forward(batch);
  }
  std::atomic<bool> is_slow = false;
};

struct Running {
  Watchdog watchdog{"an HTTP test", 60s};
  engine::ModelConfig config;
  SlowModel model;
  std::optional<engine::Engine> engine;
  std::optional<engine::EngineService> service;
  HttpServer http;

  explicit Running(HttpOptions options = {}, int max_queue = 64, bool is_open = true)
      : http(with_any_port(std::move(options))) {
    config.vocab = vocab;
    config.max_positions = max_positions;
    engine.emplace(config, model, engine::EngineOptions{.num_blocks = num_blocks, .scheduler = {.max_seqs = 8}});
    service.emplace(*engine, tokenizer(), engine::ServiceOptions{.max_queue = max_queue});
    if (is_open) open();
  }
  ~Running() {
    service->close(1h);
    http.close();
    CHECK_NOTHROW(engine->check_integrity());
    CHECK(engine->blocks().num_used() == 0);
  }
  static HttpOptions with_any_port(HttpOptions options) {
    options.port = 0;
    options.max_connections = 40;
    return options;
  }
  void open() {
    http.open({.name = "fake",
               .config = config,
               .tokenizer = tokenizer(),
               .max_samples = 8,
               .has_chat = true,
               .encode_chat =
                   [](const std::vector<engine::ChatMessage>& messages) {
                     return std::vector<std::int32_t>(messages.size(), 'm');
                   }},
              *service);
  }

  HttpAnswer get(const std::string& path) { return ask(http.port(), http_request("GET", path)); }
  HttpAnswer complete(const json& fields = json::object()) {
    json body = {{"model", "fake"}, {"prompt", "xy"}};
    body.update(fields);
    return ask(http.port(), http_request("POST", "/v1/completions", body.dump()));
  }
  std::string long_request(bool stream) const {
    return http_request("POST", "/v1/completions",
                        json{{"model", "fake"}, {"prompt", "xy"}, {"max_tokens", 1900}, {"stream", stream}}.dump());
  }
  void wait_for_running(int num_requests) const {
    while (service->stats().num_running + service->stats().num_waiting != num_requests)
      std::this_thread::sleep_for(1ms);
  }
  std::vector<std::int32_t> expected(std::vector<std::int32_t> prompt, int max_tokens) const {
    return FakeModel::continuation(std::move(prompt), max_tokens, vocab, -1);
  }
};

void check_error(const HttpAnswer& answer, int status, const std::string& type) {
  CAPTURE(answer.head);
  CAPTURE(answer.body);
  CHECK(answer.status == status);
  CHECK(answer.head.find("Content-Type: application/json") != std::string::npos);
  REQUIRE(!answer.body.empty());
  const json error = answer.json().at("error");
  CHECK(error["type"] == type);
  CHECK(!error["message"].get<std::string>().empty());
  CHECK(error.contains("param"));
  CHECK(error.contains("code"));
}

constexpr const char* invalid = "invalid_request_error";

}  // namespace

TEST_CASE("a completion arrives whole, and the same one as a stream of events") {
  Running server;
  const json fields = {{"max_tokens", 20}, {"temperature", 0}, {"ignore_eos", true}};
  const HttpAnswer whole = server.complete(fields);
  CAPTURE(whole.body);
  REQUIRE(whole.status == 200);
  const json answer = whole.json();
  const std::string text = answer["choices"][0]["text"];
  CHECK(text == tokenizer().decode(server.expected({'x', 'y'}, 20)));
  CHECK(answer["usage"]["completion_tokens"] == 20);
  CHECK(answer["model"] == "fake");

  json streamed = fields;
  streamed["stream"] = true;
  const HttpAnswer stream = server.complete(streamed);
  CHECK(stream.status == 200);
  CHECK(stream.head.find("Content-Type: text/event-stream") != std::string::npos);
  CHECK(stream.body.ends_with("data: [DONE]\n\n"));
  std::string joined;
  for (std::size_t begin = 0; stream.body[begin] == 'd' && stream.body[begin + 6] == '{';) {
    const std::size_t end = stream.body.find("\n\n", begin);
    joined += json::parse(stream.body.substr(begin + 6, end - begin - 6))["choices"][0]["text"].get<std::string>();
    begin = end + 2;
  }
  CHECK(joined == text);

  std::string old_request =
      http_request("POST", "/v1/completions", json{{"model", "fake"}, {"prompt", "xy"}, {"stream", true}}.dump());
  old_request.replace(old_request.find("HTTP/1.1"), 8, "HTTP/1.0");
  const HttpAnswer unframed = ask(server.http.port(), old_request);
  CHECK(unframed.head.find("Transfer-Encoding") == std::string::npos);  // which HTTP/1.0 does not know
  CHECK(unframed.body.starts_with("data: {"));
  CHECK(unframed.body.ends_with("data: [DONE]\n\n"));
}

TEST_CASE("a chat is answered, and a seed makes it repeatable") {
  Running server;
  const auto chat = [&](const json& fields) {
    json body = {{"model", "fake"}, {"messages", {{{"role", "user"}, {"content", "x"}}}}, {"max_tokens", 12}};
    body.update(fields);
    return ask(server.http.port(), http_request("POST", "/v1/chat/completions", body.dump())).json();
  };
  const json first = chat({{"seed", 7}, {"n", 2}}), second = chat({{"seed", 7}, {"n", 2}});
  CHECK(first["object"] == "chat.completion");
  CHECK(first["choices"] == second["choices"]);
  CHECK(first["choices"][0]["message"] != first["choices"][1]["message"]);
  CHECK(chat(json::object())["choices"] != chat(json::object())["choices"]);  // without a seed each has its own
}

TEST_CASE("the other paths: page, health, models, metrics") {
  Running server;
  CHECK(server.get("/").body.find("<!doctype html>") == 0);
  CHECK(server.get("/health").json()["status"] == "ok");
  CHECK(server.get("/v1/models").json()["data"][0]["id"] == "fake");
  server.complete({{"max_tokens", 3}});
  CHECK(server.get("/metrics").body.find("pagedkv_generated_tokens_total 3\n") != std::string::npos);
  CHECK(server.get("/metrics").body.find("pagedkv_requests_running 0\n") != std::string::npos);
}

TEST_CASE("other paths and methods are refused in the same shape") {
  Running server;
  check_error(server.get("/nowhere"), 404, invalid);
  check_error(server.get("/v1/completions"), 405, invalid);
  CHECK(server.get("/v1/completions").head.find("Allow: POST") != std::string::npos);
  for (const std::string method : {"POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
    check_error(ask(server.http.port(), http_request(method, "/health", method == "OPTIONS" ? "" : "x")), 405, invalid);
  check_error(ask(server.http.port(), http_request("POST", "/nowhere", "{}")), 404, invalid);
}

TEST_CASE("the longest path needs no more stack than others") {
  const engine_test::StackSize small(std::size_t{1} << 20);
  Running server;
  check_error(server.get("/" + std::string(8000, 'a')), 404, invalid);
}

TEST_CASE("until there is a model to serve, everything but the page is unavailable") {
  Running server({}, 64, false);
  for (const char* path : {"/health", "/v1/models", "/metrics"})
    check_error(server.get(path), 503, "service_unavailable_error");
  CHECK(server.complete().head.find("Retry-After: 1") != std::string::npos);
  CHECK(server.get("/").status == 200);
  server.open();
  CHECK(server.get("/health").status == 200);
}

TEST_CASE("with a key, only who shows it is served") {
  Running server({.api_key = "secret"});
  const std::string body = R"({"model":"fake","prompt":"xy","max_tokens":2})";
  const auto with = [&](const std::string& header) {
    return ask(server.http.port(),
               http_request("POST", "/v1/completions", body, "Content-Type: application/json\r\n" + header));
  };
  CHECK(with("Authorization: Bearer secret\r\n").status == 200);
  for (const char* header :
       {"", "Authorization: Bearer secre\r\n", "Authorization: Bearer secrets\r\n", "Authorization: secret\r\n",
        "Authorization: Bearer \r\n", "Authorization: \r\n", "Authorization: Bearer secretsecret\r\n"})
    check_error(with(header), 401, "authentication_error");
  check_error(server.get("/v1/models"), 401, "authentication_error");
  check_error(server.get("/metrics"), 401, "authentication_error");
  CHECK(server.get("/health").status == 200);
  CHECK(server.get("/").status == 200);
}

TEST_CASE("bodies that are too large, of another type, or incomplete are refused, and the next client is served") {
  Running server({.body_limit = 1000});
  const int port = server.http.port();
  check_error(server.complete({{"prompt", std::string(1000, 'x')}}), 413, invalid);
  const std::string chunk = "200\r\n" + std::string(0x200, ' ') + "\r\n";
  const std::string json_header = "Content-Type: application/json\r\n";
  const std::string chunked = json_header + "Transfer-Encoding: chunked\r\n";
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + chunked + "\r\n";
  check_error(ask(port, head + chunk + chunk + "0\r\n\r\n"), 413, invalid);
  for (const char* type : {"", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n",
                           "Content-Type: multipart/form-data; boundary=x\r\n"})
    check_error(ask(port, http_request("POST", "/v1/completions", "{}", type)), 415, invalid);
  {
    RawClient client(port);
    const std::string request = http_request("POST", "/v1/completions", R"({"model":"fake","prompt":"xy"})");
    client.send(request.substr(0, request.size() - 10));
    client.close_sending();
    check_error(client.read_all(), 400, invalid);
  }
  {
    RawClient client(port);  // that would never come to the end of its body
    client.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 1000000000000\r\n" + json_header + "\r\n");
    while (client.send("x")) std::this_thread::sleep_for(1ms);
  }
  check_error(ask(port, "nonsense\r\n\r\n"), 400, invalid);
  check_error(ask(port, "GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n\r\n"), 414, invalid);
  CHECK(server.complete({{"max_tokens", 2}}).status == 200);
}

TEST_CASE("what cannot be served is refused with the field's name") {
  Running server;
  const HttpAnswer unknown = server.complete({{"frob", 1}});
  check_error(unknown, 400, invalid);
  CHECK(unknown.json()["error"]["param"] == "frob");
  check_error(server.complete({{"model", "gpt"}}), 404, invalid);
  check_error(server.complete({{"n", 1 << 30}}), 400, invalid);
  check_error(server.complete({{"max_tokens", 1999}}), 400, invalid);
  check_error(server.complete({{"prompt", std::vector<int>(3, vocab)}}), 400, invalid);
  check_error(server.complete({{"max_tokens", 1000}, {"n", 8}}), 400, invalid);  // more blocks than there are
  check_error(ask(server.http.port(), http_request("POST", "/v1/completions", "\xff{")), 400, invalid);
}

TEST_CASE(
    "clients that leave are noticed: their blocks come back, whether they streamed, waited or only hung up half") {
  Running server;
  server.model.is_slow = true;
  for (const bool is_half : {false, true})
    for (const bool is_stream : {false, true}) {
      RawClient client(server.http.port());
      client.send(server.long_request(is_stream));
      if (is_stream) CHECK(client.read_until("data: {"));
      server.wait_for_running(1);
      CHECK(server.service->stats().num_free + server.service->stats().num_idle < num_blocks);
      if (is_half) {
        client.close_sending();
        server.wait_for_running(0);
      }
    }
  server.wait_for_running(0);
  CHECK(server.service->stats().num_free + server.service->stats().num_idle == num_blocks);
  CHECK(server.service->stats().num_samples[static_cast<std::size_t>(engine::Finish::aborted)] == 4);
}

TEST_CASE("a client is served, and its leaving noticed, with more than a thousand files open before it") {
  if (!engine_test::OpenFiles::are_allowed(1300)) {
    MESSAGE("skipped: this system lets a process open fewer files");
    return;
  }
  const engine_test::OpenFiles crowd(1100);
  Running server;
  CHECK(server.complete({{"max_tokens", 2}}).status == 200);
  server.model.is_slow = true;
  {
    RawClient client(server.http.port());
    client.send(server.long_request(false));
    server.wait_for_running(1);
  }
  server.wait_for_running(0);
  CHECK(server.service->stats().num_samples[static_cast<std::size_t>(engine::Finish::aborted)] == 1);
}

TEST_CASE("a client that leaves takes nobody along who has the same port on another host") {
  Running server;
  server.model.is_slow = true;
  RawClient staying(server.http.port());
  {
    const RawClient leaving(server.http.port(), staying);
    CHECK(server.get("/health").status == 200);  // accepted in order: so is `leaving`
    staying.send(server.long_request(false));
    server.wait_for_running(1);
  }
  std::this_thread::sleep_for(300ms);  // for a server that looks at the wrong connection
  server.model.is_slow = false;
  CHECK(staying.read_all().json()["usage"]["completion_tokens"] == 1900);
}

TEST_CASE("a client that stops reading its stream does not hold up others") {
  Running server;
  std::vector<std::unique_ptr<RawClient>> silent;
  for (int i = 0; i < 4; ++i) {
    silent.push_back(std::make_unique<RawClient>(server.http.port()));
    silent.back()->send(server.long_request(true));
  }
  for (int i = 0; i < 5; ++i) CHECK(server.complete({{"max_tokens", 30}}).status == 200);
}

TEST_CASE("more requests than the queue holds get 429 and are told when to come again") {
  Running server({}, 1);
  server.model.is_slow = true;
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 9; ++i) {  // eight run, one waits
    clients.push_back(std::make_unique<RawClient>(server.http.port()));
    clients.back()->send(server.long_request(true));
    server.wait_for_running(i + 1);
    if (i < 8) CHECK(clients.back()->read_until("data: {"));
  }
  const HttpAnswer refused = server.complete();
  check_error(refused, 429, "rate_limit_error");
  CHECK(refused.head.find("Retry-After: 1") != std::string::npos);
  clients.pop_back();  // who waits in the queue is noticed, too, though nothing is written to it
  server.wait_for_running(8);
  CHECK(server.service->stats().num_samples[static_cast<std::size_t>(engine::Finish::aborted)] == 1);
  clients.clear();
  server.wait_for_running(0);
  CHECK(server.complete({{"max_tokens", 2}}).status == 200);
}

TEST_CASE("a stream that has nothing to tell says that it is alive, and its events are the same") {
  for (const bool has_heartbeat : {true, false}) {
    Running server({.heartbeat = has_heartbeat ? 1ms : 0ms});
    const json fields = {{"max_tokens", 4}, {"temperature", 0}, {"stream_options", {{"include_usage", true}}}};
    server.model.is_slow = true;
    std::vector<std::unique_ptr<RawClient>> before;  // whose requests take every row
    for (int i = 0; i < 8; ++i) {
      before.push_back(std::make_unique<RawClient>(server.http.port()));
      before.back()->send(server.long_request(false));
    }
    server.wait_for_running(8);
    RawClient waiting(server.http.port());
    json body = {{"model", "fake"}, {"prompt", "xy"}, {"stream", true}};
    body.update(fields);
    waiting.send(http_request("POST", "/v1/completions", body.dump()));
    if (has_heartbeat)
      CHECK(waiting.read_until(": keep-alive\n\n"));
    else
      std::this_thread::sleep_for(300ms);  // for a server that would break the silence
    before.clear();
    std::string events = waiting.read_all().body;
    CHECK(events.starts_with(": keep-alive\n\n") == has_heartbeat);
    for (std::size_t i; (i = events.find(": keep-alive\n\n")) != std::string::npos;) events.erase(i, 14);
    int num_events = 0;
    for (std::size_t i = 0; i < events.size(); i = events.find("\n\n", i) + 2) {
      CHECK(events.compare(i, 6, "data: ") == 0);
      ++num_events;
    }
    CHECK(num_events == 4 + 2);  // tokens, usage, [DONE]
    CHECK(events.find("\"completion_tokens\":4") != std::string::npos);
    CHECK(events.ends_with("data: [DONE]\n\n"));
  }
}

TEST_CASE("at the end, streams and answers that run are finished, and new requests are told") {
  Running server;
  server.model.is_slow = true;
  RawClient stream(server.http.port()), whole(server.http.port());
  stream.send(server.long_request(true));
  whole.send(server.long_request(false));
  server.wait_for_running(2);
  server.http.refuse();
  check_error(server.complete(), 503, "service_unavailable_error");
  check_error(server.get("/health"), 503, "service_unavailable_error");
  server.model.is_slow = false;
  server.service->close(1h);
  CHECK(stream.read_all().body.ends_with("data: [DONE]\n\n"));
  CHECK(whole.read_all().json()["usage"]["completion_tokens"] == 1900);
}

TEST_CASE("at the end, an answer is written to its last byte, though it is compressed first, which takes a while") {
  Running server;
  server.model.is_slow = true;
  const json body = {{"model", "fake"},   {"messages", {{{"role", "user"}, {"content", "x"}}}},
                     {"logprobs", true},  {"top_logprobs", 20},
                     {"max_tokens", 900}, {"n", 4}};
  RawClient client(server.http.port());
  client.send(http_request("POST", "/v1/chat/completions", body.dump(),
                           "Content-Type: application/json\r\nAccept-Encoding: gzip\r\n"));
  server.wait_for_running(1);
  server.model.is_slow = false;
  server.wait_for_running(0);
  auto closed = std::async(std::launch::async, [&] { server.http.close(); });
  const HttpAnswer answer = client.read_all();
  CHECK(answer.status == 200);
  CHECK(answer.head.find("Content-Length: " + std::to_string(answer.body.size())) != std::string::npos);
  closed.get();
}

TEST_CASE("when there is no time left, streams and answers that run are told") {
  Running server;
  server.model.is_slow = true;
  RawClient stream(server.http.port()), whole(server.http.port()), silent(server.http.port());
  stream.send(server.long_request(true));
  whole.send(server.long_request(false));
  silent.send("POST /v1/comp");  // is let go, too
  server.wait_for_running(2);
  server.http.refuse();
  server.service->close(0ms);
  server.http.close();
  const std::string events = stream.read_all().body;
  CHECK(events.find("\"shutting_down\"") != std::string::npos);
  CHECK(events.find("[DONE]") == std::string::npos);
  check_error(whole.read_all(), 503, "service_unavailable_error");
  CHECK_THROWS(RawClient(server.http.port()));
}

TEST_CASE("a port that is taken, or a host that is not here, is refused by name") {
  Running server;
  CHECK_THROWS_AS(HttpServer({.port = server.http.port(), .max_connections = 1}), engine::BadInput);
  CHECK_THROWS_AS(HttpServer({.host = "192.0.2.1", .port = 0, .max_connections = 1}), engine::BadInput);
  CHECK_THROWS_AS(HttpServer({.host = "", .port = 0, .max_connections = 1}), engine::BadInput);
}

TEST_CASE("damaged requests never disturb the others") {
  Running server;
  std::mt19937 random(3);
  const std::string body = R"({"model":"fake","prompt":"xy","max_tokens":3,"temperature":0})";
  const std::string whole = http_request("POST", "/v1/completions", body);
  const std::string expected = server.complete({{"max_tokens", 3}, {"temperature", 0}}).json()["choices"].dump();
  for (int i = 0; i < 300; ++i) {
    RawClient client(server.http.port());
    client.send(engine_test::damaged(whole, random));
    client.close_sending();
    const HttpAnswer answer = client.read_all();
    CAPTURE(answer.head);
    CHECK(answer.status != 500);
    if (i % 20 == 0)
      CHECK(server.complete({{"max_tokens", 3}, {"temperature", 0}}).json()["choices"].dump() == expected);
  }
}
