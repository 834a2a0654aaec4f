// A client of plain sockets: it can send what no library would, stop in the middle, and go away.
#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace engine_test {

struct HttpAnswer {
  int status = 0;    // 0: no answer came
  std::string head;  // status line and headers
  std::string body;  // without chunks' framing
  nlohmann::json json() const { return nlohmann::json::parse(body); }
};

class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) { connect_to(port); }

  /// Connects from the same port as `twin`, but from another address.
  RawClient(int port, const RawClient& twin) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in own{};
    socklen_t length = sizeof own;
    getsockname(twin.socket_, reinterpret_cast<sockaddr*>(&own), &length);
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
    if (bind(socket_, reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0)
      throw std::runtime_error("the port is taken");
    connect_to(port);
  }
  ~RawClient() { close(socket_); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  /// As much as the server takes; false: not all.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t num_sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (num_sent <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(num_sent));
    }
    return true;
  }
  void close_sending() { shutdown(socket_, SHUT_WR); }

  /// Waits until `text` came; false if the connection ended before.
  bool read_until(std::string_view text) {
    while (received_.find(text) == std::string::npos)
      if (!receive()) return false;
    return true;
  }

  HttpAnswer read_all() {
    while (receive()) {
    }
    HttpAnswer answer;
    const std::size_t end = received_.find("\r\n\r\n");
    if (!received_.starts_with("HTTP/1.1 ") || end == std::string::npos) return answer;
    answer.status = std::stoi(received_.substr(9, 3));
    answer.head = received_.substr(0, end);
    answer.body = received_.substr(end + 4);
    if (answer.head.find("Transfer-Encoding: chunked") != std::string::npos) answer.body = joined(answer.body);
    return answer;
  }

 private:
  void connect_to(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      throw std::runtime_error("nobody listens");
  }

  bool receive() {
    char buffer[4096];
    const ssize_t num_bytes = recv(socket_, buffer, sizeof buffer, 0);
    if (num_bytes <= 0) return false;
    received_.append(buffer, static_cast<std::size_t>(num_bytes));
    return true;
  }

  static std::string joined(std::string_view chunks) {
    std::string text;
    while (!chunks.empty()) {
      const std::size_t length = std::stoul(std::string(chunks.substr(0, chunks.find("\r\n"))), nullptr, 16);
      if (length == 0) break;
      chunks.remove_prefix(chunks.find("\r\n") + 2);
      text += chunks.substr(0, length);
      chunks.remove_prefix(length + 2);
    }
    return text;
  }

  int socket_;
  std::string received_;
};

inline std::string http_request(const std::string& method, const std::string& path, const std::string& body = "",
                                const std::string& headers = "Content-Type: application/json\r\n") {
  std::string text = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers;
  if (!body.empty() || method == "POST") text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  return text + "\r\n" + body;
}

inline HttpAnswer ask(int port, const std::string& request) {
  RawClient client(port);
  client.send(request);
  return client.read_all();
}

}  // namespace engine_test
