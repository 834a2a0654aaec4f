// What other projects' prefill kernels reached on the same batches, from a CSV file, each beside the GEMM of its run.
#pragma once

#include <cstddef>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bench {

struct PrefillPeer {
  std::string name;    // column of the table
  double tflops = 0;   // 0: not measured
  double of_gemm = 0;  // share of the bf16 GEMM in the same run

  /// How many times as fast as this peer a kernel is that reaches such a share of the GEMM in its own run; 0: unknown.
  double times(double share) const { return of_gemm > 0 ? share / of_gemm : 0.; }
};

/// Shares of a GEMM may be compared between runs and, with care, between GPUs.
class PrefillPeers {
 public:
  PrefillPeers() = default;

  /// Comments (#), a header "shape,gemm,<peer>,..", then lines of TFLOP/s, empty where nothing was measured. A peer
  /// whose name ends in "_block16" or "_block128" reads paged K and V, any other contiguous. Throws std::runtime_error
  /// on a line that is none of these.
  explicit PrefillPeers(std::istream& csv) {
    for (std::string line; std::getline(csv, line);) {
      if (line.empty() || line[0] == '#') continue;
      if (names_.empty())
        names_ = cells(line);
      else
        add(line);
    }
  }

  /// The fastest over contiguous K and V.
  PrefillPeer best_contiguous(const std::string& shape) const {
    return best(shape, [](const std::string& name) { return name.find("_block") == std::string::npos; });
  }

  /// The fastest over blocks of 16.
  PrefillPeer best_block16(const std::string& shape) const {
    return best(shape, [](const std::string& name) { return name.ends_with("_block16"); });
  }

  PrefillPeer find(const std::string& shape, const std::string& peer) const {
    return best(shape, [&](const std::string& name) { return name == peer; });
  }

 private:
  static std::vector<std::string> cells(const std::string& line) {
    std::vector<std::string> list;
    std::istringstream rest(line);
    for (std::string cell; std::getline(rest, cell, ',');) list.push_back(cell);
    return list;
  }

  void add(const std::string& line) {
    const std::vector<std::string> values = cells(line);
    try {
      if (values.size() > names_.size()) throw std::out_of_range("more values than names");
      const double gemm = std::stod(values.at(1));
      std::vector<PrefillPeer>& peers = peers_[values.at(0)];
      for (std::size_t i = 2; i < values.size(); ++i) {
        if (values[i].empty()) continue;
        const double tflops = std::stod(values[i]);
        peers.push_back({.name = names_[i], .tflops = tflops, .of_gemm = tflops / gemm});
      }
    } catch (const std::logic_error&) {
      throw std::runtime_error("peers: shape,gemm,<TFLOP/s>,.. expected, \"" + line + "\" given");
    }
  }

  template <class Wanted>
  PrefillPeer best(const std::string& shape, Wanted&& wanted) const {
    PrefillPeer found;
    const auto peers = peers_.find(shape);
    if (peers == peers_.end()) return found;
    for (const PrefillPeer& peer : peers->second)
      if (wanted(peer.name) && peer.tflops > found.tflops) found = peer;
    return found;
  }

  std::vector<std::string> names_;
  std::map<std::string, std::vector<PrefillPeer>> peers_;
};

}  // namespace bench
