// gather_kv on the GPU: the rows of ragged batches, in both orders, out of poisoned pools; replays; what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "pagedkv/core/math.hpp"
#include "pagedkv/cuda/gather.cuh"
#include "support/two_pools.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Sequences of given lengths in every third block of a pool of random bits; ids behind a sequence's end are invalid.
template <class T>
class Batch {
 public:
  Batch(const KvLayout& layout, std::vector<std::int32_t> lengths)
      : kv_len(std::move(lengths)), pools_(layout), block_ids_(kv_len.size() * width, std::numeric_limits<int>::max()) {
    std::int32_t id = 0;
    for (std::size_t s = 0; s < kv_len.size(); ++s) {
      for (int i = 0; i * layout.block_size < kv_len[s]; ++i)
        block_ids_[s * width + static_cast<std::size_t>(i)] = id++ * 3 % static_cast<std::int32_t>(layout.num_blocks);
      key_begin.push_back(key_begin.back() + kv_len[s]);
    }
    ids_.emplace(to_device(block_ids_));
    lengths_.emplace(to_device(kv_len));
    begins_.emplace(to_device(key_begin));
    for (auto* half : {&k_, &v_}) {
      const int dim = half == &k_ ? layout.head_dim : layout.value_dim();
      half->emplace(
          std::vector<T>(static_cast<std::size_t>((key_begin.back() + spare_rows) * layout.kv_heads * dim), canary()));
    }
  }

  void gather(cudaStream_t stream = nullptr) {
    const auto num_seqs = std::ssize(kv_len);
    const auto list = [](const cuda::DeviceArray<std::int32_t>& entries) {
      return dense_view<Space::device>(static_cast<const std::int32_t*>(entries.data()),
                                       {static_cast<std::int64_t>(entries.size())});
    };
    const TablesView<Space::device> tables{
        .block_ids = dense_view<Space::device>(static_cast<const std::int32_t*>(ids_->data()),
                                               {num_seqs, static_cast<std::int64_t>(width)}),
        .kv_len = list(*lengths_),
        .query_begin = {}};
    cuda::gather_kv(tables, list(*begins_), pools_.device.layer(0), rows(*k_), rows(*v_), stream);
  }

  /// Other lengths in the same arrays; never more rows than at first.
  void set_lengths(const std::vector<std::int32_t>& lengths) {
    kv_len = lengths;
    for (std::size_t s = 0; s < kv_len.size(); ++s) key_begin[s + 1] = key_begin[s] + kv_len[s];
    copy_to_device(*lengths_, kv_len);
    copy_to_device(*begins_, key_begin);
    for (auto* half : {&*k_, &*v_}) {
      std::fill(half->host.begin(), half->host.end(), canary());
      copy_to_device(half->device, half->host);
    }
  }

  bool as_expected() {
    const auto layer = pools_.host.layer(0);
    return matches(*k_, layer.k) && matches(*v_, layer.v);
  }

  std::vector<std::int32_t> kv_len;
  std::vector<std::int32_t> key_begin{0};

 private:
  static constexpr std::size_t width = 12;
  static constexpr int spare_rows = 3;
  static T canary() { return from_float<T>(-1.f); }

  struct Output {
    explicit Output(std::vector<T> elements) : host(std::move(elements)), device(to_device(host)) {}
    std::vector<T> host;
    cuda::DeviceArray<T> device;
  };

  View<T, 3, Space::device> rows(const Output& output) {
    const std::int64_t heads = pools_.device.layout().kv_heads;
    const auto num_rows = static_cast<std::int64_t>(begins_rows());
    return dense_view<Space::device>(
        output.device.data(), {num_rows, heads, static_cast<std::int64_t>(output.host.size()) / (num_rows * heads)});
  }
  std::int64_t begins_rows() const {
    return static_cast<std::int64_t>(k_->host.size()) /
           (pools_.device.layout().kv_heads * pools_.device.layout().head_dim);
  }

  bool matches(Output& output, const View<T, 4>& blocks) {
    std::vector<T> expected(output.host.size(), canary());
    const std::int64_t heads = blocks.extents[1], slots = blocks.extents[2], dim = blocks.extents[3];
    for (std::size_t s = 0; s < kv_len.size(); ++s)
      for (int position = 0; position < kv_len[s]; ++position)
        for (std::int64_t head = 0; head < heads; ++head)
          std::copy_n(
              blocks.at(block_ids_[s * width + static_cast<std::size_t>(position / slots)], head, position % slots, 0),
              dim, expected.data() + ((key_begin[s] + position) * heads + head) * dim);
    to_host(output.host, output.device);
    return std::memcmp(output.host.data(), expected.data(), expected.size() * sizeof(T)) == 0;
  }

  TwoPools<T> pools_;
  std::vector<std::int32_t> block_ids_;
  std::optional<cuda::DeviceArray<std::int32_t>> ids_, lengths_, begins_;
  std::optional<Output> k_, v_;
};

}  // namespace

TEST_CASE("the keys and values of ragged batches are gathered in order, whatever lies beside them") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_blocks = 100, .kv_heads = 3, .block_size = 16, .head_dim = 64, .order = order};
    Batch<bf16> ragged(layout, {0, 33, 1, 0, 192, 16, 5, 0});
    ragged.gather();
    CHECK(ragged.as_expected());
    Batch<bf16> many(layout, std::vector<std::int32_t>(300, 1));
    many.gather();
    CHECK(many.as_expected());
    layout.head_dim = 7;
    layout.head_dim_v = 20;
    layout.block_size = 5;
    Batch<float> odd(layout, {60, 0, 3, 41});
    odd.gather();
    CHECK(odd.as_expected());
  }
}

TEST_CASE("a captured gather copies what the lengths say when it is replayed") {
  Batch<bf16> batch({.num_blocks = 100, .kv_heads = 2, .block_size = 8, .head_dim = 32}, {90, 90, 90});
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  batch.gather(stream);
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  for (const auto& lengths : {std::vector<std::int32_t>{90, 90, 90}, {1, 0, 77}, {0, 0, 0}, {90, 3, 90}}) {
    batch.set_lengths(lengths);
    cuda::check(cudaDeviceSynchronize(), "before");
    cuda::check(cudaGraphLaunch(executable, stream), "replay");
    CHECK(batch.as_expected());
  }
  static_cast<void>(cudaGraphExecDestroy(executable));
  static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaStreamDestroy(stream));
}

TEST_CASE("a gather whose shapes disagree is refused by name") {
  cuda::KvPool<float> pool({.num_blocks = 2, .kv_heads = 2, .block_size = 4, .head_dim = 8});
  const cuda::DeviceArray<float> memory(1024);
  const cuda::DeviceArray<std::int32_t> integers(16);
  const auto list = [&](std::int64_t size) {
    return dense_view<Space::device>(static_cast<const std::int32_t*>(integers.data()), {size});
  };
  const auto tables = [&](std::int64_t num_seqs) {
    return TablesView<Space::device>{
        .block_ids = dense_view<Space::device>(static_cast<const std::int32_t*>(integers.data()), {num_seqs, 2}),
        .kv_len = list(num_seqs),
        .query_begin = {}};
  };
  const auto rows = [&](int num_rows, int heads, int dim) {
    return dense_view<Space::device>(memory.data(), {num_rows, heads, dim});
  };
  const auto refuses = [&](const char* text, const TablesView<Space::device>& batch, auto begins, auto k, auto v) {
    CHECK_THROWS_WITH_AS(cuda::gather_kv(batch, begins, pool.layer(0), k, v, nullptr), doctest::Contains(text),
                         InvalidArgument);
  };
  refuses("sequences without key_begin 1 expected, 2 given", tables(2), decltype(list(1)){}, rows(3, 2, 8),
          rows(3, 2, 8));
  refuses("key_begin entries 3 expected, 2 given", tables(2), list(2), rows(3, 2, 8), rows(3, 2, 8));
  refuses("v rows like k's, 3 expected, 4 given", tables(2), list(3), rows(3, 2, 8), rows(4, 2, 8));
  refuses("head_dim like the cache's, 8 expected, 7 given", tables(2), list(3), rows(3, 2, 7), rows(3, 2, 8));
  refuses("kv_heads like the cache's, 2 expected, 1 given", tables(2), list(3), rows(3, 2, 8), rows(3, 1, 8));
}
