// The HTTP side: routes, keys, bodies, server-sent events, and clients that leave. The only file that sees httplib.
#include "engine/server/http_server.hpp"

#include <httplib.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "engine/bad_input.hpp"
#include "engine/server/api_error.hpp"
#include "engine/server/api_response.hpp"
#include "engine/server/chat_page.hpp"
#include "engine/server/connection.hpp"
#include "engine/server/connection_threads.hpp"
#include "engine/server/metrics.hpp"

namespace engine::server {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds glance{100};  // between two looks whether the client is still there
constexpr std::chrono::seconds body_patience{30};
constexpr std::size_t longest_path = 64;  // none of ours is as long
constexpr const char* json_type = "application/json";
constexpr const char* sign_of_life = ": keep-alive\n\n";  // a comment, which readers of events skip

std::int64_t seconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

int connection_of(const httplib::Request& request) {
  return find_connection(request.local_port, request.remote_addr, request.remote_port);
}

class Connections final : public httplib::TaskQueue {
 public:
  explicit Connections(int max_threads) : threads_(max_threads) {}
  using Accepted = decltype(std::declval<httplib::TaskQueue&>().enqueue(nullptr));  // void, in later versions bool
  Accepted enqueue(std::function<void()> connection) override {
    threads_.serve(std::move(connection));
    return static_cast<Accepted>(true);
  }
  void shutdown() override { threads_.wait(); }

 private:
  ConnectionThreads threads_;
};

/// httplib writes nothing to a client that has closed its side, but this one may still read why its request is bad.
std::string as_text(const httplib::Response& response) {
  return "HTTP/1.1 " + std::to_string(response.status) + " Error\r\nConnection: close\r\nContent-Type: " + json_type +
         "\r\nContent-Length: " + std::to_string(response.body.size()) + "\r\n\r\n" + response.body;
}

/// Takes as long for a wrong key as for another one.
bool is_same(const std::string& a, const std::string& b) {
  unsigned difference = a.size() != b.size();
  for (std::size_t i = 0; i < a.size() && !b.empty(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i % b.size()]);
  return difference == 0;
}

ApiError error_of(const Unavailable& error) {
  switch (error.reason()) {
    case Unavailable::Reason::overloaded:
      return {429, error.what(), "", "overloaded"};
    case Unavailable::Reason::closing:
      return {503, error.what(), "", "shutting_down"};
    default:
      return {500, error.what(), "", "engine_failed"};
  }
}

ApiError error_of(End end) {
  return error_of(Unavailable(end == End::closed ? Unavailable::Reason::closing : Unavailable::Reason::failed));
}

void answer_with(const ApiError& error, httplib::Response& response) {
  response.status = error.status();
  if (error.status() == 429 || error.status() == 503) response.set_header("Retry-After", "1");
  if (error.status() == 401) response.set_header("WWW-Authenticate", "Bearer");
  response.set_content(error_json(error), json_type);
}

/// For what httplib refuses itself.
const char* explanation_of(int status) {
  switch (status) {
    case 404:
      return "there is nothing at this path";
    case 413:
      return "the body is too large";
    case 414:
      return "the path is too long";
    default:
      return status < 500 ? "the request is not valid HTTP" : "the server failed";
  }
}

/// A request on its way to its answer.
struct Exchange {
  const httplib::Request& request;
  httplib::Response& response;
  const httplib::ContentReader* reader;  // of the body; null: none comes
  bool is_body_read = false;
};

}  // namespace

class HttpServer::Implementation {
 public:
  explicit Implementation(const HttpOptions& options) : options_(options) {
    server_.new_task_queue = [n = options.max_connections] { return new Connections(n); };
    server_.set_keep_alive_max_count(1);
    server_.set_tcp_nodelay(true);
    server_.set_payload_max_length(reading_limit());
    server_.set_socket_options([this](int socket) {  // not httplib's own, which lets two servers share a port
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      listening_ = socket;
    });
    server_.set_pre_routing_handler([](const httplib::Request& request, httplib::Response&) {
      auto& ours = const_cast<httplib::Request&>(request);
      ours.ranges.clear();                                         // httplib would cut the answer into them
      ours.path.resize(std::min(ours.path.size(), longest_path));  // std::regex takes 500 bytes of stack for each byte
      return httplib::Server::HandlerResponse::Unhandled;
    });
    server_.set_logger([](const httplib::Request&, const httplib::Response&) {  // it is written
      if (std::atomic<int>* count = std::exchange(counted_in_, nullptr)) --*count;
    });
    server_.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
      if (response.body.empty()) answer_with(ApiError(response.status, explanation_of(response.status)), response);
      if (const int socket = connection_of(request); socket >= 0 && is_closed_by_peer(socket))
        send_last_words(socket, as_text(response));
    });
    const auto without_body = [this](const httplib::Request& request, httplib::Response& response) {
      handle({request, response, nullptr});
    };
    const auto with_body = [this](const httplib::Request& request, httplib::Response& response,
                                  const httplib::ContentReader& reader) { handle({request, response, &reader}); };
    server_.Get(".*", without_body).Options(".*", without_body);
    server_.Post(".*", with_body).Put(".*", with_body).Patch(".*", with_body).Delete(".*", with_body);

    if (options.host.empty()) throw BadInput("host", "an address", "none");  // httplib would take every one
    port_ = options.port == 0                                  ? server_.bind_to_any_port(options.host)
            : server_.bind_to_port(options.host, options.port) ? options.port
                                                               : -1;
    if (port_ < 0)
      throw BadInput("host and port", "an address where this program may listen",
                     in_quotes(options.host + ":" + std::to_string(options.port)));
    listen(listening_, SOMAXCONN);  // again: httplib lets 5 clients wait
    thread_ = std::jthread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(milliseconds(1));
  }

  ~Implementation() { close(); }

  int port() const { return port_; }

  void open(ServedModel model, EngineService& service) {
    model_.emplace(std::move(model));
    service_ = &service;
    is_open_ = true;
  }

  void refuse() { is_refusing_ = true; }

  void close() {
    refuse();
    if (!thread_.joinable()) return;
    while (num_served_ > 0) std::this_thread::sleep_for(milliseconds(1));
    server_.stop();
    end_reading(port_);  // of those that have not asked yet
    thread_.join();
  }

 private:
  struct Route {
    const char* method;
    const char* path;
    bool needs_key;
    void (Implementation::*answer)(Exchange&);
  };
  static constexpr int num_routes = 6;
  static const Route routes[num_routes];

  /// What a stream needs until its last event is written.
  struct Streaming {
    TextStream texts;
    ApiResponse answer;
    std::string opening = answer.opening();  // empty once it is written
    Clock::time_point last_write = Clock::now();
  };

  void handle(Exchange exchange) {
    ++num_served_;
    counted_in_ = &num_served_;
    try {
      const Route& route = route_of(exchange);
      if (route.needs_key) check_key(exchange.request);
      (this->*route.answer)(exchange);
    } catch (const ApiError& error) {
      fail(exchange, error);
    } catch (const Unavailable& error) {
      fail(exchange, error_of(error));
    } catch (const BadInput& error) {
      fail(exchange, ApiError(400, error.what()));
    } catch (const std::exception& error) {
      fail(exchange, ApiError(500, error.what()));
    }
  }

  // The body is read even if nobody wants it: a client that is still sending would not read the answer.
  void fail(Exchange& exchange, const ApiError& error) {
    if (exchange.reader != nullptr && !exchange.is_body_read && !exchange.request.is_multipart_form_data())
      read(exchange, nullptr);
    answer_with(error, exchange.response);
  }

  static const Route& route_of(const Exchange& exchange) {
    const std::string& path = exchange.request.path;
    const std::string method = exchange.request.method == "HEAD" ? "GET" : exchange.request.method;
    const Route* other_method = nullptr;
    for (const Route& route : routes) {
      if (path != route.path) continue;
      if (method == route.method) return route;
      other_method = &route;
    }
    if (other_method == nullptr) throw ApiError(404, explanation_of(404));
    exchange.response.set_header("Allow", other_method->method);
    throw ApiError(405, std::string(other_method->path) + " takes " + other_method->method + " alone");
  }

  void check_key(const httplib::Request& request) const {
    if (options_.api_key.empty()) return;
    const std::string found = request.get_header_value("Authorization");
    if (!is_same(found, "Bearer " + options_.api_key))
      throw ApiError(401, found.empty() ? "an API key is needed: Authorization: Bearer <key>" : "the API key is wrong",
                     "", "invalid_api_key");
  }

  enum class Arrival { whole, too_large, broken };

  // What is too large is read on for a while, see fail().
  std::size_t reading_limit() const { return 8 * options_.body_limit; }

  // Reads the body into `body`, if there is one to write to.
  Arrival read(Exchange& exchange, std::string* body) const {
    exchange.is_body_read = true;
    if (std::strtoull(exchange.request.get_header_value("Content-Length").c_str(), nullptr, 10) > reading_limit())
      return Arrival::too_large;  // httplib would read it all, for as long as that takes
    std::size_t num_bytes = 0;
    const auto deadline = Clock::now() + body_patience;
    const bool is_whole = (*exchange.reader)([&](const char* data, std::size_t length) {
      num_bytes += length;
      if (body != nullptr && num_bytes <= options_.body_limit) body->append(data, length);
      return num_bytes < reading_limit() && Clock::now() < deadline;
    });
    if (num_bytes > options_.body_limit || exchange.response.status == 413) return Arrival::too_large;
    return is_whole ? Arrival::whole : Arrival::broken;
  }

  std::string read_json_body(Exchange& exchange) const {
    // Nothing else: what a page of another site can make a browser send without asking is not JSON.
    if (!exchange.request.get_header_value("Content-Type").starts_with(json_type))
      throw ApiError(415, "Content-Type: application/json expected");
    std::string body;
    const Arrival arrival = read(exchange, &body);
    if (arrival == Arrival::too_large)
      throw ApiError(413, "the body is larger than " + std::to_string(options_.body_limit) + " bytes");
    if (arrival == Arrival::broken) throw ApiError(400, "the body did not arrive as its header says");
    return body;
  }

  const ServedModel& model() const {
    if (is_refusing_) throw Unavailable(Unavailable::Reason::closing);
    if (!is_open_) throw ApiError(503, "the model is being loaded", "", "loading");
    return *model_;
  }

  void answer_page(Exchange& exchange) { exchange.response.set_content(chat_page, "text/html; charset=utf-8"); }

  void answer_health(Exchange& exchange) {
    model();
    if (!service_->stats().failure.empty()) throw ApiError(503, "the engine has failed", "", "engine_failed");
    exchange.response.set_content(R"({"status":"ok"})", json_type);
  }

  void answer_models(Exchange& exchange) { exchange.response.set_content(models_json(model(), start_), json_type); }

  void answer_metrics(Exchange& exchange) {
    if (!is_open_) model();
    exchange.response.set_content(metrics_text(service_->stats()), "text/plain; version=0.0.4; charset=utf-8");
  }

  void answer_completions(Exchange& exchange) { generate(Api::completions, exchange); }
  void answer_chat(Exchange& exchange) { generate(Api::chat, exchange); }

  void generate(Api api, Exchange& exchange) {
    const std::string body = read_json_body(exchange);
    const ServedModel& served_model = model();
    ApiRequest request = parse_request(api, body, served_model);
    if (!request.has_seed) request.params.seed = random_number();
    char id[40];
    std::snprintf(id, sizeof id, "%s-%016llx", api == Api::chat ? "chatcmpl" : "cmpl",
                  static_cast<unsigned long long>(random_number()));
    ApiResponse answer(request, id, served_model.name, seconds_since_1970(), served_model.tokenizer);
    TextStream texts = service_->submit(std::move(request.prompt), std::move(request.params), std::move(request.stop));
    if (request.stream)
      stream(exchange, std::move(texts), std::move(answer));
    else
      answer_whole(exchange, std::move(texts), std::move(answer));
  }

  static void answer_whole(Exchange& exchange, TextStream texts, ApiResponse answer) {
    const int socket = connection_of(exchange.request);
    for (;;) {
      const TextStream::News news = texts.wait(glance);
      for (const Piece& piece : news.pieces) answer.add(piece);
      if (news.end == End::complete) break;
      if (news.end != End::none) throw error_of(news.end);
      if (socket >= 0 && is_closed_by_peer(socket)) return;
    }
    exchange.response.set_content(answer.json(texts.num_cached()), json_type);
  }

  void stream(Exchange& exchange, TextStream texts, ApiResponse answer) const {
    const auto streaming = std::make_shared<Streaming>(std::move(texts), std::move(answer));
    const auto write_on = [streaming, heartbeat = options_.heartbeat](std::size_t, httplib::DataSink& sink) {
      if (!sink.is_writable()) return false;  // the client has left, or not read for long: everything is dropped
      std::string events = std::exchange(streaming->opening, {});
      const TextStream::News news = streaming->texts.wait(events.empty() ? glance : milliseconds(0));
      for (const Piece& piece : news.pieces) events += streaming->answer.events_of(piece);
      if (news.end == End::complete)
        events += streaming->answer.closing(streaming->texts.num_cached());
      else if (news.end != End::none)
        events += sse_event(error_json(error_of(news.end)));
      const Clock::time_point now = Clock::now();
      if (events.empty() && heartbeat.count() > 0 && now - streaming->last_write >= heartbeat) events = sign_of_life;
      if (!events.empty()) {
        if (!sink.write(events.data(), events.size())) return false;
        streaming->last_write = now;
      }
      if (news.end != End::none) sink.done();
      return true;
    };
    httplib::Response& response = exchange.response;
    response.set_header("Cache-Control", "no-cache");
    response.set_header("X-Accel-Buffering", "no");  // asks nginx to pass each event on at once
    constexpr const char* type = "text/event-stream";
    if (exchange.request.version == "HTTP/1.0")  // knows no chunks: the connection's end is the stream's
      response.set_content_provider(type, write_on);
    else
      response.set_chunked_content_provider(type, write_on);
  }

  std::uint64_t random_number() {
    const std::lock_guard lock(random_mutex_);
    return random_();
  }

  const HttpOptions options_;
  const std::int64_t start_ = seconds_since_1970();
  int port_ = -1;
  int listening_ = -1;
  std::optional<ServedModel> model_;  // these two are read once is_open_
  EngineService* service_ = nullptr;
  std::atomic<bool> is_open_ = false, is_refusing_ = false;
  std::atomic<int> num_served_ = 0;
  static inline thread_local std::atomic<int>* counted_in_ = nullptr;  // this thread's request, until it is answered
  std::mutex random_mutex_;
  std::mt19937_64 random_{(std::uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()};
  httplib::Server server_;
  std::jthread thread_;  // last: it uses the others
};

const HttpServer::Implementation::Route HttpServer::Implementation::routes[num_routes] = {
    {"GET", "/", false, &Implementation::answer_page},
    {"GET", "/health", false, &Implementation::answer_health},
    {"GET", "/metrics", true, &Implementation::answer_metrics},
    {"GET", "/v1/models", true, &Implementation::answer_models},
    {"POST", "/v1/completions", true, &Implementation::answer_completions},
    {"POST", "/v1/chat/completions", true, &Implementation::answer_chat},
};

HttpServer::HttpServer(const HttpOptions& options) : implementation_(std::make_unique<Implementation>(options)) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return implementation_->port(); }
void HttpServer::open(ServedModel model, EngineService& service) { implementation_->open(std::move(model), service); }
void HttpServer::refuse() { implementation_->refuse(); }
void HttpServer::close() { implementation_->close(); }

}  // namespace engine::server
