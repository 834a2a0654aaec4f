// The bounds of decode, measured in the same run: how fast this GPU reads, at most, and how long one kernel takes that
// only reads as many bytes as a call has K and V.
//
//   grid     fills the GPU, or less for few bytes; several shapes are tried for each size and the fastest counts
//   warp     takes chunks of 4 KiB, like a head of a block of 16 keys: number from a table, then 8 x 32 x 16 bytes
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/ptx/cp_async.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "support/graph.cuh"
#include "support/kv_memory.cuh"
#include "support/lengths.hpp"
#include "support/statistics.hpp"

namespace bench {

/// What one kernel reads: the chunks that a table names.
struct ChunkRead {
  static constexpr int chunk_bytes = 4096, lanes = 32;
  static constexpr int chunk_words = chunk_bytes / sizeof(uint4), rows = chunk_words / lanes;  // a row: one word a lane

  const uint4* data;           // [.., chunk_words]
  const std::int32_t* chunks;  // [num_chunks]
  int num_chunks;
  unsigned* sum;   // of all words read
  bool wants_sum;  // otherwise the sum only keeps the loads alive
};

namespace detail {

__device__ inline unsigned word_sum(uint4 x) { return x.x + x.y + x.z + x.w; }

__device__ inline void finish(const ChunkRead& read, unsigned sum) {
  if (read.wants_sum)
    atomicAdd(read.sum, sum);
  else if (sum == 0x12345678u)  // next to never
    *read.sum = sum;
}

/// A warp loads `Rows` rows at once, into registers.
template <int Rows>
__global__ void chunk_load_kernel(ChunkRead read) {
  pagedkv::ptx::launch_dependents();
  pagedkv::ptx::wait_for_previous_kernel();
  constexpr int pieces = ChunkRead::rows / Rows;  // of a chunk
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), lane = thread % ChunkRead::lanes;
  const int stride = static_cast<int>(gridDim.x * blockDim.x) / ChunkRead::lanes, end = read.num_chunks * pieces;
  int piece = thread / ChunkRead::lanes;
  std::int64_t next = piece < end ? read.chunks[piece / pieces] : 0;
  unsigned sum = 0;
  for (; piece < end; piece += stride) {
    const uint4* const words = read.data + next * ChunkRead::chunk_words + piece % pieces * Rows * ChunkRead::lanes;
    if (piece + stride < end) next = read.chunks[(piece + stride) / pieces];
    uint4 loaded[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) loaded[r] = words[r * ChunkRead::lanes + lane];
#pragma unroll
    for (int r = 0; r < Rows; ++r) sum += word_sum(loaded[r]);
  }
  finish(read, sum);
}

/// A warp keeps a ring of `Stages` chunks in shared memory filled; every lane reads back what it copied itself.
template <int Stages>
__global__ void chunk_stream_kernel(ChunkRead read) {
  pagedkv::ptx::launch_dependents();
  pagedkv::ptx::wait_for_previous_kernel();
  extern __shared__ uint4 rings[];  // [warps, Stages, chunk_words]
  const int lane = static_cast<int>(threadIdx.x) % ChunkRead::lanes;
  uint4* const ring = rings + threadIdx.x / ChunkRead::lanes * Stages * ChunkRead::chunk_words + lane;
  const int stride = static_cast<int>(gridDim.x * blockDim.x) / ChunkRead::lanes;
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / ChunkRead::lanes;
  int ahead = first;
  std::int64_t next = ahead < read.num_chunks ? read.chunks[ahead] : 0;
  const auto copy_into = [&](int stage) {
    if (ahead < read.num_chunks) {
      const uint4* const words = read.data + next * ChunkRead::chunk_words + lane;
      ahead += stride;
      if (ahead < read.num_chunks) next = read.chunks[ahead];
#pragma unroll
      for (int r = 0; r < ChunkRead::rows; ++r)
        pagedkv::ptx::cp_async_16(ring + stage * ChunkRead::chunk_words + r * ChunkRead::lanes,
                                  words + r * ChunkRead::lanes, true);
    }
    pagedkv::ptx::cp_async_commit();
  };
  for (int stage = 0; stage < Stages - 1; ++stage) copy_into(stage);
  int stage = 0;
  unsigned sum = 0;
  for (int chunk = first; chunk < read.num_chunks; chunk += stride) {
    copy_into((stage + Stages - 1) % Stages);
    pagedkv::ptx::cp_async_wait<Stages - 1>();
#pragma unroll
    for (int r = 0; r < ChunkRead::rows; ++r)
      sum += word_sum(ring[stage * ChunkRead::chunk_words + r * ChunkRead::lanes]);
    stage = (stage + 1) % Stages;
  }
  finish(read, sum);
}

/// What the others are held against: a CTA per chunk, a thread per word.
template <int Words>
__global__ void chunk_sum_kernel(ChunkRead read) {
  atomicAdd(read.sum, word_sum(read.data[std::int64_t{read.chunks[blockIdx.x]} * Words + threadIdx.x]));
}

struct ReadShape {
  void (*kernel)(ChunkRead);
  int threads, ctas_per_sm, stages;  // stages 0: no shared memory
};

/// Few threads are the fastest for few bytes, many or a deep ring for many: on an H200, 128 x 1 below 1 MB, 256 x 8
/// from 30 MB.
inline constexpr ReadShape read_shapes[] = {{chunk_load_kernel<4>, 128, 1, 0},   {chunk_load_kernel<4>, 128, 2, 0},
                                            {chunk_load_kernel<4>, 128, 4, 0},   {chunk_load_kernel<4>, 128, 8, 0},
                                            {chunk_load_kernel<4>, 512, 4, 0},   {chunk_load_kernel<8>, 128, 4, 0},
                                            {chunk_load_kernel<8>, 256, 8, 0},   {chunk_load_kernel<8>, 1024, 2, 0},
                                            {chunk_stream_kernel<3>, 256, 2, 3}, {chunk_stream_kernel<4>, 128, 3, 4}};

}  // namespace detail

/// Bounds of the GPU in use. Making it allocates KvMemory; a size is measured when it is first asked for.
class ColdReads {
 public:
  static ColdReads& instance() {
    static ColdReads reads;
    return reads;
  }

  /// Bytes per second of one kernel that reads 8 GiB in order.
  double ceiling() {
    if (ceiling_ == 0) {
      const int num_chunks = static_cast<int>(std::min(std::int64_t{2} << 20, num_chunks_));
      const double bytes = static_cast<double>(num_chunks) * ChunkRead::chunk_bytes;
      ceiling_ = bytes / fastest(in_order_.data(), num_chunks, 1, 1).median;
    }
    return ceiling_;
  }

  /// Seconds of one kernel that reads `bytes`, in 4 KiB chunks from all over the memory, among others that read other
  /// chunks (num_rotating_sets); hot: always the same chunks, from L2 where they fit.
  Spread seconds(std::int64_t bytes, bool hot = false) {
    const auto found = seconds_.find({bytes, hot});
    if (found != seconds_.end()) return found->second;
    const auto num_chunks =
        std::clamp<std::int64_t>((bytes + ChunkRead::chunk_bytes / 2) / ChunkRead::chunk_bytes, 1, num_chunks_);
    const int num_calls = num_rotating_sets(bytes);
    const auto num_sets = hot ? 1 : static_cast<int>(std::min<std::int64_t>(num_calls, num_chunks_ / num_chunks));
    return seconds_[{bytes, hot}] = fastest(shuffled_.data(), static_cast<int>(num_chunks), num_sets, num_calls);
  }

 private:
  ColdReads()
      : data_(KvMemory::instance().data()),
        num_chunks_(KvMemory::instance().size_bytes() / ChunkRead::chunk_bytes),
        num_sms_(pagedkv::cuda::this_device().num_sms),
        in_order_(static_cast<std::size_t>(num_chunks_)),
        shuffled_(in_order_.size()),
        sum_(1) {
    std::vector<std::int32_t> chunks = shuffled_sets(1, num_chunks_, num_chunks_, 2);
    upload(shuffled_, chunks);
    std::iota(chunks.begin(), chunks.end(), 0);
    upload(in_order_, chunks);
    for (const detail::ReadShape& shape : detail::read_shapes) verify(shape);
  }

  static void upload(const pagedkv::cuda::DeviceArray<std::int32_t>& to, const std::vector<std::int32_t>& from) {
    check(cudaMemcpy(to.data(), from.data(), to.size_bytes(), cudaMemcpyHostToDevice), "ColdReads");
  }

  void enqueue(const detail::ReadShape& shape, const ChunkRead& read, cudaStream_t stream) const {
    const int warps = shape.threads / ChunkRead::lanes;
    const std::size_t shared = std::size_t(warps) * static_cast<std::size_t>(shape.stages) * ChunkRead::chunk_bytes;
    check(cudaFuncSetAttribute(shape.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "ColdReads");
    const int useful = pagedkv::ceil_div(2 * read.num_chunks, warps);  // a warp may take half a chunk
    const auto num_ctas = static_cast<unsigned>(std::min(useful, num_sms_ * shape.ctas_per_sm));
    pagedkv::cuda::launch(shape.kernel, {.grid = dim3(num_ctas), .threads = shape.threads, .shared_bytes = shared},
                          pagedkv::cuda::Launch::overlap_previous, stream, "ColdReads", read);
  }

  Spread fastest(const std::int32_t* chunks, int num_chunks, int num_sets, int num_calls) {
    const auto samples = [&](const detail::ReadShape& shape, int replays) {
      Graph graph(num_calls, [&](int call, cudaStream_t stream) {
        const std::int64_t set = call % num_sets;
        enqueue(shape, {data_, chunks + set * num_chunks, num_chunks, sum_.data(), false}, stream);
      });
      return spread_of(graph.samples(replays, 1));
    };
    const detail::ReadShape* best = nullptr;
    double least = 0;
    for (const detail::ReadShape& shape : detail::read_shapes) {
      const double seconds = samples(shape, 3).median;
      if (best == nullptr || seconds < least) least = seconds, best = &shape;
    }
    return samples(*best, 21);
  }

  /// Throws std::logic_error unless the kernel reads what it should.
  void verify(const detail::ReadShape& shape) {
    const ChunkRead read{data_, shuffled_.data(), static_cast<int>(std::min<std::int64_t>(num_chunks_, 5003)),
                         sum_.data(), true};
    const auto sum = [&](auto&& enqueue_it) {
      unsigned result = 0;
      check(cudaMemset(sum_.data(), 0, sizeof result), "ColdReads");
      enqueue_it();
      check(cudaMemcpy(&result, sum_.data(), sizeof result, cudaMemcpyDeviceToHost), "ColdReads");
      return result;
    };
    const unsigned expected = sum([&] {
      detail::chunk_sum_kernel<ChunkRead::chunk_words>
          <<<static_cast<unsigned>(read.num_chunks), ChunkRead::chunk_words>>>(read);
    });
    if (sum([&] { enqueue(shape, read, nullptr); }) != expected)
      throw std::logic_error("ColdReads: a kernel does not read what it should");
  }

  const uint4* data_;
  std::int64_t num_chunks_;
  int num_sms_;
  pagedkv::cuda::DeviceArray<std::int32_t> in_order_, shuffled_;
  pagedkv::cuda::DeviceArray<unsigned> sum_;
  double ceiling_ = 0;
  std::map<std::pair<std::int64_t, bool>, Spread> seconds_;
};

}  // namespace bench
