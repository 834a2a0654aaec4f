// The decode benchmarks' table: a row per case as it ends, beside the floor, the ceiling and what the best peer took.
#pragma once

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "support/peers.hpp"
#include "support/statistics.hpp"

namespace bench {

struct DecodeRow {
  std::string name;
  std::string kernel;  // what explain() says; begins with the kernel's name
  double bytes = 0;    // of K and V, once
  double error = 0;    // relative L2
  double ceiling = 0;  // bytes a second of one long read
  Spread floor, call;  // seconds: of only reading the bytes, of the call
  const Peer* peer = nullptr;

  double floors() const { return call.median / floor.median; }

  std::vector<std::pair<std::string, double>> counters() const {
    std::vector<std::pair<std::string, double>> list = {{"us", 1e6 * call.median},
                                                        {"p10_us", 1e6 * call.p10},
                                                        {"p90_us", 1e6 * call.p90},
                                                        {"kv_MB", bytes / 1e6},
                                                        {"GB/s", bytes / call.median / 1e9},
                                                        {"of_ceiling_%", 100 * bytes / call.median / ceiling},
                                                        {"ceiling_GB/s", ceiling / 1e9},
                                                        {"floor_us", 1e6 * floor.median},
                                                        {"x_floor", floors()},
                                                        {"error", error}};
    if (peer != nullptr) {
      list.emplace_back("peer_us", peer->us);
      list.emplace_back("x_floor_limit", Peers::limit(*peer));
      list.emplace_back("x_floor_goal", Peers::goal(*peer, bytes));
    }
    return list;
  }

  /// Against the peer: "goal" is reached, "limit" is kept, or "over"; "" where there is no peer.
  const char* verdict() const {
    if (peer == nullptr) return "";
    if (floors() <= Peers::goal(*peer, bytes)) return "goal";
    return floors() <= Peers::limit(*peer) ? "limit" : "OVER";
  }
};

/// What is known of the peers; empty until read_peers().
inline Peers& peers() {
  static Peers known;
  return known;
}

/// Leaves peers() empty, and says so, where there is no such file.
inline void read_peers(const std::string& path) {
  if (std::ifstream file{path}; file)
    peers() = Peers(file);
  else
    std::printf("no peers: cannot read %s\n", path.c_str());
}

inline bool& any_case_failed() {
  static bool failed = false;
  return failed;
}

inline void report_header() {
  std::printf(
      "x floor: time as a multiple of the floor, a kernel that only reads the same bytes of K and V, cold, in this "
      "run\n"
      "limit: the most floors that are no worse than 1.02 x the best paged peer; goal: 1.2 x better below 64 MB\n"
      "%-52s %9s %19s %7s %6s %9s %8s %6s %6s       %s\n",
      "case", "us", "p10 - p90", "GB/s", "ceil%", "floor us", "x floor", "limit", "goal", "kernel");
}

inline void report_failure(const std::string& name, const std::string& why) {
  any_case_failed() = true;
  std::printf("%-52s FAILED: %s\n", name.c_str(), why.c_str());
  std::fflush(stdout);
}

inline void report(const DecodeRow& row) {
  if (row.call.median == 0)
    return report_failure(row.name, "wrong result, relative L2 error " + std::to_string(row.error));
  static bool ceiling_told = false;
  if (!std::exchange(ceiling_told, true)) std::printf("ceiling, one read of 8 GiB: %.0f GB/s\n", row.ceiling / 1e9);
  char bounds[32] = "";
  if (row.peer != nullptr)
    std::snprintf(bounds, sizeof bounds, "%6.3f %6.3f", Peers::limit(*row.peer), Peers::goal(*row.peer, row.bytes));
  std::printf("%-52s %9.2f %9.2f-%9.2f %7.0f %6.1f %9.2f %8.3f %13s %-5s %s\n", row.name.c_str(), 1e6 * row.call.median,
              1e6 * row.call.p10, 1e6 * row.call.p90, row.bytes / row.call.median / 1e9,
              100 * row.bytes / row.call.median / row.ceiling, 1e6 * row.floor.median, row.floors(), bounds,
              row.verdict(), row.kernel.substr(0, row.kernel.find(' ')).c_str());
  std::fflush(stdout);
}

}  // namespace bench
