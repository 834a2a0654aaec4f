// The GPU's memory: its size from the driver, its speed from a kernel that does nothing but read.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/cuda/device_memory.hpp"
#include "engine/machine.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"

namespace engine {

namespace {

constexpr int threads = 256, ctas_per_sm = 8, words_at_once = 8;

// The grid takes pieces of threads * words_at_once words in turn; `sum` is written so that the reading is not left out.
__global__ void words_read_kernel(const uint4* words, std::int64_t num_pieces, unsigned* sum) {
  unsigned total = 0;
  for (std::int64_t piece = blockIdx.x; piece < num_pieces; piece += gridDim.x) {
    const uint4* const first = words + piece * threads * words_at_once + threadIdx.x;
    uint4 loaded[words_at_once];
#pragma unroll
    for (int i = 0; i < words_at_once; ++i) loaded[i] = first[i * threads];
#pragma unroll
    for (int i = 0; i < words_at_once; ++i) total += loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
  }
  if (total == 0x12345678u) *sum = total;
}

class Event {
 public:
  Event() { pagedkv::cuda::check(cudaEventCreate(&event_), "event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  void record() const { pagedkv::cuda::check(cudaEventRecord(event_), "event"); }
  double seconds_since(const Event& start) const {
    float milliseconds = 0;
    pagedkv::cuda::check(cudaEventSynchronize(event_), "event");
    pagedkv::cuda::check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "event");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::optional<MachineMemory> gpu_memory() {
  int num_gpus = 0;
  cudaFuncAttributes attributes{};
  const bool is_usable = cudaGetDeviceCount(&num_gpus) == cudaSuccess && num_gpus > 0 &&
                         cudaFuncGetAttributes(&attributes, words_read_kernel) == cudaSuccess;
  static_cast<void>(cudaGetLastError());  // a no is an answer, not an error that a later call should report
  if (!is_usable) return std::nullopt;
  return MachineMemory{
      .is_gpu = true, .bytes = static_cast<std::int64_t>(device_memory().free), .host_bytes = host_memory().bytes};
}

double gpu_read_speed() {
  constexpr std::int64_t piece_bytes = std::int64_t{threads} * words_at_once * sizeof(uint4);
  constexpr int num_passes = 7;
  const auto room = static_cast<std::int64_t>(device_memory().free / 2);
  const std::int64_t num_pieces = std::min(std::int64_t{4} << 30, room) / piece_bytes;
  const auto bytes = static_cast<std::size_t>(num_pieces * piece_bytes);
  const pagedkv::cuda::DeviceArray<uint4> words(bytes / sizeof(uint4));
  const pagedkv::cuda::DeviceArray<unsigned> sum(1);
  const int num_ctas = pagedkv::cuda::this_device().num_sms * ctas_per_sm;
  const Event start, end;
  double least = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    start.record();
    words_read_kernel<<<static_cast<unsigned>(num_ctas), threads>>>(words.data(), num_pieces, sum.data());
    pagedkv::cuda::check(cudaGetLastError(), "read speed");
    end.record();
    const double seconds = end.seconds_since(start);
    least = pass == 0 ? seconds : std::min(least, seconds);
  }
  return static_cast<double>(bytes) / least;
}

}  // namespace engine
