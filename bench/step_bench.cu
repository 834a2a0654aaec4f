// Copies, stores and gathers of scattered blocks, against cudaMemcpyAsync of the same bytes in the same run.
//
// Each call works on blocks that no other call of the graph touches, about 1 GB in all: what it moves is cold. GB/s
// counts what is read and what is written.
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
#include <type_traits>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/gather.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/graph.cuh"
#include "support/kv_memory.cuh"
#include "support/on_gpu.cuh"
#include "support/statistics.hpp"

namespace {

using namespace pagedkv;
using bench::Graph;
using cuda::check;

constexpr int block_size = 16, kv_heads = 8, head_dim = 128;
constexpr std::int64_t row_elements = kv_heads * head_dim, block_elements = 2 * block_size * row_elements;  // K and V
constexpr std::int64_t rotation_bytes = std::int64_t{1} << 30;

/// 16 GiB of normal numbers: pools of any number of layers at their start, rows at their end.
class Memory {
 public:
  static Memory& instance() {
    static Memory memory;
    return memory;
  }

  bf16* data() const { return elements_.data(); }
  std::int64_t size_bytes() const { return static_cast<std::int64_t>(elements_.size_bytes()); }

  KvLayout layout(int num_layers, KvOrder order) const {
    const std::int64_t max_blocks = 8192 * 32 / num_layers;  // all of the memory
    return {.num_layers = num_layers,
            .num_blocks = std::min<std::int64_t>(max_blocks, 16384),
            .kv_heads = kv_heads,
            .block_size = block_size,
            .head_dim = head_dim,
            .order = order};
  }
  KvLayers<bf16, Space::device> pool(int num_layers, KvOrder order = KvOrder::hnd) const {
    return layers_view<Space::device>(data(), layout(num_layers, order));
  }

  /// Rows behind the pool of one layer.
  template <class X>
  View<X, 3, Space::device> rows(std::int64_t first, std::int64_t num_rows) const {
    auto* const begin = reinterpret_cast<X*>(data() + layout(1, KvOrder::hnd).num_elements());
    return dense_view<Space::device>(begin + first * row_elements, {num_rows, kv_heads, head_dim});
  }

 private:
  Memory() : elements_(8192 * 32 * block_elements) { bench::fill_normal(elements_.data(), elements_.size(), 1); }

  cuda::DeviceArray<bf16> elements_;
};

/// Calls that move `bytes` (and read and write as much) rotate over so many disjoint sets.
int num_sets(std::int64_t bytes, std::int64_t most) {
  return static_cast<int>(std::clamp<std::int64_t>(rotation_bytes / (2 * bytes), 1, std::min<std::int64_t>(most, 512)));
}

std::vector<std::int32_t> shuffled(std::int64_t count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  return ids;
}

template <class T>
cuda::DeviceArray<T> to_device(const std::vector<T>& elements) {
  cuda::DeviceArray<T> copy(elements.size());
  check(cudaMemcpy(copy.data(), elements.data(), copy.size_bytes(), cudaMemcpyHostToDevice), "to_device");
  return copy;
}

/// Seconds of one cudaMemcpyAsync of `bytes`, rotating like the calls; measured once for each size.
double memcpy_seconds(std::int64_t bytes) {
  static std::map<std::int64_t, double> known;
  if (const auto entry = known.find(bytes); entry != known.end()) return entry->second;
  auto* const data = reinterpret_cast<std::byte*>(Memory::instance().data());
  Graph graph(num_sets(bytes, Memory::instance().size_bytes() / (2 * bytes)), [&](int set, cudaStream_t stream) {
    std::byte* const from = data + 2 * bytes * set;
    check(cudaMemcpyAsync(from + bytes, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
          "memcpy");
  });
  return known[bytes] = bench::spread_of(graph.samples(15)).median;
}

/// Reports the median of 15 replays. `bytes` are moved: read once and written once. The bound comes first, because it
/// writes over the memory that the replays fill and the caller compares.
void report(benchmark::State& state, Graph& graph, std::int64_t bytes) {
  const double bound = bytes == 0 ? 0 : memcpy_seconds(bytes);
  const bench::Spread seconds = bench::spread_of(graph.samples(15));
  for (auto _ : state) state.SetIterationTime(seconds.median);
  state.counters["us"] = seconds.median * 1e6;
  state.counters["p10"] = seconds.p10 * 1e6;
  state.counters["p90"] = seconds.p90 * 1e6;
  if (bytes == 0) return;
  state.counters["GB/s"] = 2 * static_cast<double>(bytes) / seconds.median / 1e9;
  state.counters["memcpy_us"] = bound * 1e6;
  state.counters["of_memcpy_%"] = 100 * bound / seconds.median;
}

void require_equal(const bf16* a, const bf16* b, std::int64_t count) {
  std::vector<bf16> x(static_cast<std::size_t>(count)), y = x;
  check(cudaMemcpy(x.data(), a, x.size() * sizeof(bf16), cudaMemcpyDeviceToHost), "compare");
  check(cudaMemcpy(y.data(), b, y.size() * sizeof(bf16), cudaMemcpyDeviceToHost), "compare");
  if (std::memcmp(x.data(), y.data(), x.size() * sizeof(bf16)) != 0) throw std::runtime_error("wrong bytes");
}

/// num_live of num_copies copies have rows; the others are what a captured step has behind the fill.
void run_copies(benchmark::State& state, std::int64_t num_live, std::int64_t num_copies, int num_layers,
                KvOrder order) {
  const auto layers = Memory::instance().pool(num_layers, order);
  const std::int64_t bytes = num_live * num_layers * block_elements * std::int64_t{sizeof(bf16)};
  const auto ids = shuffled(layers.first.num_blocks());
  const int sets = num_sets(std::max<std::int64_t>(bytes, 1), std::ssize(ids) / (2 * num_copies));
  std::vector<BlockCopy> copies;
  for (std::int64_t i = 0; i < sets * num_copies; ++i) {
    const auto pair = static_cast<std::size_t>(2 * i);
    const bool is_live = i % num_copies < num_live;
    copies.push_back({BlockId{ids[pair]}, BlockId{ids[pair + 1]}, is_live ? block_size : 0});
  }
  const auto list = to_device(copies);
  Graph graph(sets, [&](int set, cudaStream_t stream) {
    const BlockCopy* const first = list.data() + set * num_copies;
    cuda::copy_blocks({.copies = dense_view<Space::device>(first, {num_copies}), .slots = {}}, layers, stream);
  });
  report(state, graph, num_live == num_copies ? bytes : 0);  // few live ones of many do not fill a rotation
  if (num_live == 0) return;
  const BlockCopy& last = copies[static_cast<std::size_t>(num_live - 1)];
  const auto v = layers.layer(num_layers - 1).v;
  require_equal(v.at(to_index(last.source), 0, 0, 0), v.at(to_index(last.destination), 0, 0, 0), block_elements / 2);
}

void copy_blocks(benchmark::State& state) {
  run_copies(state, state.range(0), state.range(0), static_cast<int>(state.range(1)), KvOrder::hnd);
}
void copy_blocks_nhd(benchmark::State& state) {
  run_copies(state, state.range(0), state.range(0), static_cast<int>(state.range(1)), KvOrder::nhd);
}
void copy_blocks_captured_1024(benchmark::State& state) {
  run_copies(state, state.range(0), 1024, static_cast<int>(state.range(1)), KvOrder::hnd);
}

/// As many sequences as asked for, of lengths 1 : 2 : 1 : 2 .., share the blocks.
void run_gather(benchmark::State& state, KvOrder order) {
  const std::int64_t num_blocks = state.range(0), num_seqs = state.range(1);
  const std::int64_t bytes = num_blocks * block_elements * std::int64_t{sizeof(bf16)},
                     num_rows = num_blocks * block_size;
  const auto layer = Memory::instance().pool(1, order).layer(0);
  const auto ids = shuffled(layer.num_blocks());
  const int sets = num_sets(bytes, std::ssize(ids) / num_blocks);
  std::vector<std::int32_t> kv_len, key_begin{0};
  for (std::int64_t s = 0; s < num_seqs; ++s) {
    const std::int64_t end = s + 1 == num_seqs ? num_blocks : num_blocks * (3 * (s + 1) / 2) / (3 * num_seqs / 2);
    key_begin.push_back(static_cast<std::int32_t>(end * block_size));
    kv_len.push_back(key_begin.back() - key_begin[static_cast<std::size_t>(s)]);
  }
  std::vector<std::int32_t> table;  // [sets, num_seqs, num_blocks]
  for (int set = 0; set < sets; ++set) {
    for (std::size_t s = 0; s < static_cast<std::size_t>(num_seqs); ++s) {
      const auto first = ids.begin() + set * num_blocks + key_begin[s] / block_size;
      table.insert(table.end(), first, first + kv_len[s] / block_size);
      table.resize(table.size() + static_cast<std::size_t>(num_blocks - kv_len[s] / block_size), -1);
    }
  }
  const auto tables_on_device = to_device(table), lengths = to_device(kv_len), begins = to_device(key_begin);
  const auto out = [&](int set, int half) {
    return Memory::instance().rows<bf16>((2 * set + half) * num_rows, num_rows);
  };
  Graph graph(sets, [&](int set, cudaStream_t stream) {
    const std::int32_t* const block_ids = tables_on_device.data() + set * num_seqs * num_blocks;
    const TablesView<Space::device> tables{
        .block_ids = dense_view<Space::device>(block_ids, {num_seqs, num_blocks}),
        .kv_len = dense_view<Space::device>(static_cast<const std::int32_t*>(lengths.data()), {num_seqs}),
        .query_begin = {}};
    const auto key_begins = dense_view<Space::device>(static_cast<const std::int32_t*>(begins.data()), {num_seqs + 1});
    cuda::gather_kv(tables, key_begins, layer, out(set, 0), out(set, 1), stream);
  });
  report(state, graph, bytes);
  require_equal(layer.k.at(ids[static_cast<std::size_t>(num_blocks - 1)], kv_heads - 1, block_size - 1, 0),
                out(0, 0).at(num_rows - 1, kv_heads - 1, 0), head_dim);
}

void gather_kv(benchmark::State& state) { run_gather(state, KvOrder::hnd); }
void gather_kv_nhd(benchmark::State& state) { run_gather(state, KvOrder::nhd); }

/// Rows of X to random slots, as in decode; a prompt's would be consecutive.
template <class X>
void run_stores(benchmark::State& state, KvOrder order, cuda::Launch mode = cuda::Launch::after_previous) {
  const std::int64_t num_rows = state.range(0);
  const std::int64_t bytes = num_rows * 2 * row_elements * std::int64_t{sizeof(X) + sizeof(bf16)} / 2;
  const auto layer = Memory::instance().pool(1, order).layer(0);
  const auto ids = shuffled(layer.num_blocks() * block_size);
  const int sets = num_sets(bytes, std::ssize(ids) / num_rows);
  std::vector<Slot> slots(ids.begin(), ids.begin() + sets * num_rows);
  const auto list = to_device(slots);
  const auto rows = [&](int set, int half) {
    View<const X, 3, Space::device> view = Memory::instance().rows<X>((2 * set + half) * num_rows, num_rows);
    return view;
  };
  Graph graph(sets, [&](int set, cudaStream_t stream) {
    const Slot* const first = list.data() + set * num_rows;
    const cuda::StepView step{.copies = {}, .slots = dense_view<Space::device>(first, {num_rows})};
    cuda::store_kv(step, layer, rows(set, 0), rows(set, 1), stream, mode);
  });
  report(state, graph, bytes);
  if constexpr (std::is_same_v<X, bf16>) {
    const Slot last = slots[static_cast<std::size_t>(num_rows - 1)];
    require_equal(layer.v.at(last / block_size, 3, last % block_size, 0), rows(0, 1).at(num_rows - 1, 3, 0), head_dim);
  }
}

void store_kv(benchmark::State& state) { run_stores<bf16>(state, KvOrder::hnd); }
void store_kv_nhd(benchmark::State& state) { run_stores<bf16>(state, KvOrder::nhd); }
void store_kv_overlapping(benchmark::State& state) {
  run_stores<bf16>(state, KvOrder::hnd, cuda::Launch::overlap_previous);
}
void store_kv_from_float(benchmark::State& state) { run_stores<float>(state, KvOrder::hnd); }

#define PAGEDKV_BENCH(function) \
  BENCHMARK(bench::on_gpu<function>)->Name(#function)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1)

PAGEDKV_BENCH(copy_blocks)->ArgNames({"blocks", "layers"})->ArgsProduct({{16, 64, 256, 1024, 4096}, {1, 32}});
PAGEDKV_BENCH(copy_blocks_nhd)->ArgNames({"blocks", "layers"})->ArgsProduct({{16, 256, 4096}, {1, 32}});
PAGEDKV_BENCH(copy_blocks_captured_1024)->ArgNames({"live", "layers"})->ArgsProduct({{0, 16, 256}, {1, 32}});
PAGEDKV_BENCH(gather_kv)->ArgNames({"blocks", "seqs"})->ArgsProduct({{16, 64, 256, 1024, 4096}, {1}});
PAGEDKV_BENCH(gather_kv)->ArgNames({"blocks", "seqs"})->ArgsProduct({{256, 4096}, {32}});
PAGEDKV_BENCH(gather_kv_nhd)->ArgNames({"blocks", "seqs"})->ArgsProduct({{16, 256, 4096}, {1}});
PAGEDKV_BENCH(store_kv)->ArgName("rows")->Arg(1)->Arg(16)->Arg(64)->Arg(256)->Arg(1024)->Arg(8192);
PAGEDKV_BENCH(store_kv_nhd)->ArgName("rows")->Arg(16)->Arg(256)->Arg(8192);
PAGEDKV_BENCH(store_kv_overlapping)->ArgName("rows")->Arg(1)->Arg(16)->Arg(256);
PAGEDKV_BENCH(store_kv_from_float)->ArgName("rows")->Arg(16)->Arg(256)->Arg(8192);

}  // namespace
