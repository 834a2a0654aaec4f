// Seconds of a call that finds nothing in L2, and the rate at which this GPU can only read: the ladder's two measures.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"

namespace ladder {

/// Several times any L2: a call that comes back to a set of keys after so many bytes finds them cold.
inline constexpr std::int64_t rotation_bytes = std::int64_t{512} << 20;

/// Seconds of one of `num_calls` calls: enqueue(stream) puts them all on a stream, and the graph of it is replayed for
/// about a third of a second. The median.
template <class Enqueue>
double seconds_per_call(int num_calls, Enqueue&& enqueue) {
  using cuda::check;
  const Stream stream;
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  const Graph graph(stream, [&] { enqueue(static_cast<cudaStream_t>(stream)); });
  const auto replay = [&] {
    float milliseconds = 0.f;
    check(cudaEventRecord(begin, stream), "event");
    graph.replay(stream);
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "replay");
    check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    return milliseconds / 1e3;
  };
  const int num_replays = std::clamp(static_cast<int>(0.3 / replay()), 2, 100);  // after the first, which warms up
  std::vector<double> seconds;
  for (int i = 0; i < num_replays; ++i) seconds.push_back(replay());
  std::ranges::sort(seconds);
  check(cudaEventDestroy(begin), "event");
  check(cudaEventDestroy(end), "event");
  return seconds[seconds.size() / 2] / num_calls;
}

static __global__ void read_kernel(const uint4* data, std::int64_t size, unsigned* never) {
  unsigned sum = 0;
#pragma unroll 8
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    const uint4 x = data[i];
    sum ^= x.x ^ x.y ^ x.z ^ x.w;
  }
  if (sum == 0x12345678u) *never = sum;
}

/// Bytes a second of a kernel that reads 2 GiB and does nothing with them.
inline double read_rate() {
  const cuda::DeviceArray<uint4> data((std::size_t{2} << 30) / sizeof(uint4));
  const cuda::DeviceArray<unsigned> never(1);
  const auto num_ctas = static_cast<unsigned>(8 * cuda::this_device().num_sms);
  const double seconds = seconds_per_call(1, [&](cudaStream_t stream) {
    read_kernel<<<num_ctas, 256, 0, stream>>>(data.data(), static_cast<std::int64_t>(data.size()), never.data());
  });
  return static_cast<double>(data.size_bytes()) / seconds;
}

}  // namespace ladder
