// Scattered blocks to pinned host memory and back, against one cudaMemcpyAsync of the same bytes; and on fewer and more
// SMs than the policy gives.
//
// Events around the call, so that the host's time to enqueue counts where the bus would wait for it.
#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
#include "support/on_gpu.cuh"
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
  if (const auto entry = known.find({bytes, is_out}); entry != known.end()) return entry->second;
  void* const device = Pools::instance().on_device(32).first.k.data;
  void* const host = Pools::instance().on_host(32).first.k.data;
  const auto copy = [&](cudaStream_t stream) {
    check(cudaMemcpyAsync(is_out ? host : device, is_out ? device : host, static_cast<std::size_t>(bytes),
                          is_out ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream),
          "memcpy");
  };
  return known[{bytes, is_out}] = time(copy).median;
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

/// What swap_blocks does, with another number of CTAs.
template <int MaxCtas>
struct SwapOnSms {
  template <Space From, Space To>
  void operator()(const std::vector<BlockPair>& pairs, const KvLayers<bf16, From>& source,
                  const KvLayers<bf16, To>& destination, cudaStream_t stream) {
    constexpr cuda::MovePolicy policy{.threads = 512, .pieces_per_thread = 4, .max_ctas = MaxCtas};
    cuda::detail::launch_block_swap<Piece<16>, policy>(pairs, cuda::detail::on_device(blocks_as_rows(source)),
                                                       cuda::detail::on_device(blocks_as_rows(destination)), stream);
  }
};

template <class Way>
void run(benchmark::State& state) {
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
template <int MaxCtas>
void swap_blocks_on_sms(benchmark::State& state) {
  run<SwapOnSms<MaxCtas>>(state);
}

void directions(benchmark::internal::Benchmark* benchmark, const std::vector<int>& block_counts, int num_layers) {
  benchmark->ArgNames({"blocks", "layers", "out"})->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1);
  for (const int out : {1, 0})
    for (const int num_blocks : block_counts) benchmark->Args({num_blocks, num_layers, out});
}
void shapes(benchmark::internal::Benchmark* benchmark) {
  directions(benchmark, {16, 64, 256, 1024, 4096}, 1);
  directions(benchmark, {16, 64, 256, 1024}, 32);
}
void few_shapes(benchmark::internal::Benchmark* benchmark) { directions(benchmark, {16, 1024}, 1); }

BENCHMARK(bench::on_gpu<swap_blocks>)->Name("swap_blocks")->Apply(shapes);
BENCHMARK(bench::on_gpu<swap_blocks_on_sms<4>>)->Name("swap_blocks_on_4_sms")->Apply(few_shapes);
BENCHMARK(bench::on_gpu<swap_blocks_on_sms<8>>)->Name("swap_blocks_on_8_sms")->Apply(few_shapes);
BENCHMARK(bench::on_gpu<swap_blocks_on_sms<16>>)->Name("swap_blocks_on_16_sms")->Apply(few_shapes);
BENCHMARK(bench::on_gpu<swap_blocks_on_sms<64>>)->Name("swap_blocks_on_64_sms")->Apply(few_shapes);
BENCHMARK(bench::on_gpu<swap_blocks_on_sms<128>>)->Name("swap_blocks_on_128_sms")->Apply(few_shapes);

}  // namespace
