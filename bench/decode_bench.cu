// Decode attention on the GPU: bytes of K and V per second, each counted once, against the rate at which the same GPU can
// only read memory.
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/workspace.cuh"

namespace {

using namespace pagedkv;
using cuda::check;

constexpr int block_size = 16, kv_heads = 8, group_size = 4, head_dim = 128, q_heads = kv_heads * group_size;
constexpr std::int64_t rotation_bytes = std::int64_t{512} << 20;  // several times any L2: what is read is cold

/// Values in [-1, 1]: zeros draw less power and run faster than data do.
__global__ void fill_kernel(bf16* data, std::int64_t size) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    const auto hash = static_cast<std::uint32_t>(i) * 2654435761u;
    data[i] = from_float<bf16>(static_cast<float>(hash >> 8) * 0x1p-23f - 1.f);
  }
}

__global__ void read_kernel(const uint4* data, std::int64_t size, unsigned* never) {
  unsigned sum = 0;
#pragma unroll 8
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    const uint4 x = data[i];
    sum ^= x.x ^ x.y ^ x.z ^ x.w;
  }
  if (sum == 0x12345678u) *never = sum;
}

/// Whatever `enqueue` puts on a stream, captured once and replayed.
class Graph {
 public:
  template <class Enqueue>
  explicit Graph(Enqueue&& enqueue) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    check(cudaEventCreate(&start_), "event");
    check(cudaEventCreate(&stop_), "event");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    enqueue(stream_);
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "instantiate");
    check(cudaGraphDestroy(graph), "graph");
  }
  ~Graph() {
    static_cast<void>(cudaGraphExecDestroy(graph_));
    static_cast<void>(cudaEventDestroy(start_));
    static_cast<void>(cudaEventDestroy(stop_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  double seconds() {
    float milliseconds = 0;
    check(cudaEventRecord(start_, stream_), "replay");
    check(cudaGraphLaunch(graph_, stream_), "replay");
    check(cudaEventRecord(stop_, stream_), "replay");
    check(cudaEventSynchronize(stop_), "replay");
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "replay");
    return milliseconds / 1e3;
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

/// Bytes per second of reading 2 GiB, the median of 9; measured once.
double read_rate() {
  static const double rate = [] {
    const cuda::DeviceArray<uint4> data((std::size_t{2} << 30) / sizeof(uint4));
    const cuda::DeviceArray<unsigned> never(1);
    const int num_ctas = 8 * cuda::this_device().num_sms;
    Graph graph([&](cudaStream_t stream) {
      read_kernel<<<num_ctas, 256, 0, stream>>>(data.data(), static_cast<std::int64_t>(data.size()), never.data());
    });
    std::vector<double> seconds(9);
    for (double& s : seconds) s = graph.seconds();
    std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
    return static_cast<double>(data.size_bytes()) / seconds[4];
  }();
  return rate;
}

template <class T>
cuda::DeviceArray<T> to_device(const std::vector<T>& elements) {
  cuda::DeviceArray<T> copy(elements.size());
  check(cudaMemcpy(copy.data(), elements.data(), copy.size_bytes(), cudaMemcpyHostToDevice), "to_device");
  return copy;
}

void decode(benchmark::State& state) {
  if (int num_gpus = 0; cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0)
    return state.SkipWithError("no GPU");
  const auto num_seqs = static_cast<int>(state.range(0)), kv_len = static_cast<int>(state.range(1));
  const int blocks_per_seq = kv_len / block_size;
  const std::int64_t call_bytes = std::int64_t{num_seqs} * kv_len * kv_heads * head_dim * 2 * 2;
  const int num_layers = static_cast<int>(std::max<std::int64_t>(1, rotation_bytes / call_bytes));
  cuda::KvPool<bf16> pool({.num_layers = num_layers,
                           .num_blocks = num_seqs * blocks_per_seq,
                           .kv_heads = kv_heads,
                           .block_size = block_size,
                           .head_dim = head_dim});
  bf16* const elements = pool.layers().first.k.data;
  fill_kernel<<<1024, 256>>>(elements, static_cast<std::int64_t>(pool.size_bytes() / sizeof(bf16)));
  check(cudaDeviceSynchronize(), "fill");

  std::vector<std::int32_t> block_ids(static_cast<std::size_t>(num_seqs * blocks_per_seq)), query_begin;
  std::iota(block_ids.begin(), block_ids.end(), 0);
  std::shuffle(block_ids.begin(), block_ids.end(), std::mt19937(1));
  for (int s = 0; s <= num_seqs; ++s) query_begin.push_back(s);
  const std::vector<std::int32_t> kv_lens(static_cast<std::size_t>(num_seqs), kv_len);
  cuda::Workspace workspace(
      {.max_seqs = num_seqs, .max_blocks_per_seq = blocks_per_seq, .max_partials = 1 << 17, .head_dim_v = head_dim});
  const auto tables = workspace.upload({.block_ids = dense_view(block_ids.data(), {num_seqs, blocks_per_seq}),
                                        .kv_len = dense_view(kv_lens.data(), {num_seqs}),
                                        .query_begin = dense_view(query_begin.data(), {num_seqs + 1}),
                                        .max_q_len = 1,
                                        .max_kv_len = kv_len},
                                       nullptr);
  const auto q =
      to_device(std::vector<bf16>(static_cast<std::size_t>(num_seqs * q_heads * head_dim), from_float<bf16>(.5f)));
  const cuda::DeviceArray<bf16> out(q.size());
  check(cudaDeviceSynchronize(), "upload");

  Graph graph([&](cudaStream_t stream) {
    for (int layer = 0; layer < num_layers; ++layer) {
      const AttentionProblem<Space::device, bf16> problem{
          .q = dense_view<Space::device>(static_cast<const bf16*>(q.data()), {num_seqs, q_heads, head_dim}),
          .kv = pool.layer(layer),
          .tables = tables,
          .out = dense_view<Space::device>(out.data(), {num_seqs, q_heads, head_dim}),
          .lse = {},
          .scale = 1 / std::sqrt(static_cast<float>(head_dim))};
      cuda::decode<head_dim>(problem, Causal{}, workspace, stream);
    }
  });
  for (int i = 0; i < 3; ++i) graph.seconds();
  double total = 0;
  for (auto _ : state) {
    const double seconds = graph.seconds() / num_layers;
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const double rate = static_cast<double>(call_bytes) * static_cast<double>(state.iterations()) / total;
  state.counters["GB/s"] = rate / 1e9;
  state.counters["reading_GB/s"] = read_rate() / 1e9;
  state.counters["of_reading_%"] = 100 * rate / read_rate();
}
BENCHMARK(decode)
    ->ArgNames({"num_seqs", "kv_len"})
    ->Args({1, 1024})
    ->Args({1, 8192})
    ->Args({1, 65536})
    ->Args({16, 1024})
    ->Args({16, 8192})
    ->Args({64, 1024})
    ->Args({64, 8192})
    ->Args({256, 1024})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(30);

}  // namespace
