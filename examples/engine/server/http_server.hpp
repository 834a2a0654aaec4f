// HttpServer: OpenAI's completions and chat completions over HTTP, in front of an EngineService.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "engine/server/api_request.hpp"
#include "engine/service.hpp"

namespace engine::server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                                // 0: any that is free
  std::string api_key = {};                       // not empty: what clients must show, except for / and /health
  std::size_t body_limit = std::size_t{4} << 20;  // bytes
  int max_connections = 320;                      // a thread each, while they last; more clients wait unanswered
  std::chrono::milliseconds heartbeat{15'000};    // of silent streams, which proxies would cut; 0: none
};

/// Listens from its constructor on, and answers 503 until it has something to serve. One request a connection: who asks
/// again connects again, which costs a round trip; but no thread is held by an idle client (httplib would wake it 90
/// times a second), and what follows a broken request is never taken for another one.
class HttpServer {
 public:
  /// Throws BadInput if nobody can listen there.
  explicit HttpServer(const HttpOptions& options);
  /// close().
  ~HttpServer();

  int port() const;

  /// From now on requests are served. `service` outlives close().
  void open(ServedModel model, EngineService& service);

  /// From now on requests are refused (503); those that came before are served on.
  void refuse();

  /// refuse(), waits until the requests that are being served are answered (which needs their service to go on, or to
  /// be closed), and stops listening.
  void close();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace engine::server
