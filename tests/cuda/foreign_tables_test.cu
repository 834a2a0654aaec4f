// Tables in other libraries' dialects on the GPU: what BatchTables would make of them, also in a graph; what is refused.
#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/cuda/foreign_tables.cuh"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

using Integers = cuda::DeviceArray<std::int32_t>;

View<const std::int32_t, 1, Space::device> list(const Integers& entries) {
  return dense_view<Space::device>(static_cast<const std::int32_t*>(entries.data()),
                                   {static_cast<std::int64_t>(entries.size())});
}

/// RaggedTables on the device, and storage for what is built of them.
struct Ragged {
  explicit Ragged(const RaggedTables& tables, int columns = 4)
      : q_begin(to_device(tables.q_begin)),
        kv_begin(to_device(tables.kv_begin)),
        kv_block_ids(to_device(tables.kv_block_ids)),
        last_block_len(to_device(tables.last_block_len)),
        width(columns),
        block_ids(to_device(std::vector<std::int32_t>(last_block_len.size() * static_cast<std::size_t>(columns), -77))),
        kv_len(last_block_len.size()),
        query_begin(last_block_len.size() + 1) {}

  cuda::RaggedTablesView view() const {
    return {list(q_begin), list(kv_begin), list(kv_block_ids), list(last_block_len)};
  }
  cuda::TablesStorage storage() const {
    const auto num_seqs = static_cast<std::int64_t>(kv_len.size());
    return {.block_ids = dense_view<Space::device>(block_ids.data(), {num_seqs, width}),
            .kv_len = dense_view<Space::device>(kv_len.data(), {num_seqs}),
            .query_begin = dense_view<Space::device>(query_begin.data(), {num_seqs + 1})};
  }

  Integers q_begin, kv_begin, kv_block_ids, last_block_len;
  int width;
  Integers block_ids, kv_len, query_begin;
};

constexpr int block_size = 5;

RaggedTables four_sequences() {
  return {.q_begin = {0, 2, 2, 3, 8},
          .kv_begin = {0, 4, 4, 5, 7},
          .kv_block_ids = {9, 3, 7, 1, 0, 8, 2},
          .last_block_len = {1, 0, 5, 4}};
}

std::vector<std::int32_t> on_host(const Integers& entries) {
  std::vector<std::int32_t> copy;
  to_host(copy, entries);
  return copy;
}

}  // namespace

TEST_CASE("ragged tables become padded ones in the caller's memory, as BatchTables reads them") {
  const Ragged ragged(four_sequences());
  const auto tables =
      cuda::build_tables(ragged.view(), ragged.storage(), block_size, {.max_q_len = 5, .max_kv_len = 16}, nullptr);
  BatchTables expected({.max_seqs = 4, .max_blocks_per_seq = 4, .block_size = block_size});
  expected.assign(four_sequences());
  CHECK(on_host(ragged.kv_len) == std::vector<std::int32_t>{16, 0, 5, 9});
  const auto ids = on_host(ragged.block_ids);
  for (int s = 0; s < 4; ++s)
    for (int i = 0; i < 4; ++i) {
      const bool is_used = i < ceil_div(expected.kv_len(s), block_size);
      CHECK(ids[static_cast<std::size_t>(4 * s + i)] == (is_used ? expected.view().block_ids(s, i) : -77));
    }
  CHECK(tables.query_begin.data == ragged.q_begin.data());
  CHECK(tables.num_seqs() == 4);
  CHECK(tables.max_q_len == 5);
  CHECK(tables.max_kv_len == 16);
}

TEST_CASE("a replay reads ragged tables anew; without q_begin every sequence has one query") {
  const Ragged ragged(four_sequences());
  auto view = ragged.view();
  view.q_begin = {};
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  const auto tables = cuda::build_tables(view, ragged.storage(), block_size, {.max_kv_len = 20}, stream);
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  copy_to_device(ragged.kv_begin, {0, 1, 3, 3, 3});
  copy_to_device(ragged.last_block_len, {2, 5, 0, 0});
  cuda::check(cudaDeviceSynchronize(), "before");
  cuda::check(cudaGraphLaunch(executable, stream), "replay");
  CHECK(on_host(ragged.kv_len) == std::vector<std::int32_t>{2, 10, 0, 0});
  CHECK(on_host(ragged.query_begin) == std::vector<std::int32_t>{0, 1, 2, 3, 4});
  CHECK(tables.query_begin.data == ragged.query_begin.data());
  CHECK(tables.max_q_len == 1);
  static_cast<void>(cudaGraphExecDestroy(executable));
  static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaStreamDestroy(stream));
}

TEST_CASE("padded tables are a view of the arrays as they are") {
  const Integers ids(12), lengths(3), queries(4);
  const cuda::PaddedTablesView padded{
      .block_tables = dense_view<Space::device>(static_cast<const std::int32_t*>(ids.data()), {3, 4}),
      .context_lens = list(lengths),
      .query_begin = list(queries)};
  const auto tables = cuda::view_tables(padded, {.max_q_len = 1, .max_kv_len = 40});
  CHECK(tables.block_ids.data == ids.data());
  CHECK(tables.kv_len.data == lengths.data());
  CHECK(tables.query_begin.data == queries.data());
  CHECK(tables.max_kv_len == 40);
}

TEST_CASE("tables whose sizes disagree are refused by name") {
  const Ragged ragged(four_sequences());
  const auto refuses = [&](const char* text, auto&& change, cuda::TablesBounds bounds = {.max_kv_len = 20}) {
    auto view = ragged.view();
    auto storage = ragged.storage();
    change(view, storage);
    CHECK_THROWS_WITH_AS(static_cast<void>(cuda::build_tables(view, storage, block_size, bounds, nullptr)),
                         doctest::Contains(text), InvalidArgument);
  };
  refuses("kv_begin entries 5 expected, 4 given", [](auto& view, auto&) { view.kv_begin.extents[0] = 4; });
  refuses("q_begin entries 5 expected, 6 given", [](auto& view, auto&) { view.q_begin.extents[0] = 6; });
  refuses("storage.block_ids rows, at least 4 expected, 3 given", [](auto&, auto& s) { s.block_ids.extents[0] = 3; });
  refuses("storage.kv_len entries, at least 4 expected, 3 given", [](auto&, auto& s) { s.kv_len.extents[0] = 3; });
  refuses("storage.query_begin entries, at least 5 expected, 4 given", [](auto& view, auto& s) {
    view.q_begin = {};
    s.query_begin.extents[0] = 4;
  });
  refuses("at most what a row can name, 20 expected, 21 given", [](auto&, auto&) {}, {.max_kv_len = 21});
}
