// Connections as the kernel knows them: httplib keeps its sockets to itself, and looks at them only when it writes.
#pragma once

#include <string>
#include <string_view>

namespace engine::server {

/// The socket of this process from `local_port` to the peer's port and numeric address; -1 if there is none.
int find_connection(int local_port, const std::string& peer_address, int peer_port);

/// The peer has closed its side: it asks for nothing more, and most likely nobody will read the answer.
bool is_closed_by_peer(int socket);

/// Sends what fits without waiting, if anybody is still there.
void send_last_words(int socket, std::string_view text);

/// Whoever reads from a connection to `local_port` finds its end.
void end_reading(int local_port);

}  // namespace engine::server
