// Scattered blocks to pinned host memory and back, in three ways, against one cudaMemcpyAsync of the same bytes.
//
//   swap_blocks      the library's: a strided copy for each run of blocks, all layers at once
//   batched_copies   a copy for each block, layer, and K or V, enqueued together by cudaMemcpyBatchAsync
//   mapped_kernel    a kernel on a few SMs that reads and writes host memory by itself
//
// Events around the call, so that the host's time to enqueue counts where the bus would wait for it.
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/swap.cuh"
#include "pagedkv/storage/pieces.hpp"
#include "support/kv_memory.cuh"
#include "support/statistics.hpp"

namespace {

using namespace pagedkv;
using cuda::check;

constexpr int num_samples = 7;
constexpr std::size_t value_bytes = 16 * 8 * 128 * sizeof(bf16);  // of one block's V in one layer

/// Two pools of up to 2 GiB: 1,024 blocks of 32 layers or 8,192 of one, in device memory and in pinned host memory.
class Pools {
 public:
  static Pools& instance() {
    static Pools pools;
    return pools;
  }

  static KvLayout layout(int num_layers) {
    return {.num_layers = num_layers,
            .num_blocks = num_layers == 1 ? 8192 : 1024,
            .kv_heads = 8,
            .block_size = 16,
            .head_dim = 128};
  }
  KvLayers<bf16, Space::device> on_device(int num_layers) {
    return layers_view<Space::device>(device_.layers().first.k.data, layout(num_layers));
  }
  KvLayers<bf16, Space::host> on_host(int num_layers) {
    return layers_view(host_.layers().first.k.data, layout(num_layers));
  }

  cudaStream_t stream() const { return stream_; }

 private:
  Pools() : device_(layout(32)), host_(layout(32)) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    bench::fill_normal(device_.layers().first.k.data, device_.size_bytes() / sizeof(bf16), 1);
    check(cudaMemcpy(host_.layers().first.k.data, device_.layers().first.k.data, host_.size_bytes(),
                     cudaMemcpyDeviceToHost),
          "fill");
    bench::fill_normal(device_.layers().first.k.data, device_.size_bytes() / sizeof(bf16), 2);
  }

  cuda::KvPool<bf16> device_;
  cuda::PinnedKvPool<bf16> host_;
  cudaStream_t stream_ = nullptr;
};

/// Seconds between events around enqueue(stream), the median of a few.
template <class Enqueue>
bench::Spread time(Enqueue&& enqueue) {
  const cudaStream_t stream = Pools::instance().stream();
  cudaEvent_t start = nullptr, stop = nullptr;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  std::vector<double> seconds;
  for (int i = 0; i <= num_samples; ++i) {
    float milliseconds = 0;
    check(cudaEventRecord(start, stream), "time");
    enqueue(stream);
    check(cudaEventRecord(stop, stream), "time");
    check(cudaEventSynchronize(stop), "time");
    check(cudaEventElapsedTime(&milliseconds, start, stop), "time");
    if (i > 0) seconds.push_back(milliseconds / 1e3);  // the first one loads and maps
  }
  static_cast<void>(cudaEventDestroy(start));
  static_cast<void>(cudaEventDestroy(stop));
  return bench::spread_of(seconds);
}

/// One copy of as many bytes in a row; measured once for each size and direction.
double memcpy_seconds(std::int64_t bytes, bool is_out) {
  static std::map<std::pair<std::int64_t, bool>, double> known;
  const auto [entry, is_new] = known.try_emplace({bytes, is_out});
  if (!is_new) return entry->second;
  void* const device = Pools::instance().on_device(32).first.k.data;
  void* const host = Pools::instance().on_host(32).first.k.data;
  const auto copy = [&](cudaStream_t stream) {
    check(cudaMemcpyAsync(is_out ? host : device, is_out ? device : host, static_cast<std::size_t>(bytes),
                          is_out ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream),
          "memcpy");
  };
  return entry->second = time(copy).median;
}

std::vector<BlockPair> scattered_pairs(std::int64_t count, std::int64_t num_blocks) {
  std::vector<std::int32_t> sources(static_cast<std::size_t>(num_blocks)), destinations;
  std::iota(sources.begin(), sources.end(), 0);
  destinations = sources;
  std::shuffle(sources.begin(), sources.end(), std::mt19937(1));
  std::shuffle(destinations.begin(), destinations.end(), std::mt19937(2));
  std::vector<BlockPair> pairs;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
    pairs.push_back({BlockId{sources[i]}, BlockId{destinations[i]}});
  return pairs;
}

/// One layer's V of one block, here and there.
void require_equal(const bf16* on_device, const bf16* on_host) {
  std::vector<std::byte> bytes(value_bytes);
  check(cudaMemcpy(bytes.data(), on_device, value_bytes, cudaMemcpyDeviceToHost), "compare");
  if (std::memcmp(bytes.data(), on_host, value_bytes) != 0) throw std::runtime_error("wrong bytes");
}

struct Swap {
  template <Space From, Space To>
  void operator()(const std::vector<BlockPair>& pairs, const KvLayers<bf16, From>& source,
                  const KvLayers<bf16, To>& destination, cudaStream_t stream) {
    cuda::swap_blocks<bf16, From, To>(pairs, source, destination, stream);
  }
};

struct BatchedCopies {
  template <Space From, Space To>
  void operator()(const std::vector<BlockPair>& pairs, const KvLayers<bf16, From>& source,
                  const KvLayers<bf16, To>& destination, cudaStream_t stream) {
#if CUDART_VERSION >= 13000
    std::vector<const void*> from;
    std::vector<void*> to;
    std::vector<std::size_t> sizes;
    for_each_copy<bf16, bf16>(pairs, source, destination, 0, [&](const StridedCopy& copy) {  // no pitch: row by row
      from.push_back(copy.source);
      to.push_back(copy.destination);
      sizes.push_back(copy.width_bytes);
    });
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t first = 0;
    check(cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes, &first, 1, stream),
          "batched copies");
#else
    throw std::runtime_error("needs CUDA 13");
#endif
  }
};

/// As many as fit into a kernel's parameters: no upload.
struct PairList {
  BlockPair pairs[256];
  int size;
};
constexpr int mapped_ctas = 32, mapped_threads = 512;  // few SMs: the others have work of their own

/// Each CTA takes tiles of 32 KiB, in turns: K or V of one block in one layer.
__global__ void __launch_bounds__(mapped_threads)
    mapped_swap_kernel(const PairList list, const KvLayers<const Piece<16>, Space::device> source,
                       const KvLayers<Piece<16>, Space::device> destination) {
  constexpr int pieces_per_thread = 4;
  const int num_tiles = list.size * source.num_layers * 2;
  for (int tile = static_cast<int>(blockIdx.x); tile < num_tiles; tile += static_cast<int>(gridDim.x)) {
    const BlockPair pair = list.pairs[tile / (2 * source.num_layers)];
    const auto from = source.layer(tile / 2 % source.num_layers);
    const auto to = destination.layer(tile / 2 % source.num_layers);
    const Piece<16>* const in = (tile % 2 == 0 ? from.k : from.v).at(to_index(pair.source), 0, 0, threadIdx.x);
    Piece<16>* const out = (tile % 2 == 0 ? to.k : to.v).at(to_index(pair.destination), 0, 0, threadIdx.x);
    Piece<16> pieces[pieces_per_thread];
#pragma unroll
    for (int n = 0; n < pieces_per_thread; ++n) pieces[n] = in[n * mapped_threads];
#pragma unroll
    for (int n = 0; n < pieces_per_thread; ++n) out[n * mapped_threads] = pieces[n];
  }
}

/// The same layers as pieces: pinned host memory has one address on both sides of the bus.
template <class P, Space S>
KvLayers<P, Space::device> mapped(const KvLayers<bf16, S>& layers) {
  const auto view = [](const auto& blocks) {
    const auto pieces = in_pieces<Piece<16>>(blocks);
    View<P, 4, Space::device> result{.data = pieces.data};
    std::copy_n(pieces.extents, 4, result.extents);
    std::copy_n(pieces.strides, 4, result.strides);
    return result;
  };
  return {.first = {.k = view(layers.first.k), .v = view(layers.first.v)},
          .num_layers = layers.num_layers,
          .layer_stride = layers.layer_stride / 8};
}

struct MappedKernel {
  template <Space From, Space To>
  void operator()(const std::vector<BlockPair>& pairs, const KvLayers<bf16, From>& source,
                  const KvLayers<bf16, To>& destination, cudaStream_t stream) {
    PairList list;
    for (std::size_t first = 0; first < pairs.size(); first += std::size(list.pairs)) {
      const std::size_t size = std::min(pairs.size() - first, std::size(list.pairs));
      std::copy_n(pairs.begin() + static_cast<std::ptrdiff_t>(first), size, list.pairs);
      list.size = static_cast<int>(size);
      mapped_swap_kernel<<<mapped_ctas, mapped_threads, 0, stream>>>(list, mapped<const Piece<16>>(source),
                                                                     mapped<Piece<16>>(destination));
      check(cudaGetLastError(), "mapped kernel");
    }
  }
};

template <class Way>
void run(benchmark::State& state) {
  if (int num_gpus = 0; cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0)
    return state.SkipWithError("no GPU");
  const std::int64_t num_blocks = state.range(0);
  const auto num_layers = static_cast<int>(state.range(1));
  const bool is_out = state.range(2) == 1;
  const KvLayout layout = Pools::layout(num_layers);
  const std::int64_t bytes = num_blocks * layout.num_elements() / layout.num_blocks * std::int64_t{sizeof(bf16)};
  const auto pairs = scattered_pairs(num_blocks, layout.num_blocks);
  const auto device = Pools::instance().on_device(num_layers);
  const auto host = Pools::instance().on_host(num_layers);
  const auto v_of = [&](const auto& layers, BlockId block) {
    return layers.layer(num_layers - 1).v.at(to_index(block), 0, 0, 0);
  };
  for (const BlockPair& pair : {pairs.front(), pairs.back()}) {  // what is compared below must have been moved
    bf16* const target = is_out ? v_of(host, pair.destination) : v_of(device, pair.destination);
    check(cudaMemset(target, 0, value_bytes), "clear");
  }
  check(cudaDeviceSynchronize(), "clear");
  const bench::Spread seconds = time([&](cudaStream_t stream) {
    if (is_out)
      Way{}(pairs, device, host, stream);
    else
      Way{}(pairs, host, device, stream);
  });
  for (auto _ : state) state.SetIterationTime(seconds.median);
  for (const BlockPair& pair : {pairs.front(), pairs.back()}) {
    require_equal(v_of(device, is_out ? pair.source : pair.destination),
                  v_of(host, is_out ? pair.destination : pair.source));
  }
  const double bound = memcpy_seconds(bytes, is_out);
  state.counters["us"] = seconds.median * 1e6;
  state.counters["p90"] = seconds.p90 * 1e6;
  state.counters["GB/s"] = static_cast<double>(bytes) / seconds.median / 1e9;
  state.counters["memcpy_us"] = bound * 1e6;
  state.counters["of_memcpy_%"] = 100 * bound / seconds.median;
}

void swap_blocks(benchmark::State& state) { run<Swap>(state); }
void batched_copies(benchmark::State& state) { run<BatchedCopies>(state); }
void mapped_kernel(benchmark::State& state) { run<MappedKernel>(state); }

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"blocks", "layers", "out"})->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1);
  for (const int out : {1, 0}) {
    for (const int num_blocks : {16, 64, 256, 1024, 4096}) benchmark->Args({num_blocks, 1, out});
    for (const int num_blocks : {16, 64, 256, 1024}) benchmark->Args({num_blocks, 32, out});
  }
}
BENCHMARK(swap_blocks)->Apply(shapes);
BENCHMARK(batched_copies)->Apply(shapes);
BENCHMARK(mapped_kernel)->Apply(shapes);

}  // namespace
