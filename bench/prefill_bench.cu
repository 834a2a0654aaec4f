// Prefill on the GPU, bf16: TFLOP/s of bursts of calls on rotating Q, K and V, against a matrix product by cuBLASLt in
// the same run and against other projects' best kernels. Choose cases with --benchmark_filter: of a group '^chunked/',
// of a shape '/d128/causal/32_8/4x4096/', of some blocks '/block16/'.
//   --sustained[=S]    S seconds of calls back to back (by default 1.2) in place of bursts of 24
//   --cublaslt=FILE    by default the system's libcublasLt; PyTorch brings one
//   --peers=FILE       by default peers/h200_prefill.csv
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "support/bound.hpp"
#include "support/decode_main.cuh"
#include "support/prefill_case.cuh"
#include "support/prefill_report.hpp"
#include "support/prefill_shapes.hpp"

namespace {

using namespace bench;

void run_case(benchmark::State& state, const PrefillCase& c) {
  switch (c.shape.head_dim) {
    case 64:
      return run_prefill_case<64>(state, c);
    case 128:
      return run_prefill_case<128>(state, c);
    default:
      return run_prefill_case<256>(state, c);
  }
}

/// Takes what is not Google Benchmark's out of the arguments.
std::vector<char*> own_arguments(const std::vector<char*>& arguments, std::string& peers_file) {
  std::vector<char*> others;
  for (char* const argument : arguments) {
    const std::string_view text = argument;
    const auto value_of = [&](std::string_view flag) { return std::string(text.substr(flag.size())); };
    if (text.starts_with("--peers="))
      peers_file = value_of("--peers=");
    else if (text.starts_with("--cublaslt="))
      PrefillRun::instance().cublaslt = value_of("--cublaslt=");
    else if (text == "--sustained")
      PrefillRun::instance().sustained_s = 1.2;
    else if (text.starts_with("--sustained="))
      PrefillRun::instance().sustained_s = std::stod(value_of("--sustained="));
    else
      others.push_back(argument);
  }
  return others;
}

}  // namespace

int main(int argc, char** argv) {
  std::string peers_file = PAGEDKV_BENCH_PEERS "/h200_prefill.csv";
  std::vector<char*> arguments = own_arguments(std::vector<char*>(argv, argv + argc), peers_file);
  bool lists_only = false;
  for (const std::string_view argument : arguments) lists_only |= argument.starts_with("--benchmark_list_tests");
  int num_arguments = static_cast<int>(arguments.size());
  benchmark::Initialize(&num_arguments, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(num_arguments, arguments.data())) return 2;
  for (const PrefillCase& c : prefill_cases())
    benchmark::RegisterBenchmark(c.name().c_str(), [c](benchmark::State& state) { run_case(state, c); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(1);  // one iteration is the median of all calls
  bench::detail::NoReporter none;
  if (lists_only) return benchmark::RunSpecifiedBenchmarks(&none) == 0;

  cudaDeviceProp gpu;
  if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) {
    std::printf("no GPU: nothing to measure\n");
    return 0;
  }
  const double sustained_s = PrefillRun::instance().sustained_s;
  benchmark::AddCustomContext("gpu", gpu.name);
  benchmark::AddCustomContext("calls", sustained_s > 0 ? std::to_string(sustained_s) + " s back to back"
                                                       : "bursts of " + std::to_string(Burst::calls));
  bench::detail::add_gpu_state();
  if (std::ifstream csv{peers_file}; csv)
    PrefillRun::instance().peers = PrefillPeers(csv);
  else
    std::printf("no peers: cannot read %s\n", peers_file.c_str());
  std::printf("%s, %d SMs\n", gpu.name, gpu.multiProcessorCount);
  report_prefill_header();
  const double begin = seconds_now();
  const std::size_t num_cases = benchmark::RunSpecifiedBenchmarks(&none);
  std::printf("%zu cases in %.1f s\n", num_cases, seconds_now() - begin);
  return num_cases == 0 || PrefillRun::instance().any_case_failed ? 1 : 0;
}
