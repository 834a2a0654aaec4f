// The prefill benchmark's table: a row per case as it ends, beside the GEMM of the same moment and the best peers.
#pragma once

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "support/prefill_peers.hpp"
#include "support/statistics.hpp"

namespace bench {

struct PrefillRow {
  std::string name;
  double flops = 0;
  double error = 0;                 // relative L2
  Spread call;                      // seconds
  double gemm = 0;                  // FLOP/s of the GEMM measured next to it; 0: none
  double first = 0;                 // FLOP/s of the first row of the same shape
  PrefillPeer contiguous, block16;  // the best peers over contiguous K and V, and over blocks of 16

  double speed() const { return flops / call.median; }
  double of_gemm() const { return gemm > 0 ? speed() / gemm : 0.; }
  double x_first() const { return speed() / first; }

  std::vector<std::pair<std::string, double>> counters() const {
    std::vector<std::pair<std::string, double>> list = {{"us", 1e6 * call.median},  {"p10_us", 1e6 * call.p10},
                                                        {"p90_us", 1e6 * call.p90}, {"TFLOP/s", speed() / 1e12},
                                                        {"x_first", x_first()},     {"error", error}};
    if (gemm > 0) {
      list.emplace_back("gemm_TFLOP/s", gemm / 1e12);
      list.emplace_back("of_gemm_%", 100 * of_gemm());
    }
    for (const auto& [which, peer] : {std::pair("contiguous_peer", contiguous), std::pair("block16_peer", block16)}) {
      if (peer.tflops == 0) continue;
      list.emplace_back(std::string(which) + "_TFLOP/s", peer.tflops);
      if (gemm > 0) list.emplace_back(std::string("x_") + which, peer.times(of_gemm()));
    }
    return list;
  }
};

inline void report_prefill_header() {
  std::printf(
      "GEMM: cuBLASLt's, bf16, 8192 x 8192 x 8192, measured next to each case; x first: of the first row of the same "
      "shape\n"
      "peers: TFLOP/s of the fastest over contiguous K and V and over blocks of 16; x: how many times as fast this is, "
      "each side as a share of the GEMM of its run\n"
      "%-49s %8s %7s %5s %5s %7s  %-19s %5s  %-19s %5s %7s\n",
      "case", "us", "TFLOP/s", "GEMM", "%GEMM", "x first", "contiguous", "x", "blocks of 16", "x", "error");
}

inline void report(const PrefillRow& row) {
  const auto text = [](const char* format, auto... values) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return std::string(buffer);
  };
  const auto peer = [&](const PrefillPeer& p) {
    return p.tflops > 0 ? text("%.0f ", p.tflops) + p.name.substr(0, p.name.find("_block")) : std::string("-");
  };
  const auto times = [&](const PrefillPeer& p) {
    const double x = p.times(row.of_gemm());
    return x > 0 ? text("%.2f", x) : std::string("-");
  };
  std::printf("%-49s %8.1f %7.1f %5.0f %5.1f %7.3f  %-19s %5s  %-19s %5s %7.1e\n", row.name.c_str(),
              1e6 * row.call.median, row.speed() / 1e12, row.gemm / 1e12, 100 * row.of_gemm(), row.x_first(),
              peer(row.contiguous).c_str(), times(row.contiguous).c_str(), peer(row.block16).c_str(),
              times(row.block16).c_str(), row.error);
  std::fflush(stdout);
}

}  // namespace bench
