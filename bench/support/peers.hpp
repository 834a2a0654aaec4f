// What the best paged decode kernels of other projects took, from a CSV file, and the limit that follows for ours.
#pragma once

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace bench {

struct Peer {
  double floor_us = 0;  // a kernel that only read the same bytes, in the peer's run
  double us = 0;
  std::string name;

  double floors() const { return us / floor_us; }
};

/// Times in floors may be compared between runs and, with care, between GPUs: the floor of each was measured beside it.
class Peers {
 public:
  static constexpr double tolerance = 1.02;  // of `limit`
  static constexpr double gain = 1.2;        // what `goal` asks for beyond the limit, of calls below small_bytes
  static constexpr double small_bytes = 64e6;

  Peers() = default;

  /// Lines "q_heads,kv_heads,lengths,kv_mb,floor_us,best_peer_us,peer,...", comments (#) and a header. Throws
  /// std::runtime_error on a line that is none of these.
  explicit Peers(std::istream& csv) {
    bool header = true;
    for (std::string line; std::getline(csv, line);) {
      if (line.empty() || line[0] == '#') continue;
      if (!std::exchange(header, false)) add(line);
    }
  }

  /// Null where no peer was measured.
  const Peer* find(int q_heads, int kv_heads, const std::string& lengths) const {
    const auto found = peers_.find({q_heads, kv_heads, lengths});
    return found == peers_.end() ? nullptr : &found->second;
  }

  /// The most floors that a call may take: no slower than the best peer.
  static double limit(const Peer& peer) { return tolerance * peer.floors(); }

  /// The most floors that are wished for: small calls have room below the peers.
  static double goal(const Peer& peer, double call_bytes) {
    return limit(peer) / (call_bytes < small_bytes ? gain : 1.);
  }

 private:
  void add(const std::string& line) {
    std::vector<std::string> cells;
    std::istringstream rest(line);
    for (std::string cell; std::getline(rest, cell, ',');) cells.push_back(cell);
    try {
      peers_[{std::stoi(cells.at(0)), std::stoi(cells.at(1)), cells.at(2)}] = {
          .floor_us = std::stod(cells.at(4)), .us = std::stod(cells.at(5)), .name = cells.at(6)};
    } catch (const std::logic_error&) {
      throw std::runtime_error("peers: q_heads,kv_heads,lengths,kv_mb,floor_us,best_peer_us,peer expected, \"" + line +
                               "\" given");
    }
  }

  std::map<std::tuple<int, int, std::string>, Peer> peers_;
};

}  // namespace bench
