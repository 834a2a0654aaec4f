// Finding sockets by their ports.
#include "engine/server/connection.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <system_error>

namespace engine::server {

namespace {

int port_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return -1;
}

std::string address_of(const sockaddr_storage& peer) {
  char text[NI_MAXHOST];
  const bool is_known = getnameinfo(reinterpret_cast<const sockaddr*>(&peer), sizeof peer, text, sizeof text, nullptr,
                                    0, NI_NUMERICHOST) == 0;
  return is_known ? text : "";
}

/// Calls `see(socket, peer)` for every connection to `local_port`.
template <class See>
void for_each_connection(int local_port, See&& see) {
  std::error_code none;
  for (const auto& open_file : std::filesystem::directory_iterator("/dev/fd", none)) {
    const std::string name = open_file.path().filename().string();
    int socket = -1;
    std::from_chars(name.data(), name.data() + name.size(), socket);
    sockaddr_storage peer{}, local{};
    socklen_t peer_len = sizeof peer, local_len = sizeof local;
    if (getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &peer_len) == 0 &&
        getsockname(socket, reinterpret_cast<sockaddr*>(&local), &local_len) == 0 && port_of(local) == local_port)
      see(socket, peer);
  }
}

}  // namespace

int find_connection(int local_port, const std::string& peer_address, int peer_port) {
  int found = -1;
  for_each_connection(local_port, [&](int socket, const sockaddr_storage& peer) {
    if (port_of(peer) == peer_port && address_of(peer) == peer_address) found = socket;  // hosts share port numbers
  });
  return found;
}

bool is_closed_by_peer(int socket) {
  char byte = 0;
  const ssize_t num_bytes = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return num_bytes == 0 || (num_bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void send_last_words(int socket, std::string_view text) {
  if (send(socket, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;  // nobody is
}

void end_reading(int local_port) {
  for_each_connection(local_port, [](int socket, const sockaddr_storage&) { shutdown(socket, SHUT_RD); });
}

}  // namespace engine::server
