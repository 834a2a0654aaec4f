// main() of the decode benchmarks: which GPU, which peers, the table instead of Google Benchmark's own.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "support/bound.hpp"
#include "support/decode_case.cuh"
#include "support/decode_report.hpp"

namespace bench {

/// Makes a benchmark of the case.
template <int HeadDim, class Element>
void add_case(const DecodeCase& c) {
  benchmark::RegisterBenchmark(c.name(HeadDim, element_name<Element>).c_str(),
                               [c](benchmark::State& state) { run_decode_case<HeadDim, Element>(state, c); })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(1);  // one iteration is the median of all replays
}

namespace detail {

class NoReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>&) override {}
};

/// Puts driver, power and clocks at the start into what --benchmark_out keeps, where nvidia-smi can tell.
inline void add_gpu_state() {
  constexpr const char* fields[] = {"driver_version", "power.limit", "clocks.max.sm",  "clocks.max.memory",
                                    "clocks.sm",      "power.draw",  "temperature.gpu"};
  for (const char* const field : fields) {
    const std::string command =
        std::string("nvidia-smi -i 0 --format=csv,noheader --query-gpu=") + field + " 2>/dev/null";
    std::FILE* const answer = popen(command.c_str(), "r");
    if (answer == nullptr) return;
    char line[128] = "";
    const bool answered = std::fgets(line, sizeof line, answer) != nullptr;
    if (pclose(answer) != 0 || !answered) return;
    const std::string text = line;
    benchmark::AddCustomContext(field, text.substr(0, text.find('\n')));
  }
}

}  // namespace detail

/// Takes Google Benchmark's flags and --peers=FILE, by default h200_decode.csv in `peers_folder`.
inline int decode_main(int argc, char** argv, const std::string& peers_folder, void (*add_cases)()) {
  std::string peers_file = peers_folder + "/h200_decode.csv";
  std::vector<char*> arguments;
  bool lists_only = false;
  for (char* argument : std::vector<char*>(argv, argv + argc)) {
    constexpr std::string_view flag = "--peers=";
    lists_only |= std::string_view(argument).starts_with("--benchmark_list_tests");
    if (std::string_view(argument).starts_with(flag))
      peers_file = argument + flag.size();
    else
      arguments.push_back(argument);
  }
  int num_arguments = static_cast<int>(arguments.size());
  benchmark::Initialize(&num_arguments, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(num_arguments, arguments.data())) return 2;
  add_cases();
  detail::NoReporter none;
  if (lists_only) return benchmark::RunSpecifiedBenchmarks(&none) == 0;

  cudaDeviceProp gpu;
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) {
    std::printf("no GPU: nothing to measure\n");
    return 0;
  }
  benchmark::AddCustomContext("gpu", gpu.name);
  detail::add_gpu_state();
  read_peers(peers_file);
  std::printf("%s, %d SMs\n", gpu.name, gpu.multiProcessorCount);
  report_header();
  const double begin = seconds_now();
  const std::size_t num_cases = benchmark::RunSpecifiedBenchmarks(&none);
  std::printf("%zu cases in %.1f s\n", num_cases, seconds_now() - begin);
  return num_cases == 0 || any_case_failed() ? 1 : 0;
}

}  // namespace bench
