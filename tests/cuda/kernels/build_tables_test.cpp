// The table kernel's own source, run on the host by emulated warps: RaggedTables become what BatchTables makes of them.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/build_tables.cuh"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/cache/batch_tables.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int block_size = 5, width = 4, num_seqs = 5;
constexpr std::int32_t canary = -77;

RaggedTables ragged_tables() {
  return {.q_begin = {0, 2, 2, 3, 3, 8},
          .kv_begin = {0, 4, 4, 5, 5, 7},
          .kv_block_ids = {9, 3, 7, 1, 0, 8, 2},
          .last_block_len = {1, 0, 5, 0, 4}};
}

struct Storage {
  std::vector<std::int32_t> block_ids = std::vector<std::int32_t>((num_seqs + 1) * width, canary);
  std::vector<std::int32_t> kv_len = std::vector<std::int32_t>(num_seqs + 1, canary);
  std::vector<std::int32_t> query_begin = std::vector<std::int32_t>(num_seqs + 2, canary);

  cuda::TablesStorage view(int columns = width) {
    return {.block_ids = dense_view<Space::device>(block_ids.data(), {num_seqs + 1, columns}),
            .kv_len = dense_view<Space::device>(kv_len.data(), {num_seqs + 1}),
            .query_begin = dense_view<Space::device>(query_begin.data(), {num_seqs + 2})};
  }
};

void build(const RaggedTables& ragged, const cuda::TablesStorage& storage, bool has_queries) {
  const auto list = [](const std::vector<std::int32_t>& entries) {
    return dense_view<Space::device>(entries.data(), {std::ssize(entries)});
  };
  const cuda::RaggedTablesView view{.q_begin = has_queries ? list(ragged.q_begin) : decltype(list(ragged.q_begin)){},
                                    .kv_begin = list(ragged.kv_begin),
                                    .kv_block_ids = list(ragged.kv_block_ids),
                                    .last_block_len = list(ragged.last_block_len)};
  run_grid({num_seqs}, cuda::TablesConfig::threads,
           [&] { cuda::ragged_tables_kernel<cuda::TablesConfig>(view, storage, block_size); });
}

}  // namespace

TEST_CASE("ragged tables are built as BatchTables reads them, and nothing behind a row's ids is written") {
  BatchTables tables({.max_seqs = num_seqs, .max_blocks_per_seq = width, .block_size = block_size});
  tables.assign(ragged_tables());
  Storage storage;
  build(ragged_tables(), storage.view(), true);
  for (int s = 0; s < num_seqs; ++s) {
    CAPTURE(s);
    CHECK(storage.kv_len[static_cast<std::size_t>(s)] == tables.kv_len(s));
    for (int i = 0; i < width; ++i) {
      const bool is_used = i < ceil_div(tables.kv_len(s), block_size);
      CHECK(storage.view().block_ids(s, i) == (is_used ? tables.view().block_ids(s, i) : canary));
    }
  }
  CHECK(storage.kv_len[num_seqs] == canary);
  CHECK(storage.query_begin == std::vector<std::int32_t>(num_seqs + 2, canary));
}

TEST_CASE("without q_begin every sequence has one query") {
  Storage storage;
  build(ragged_tables(), storage.view(), false);
  CHECK(storage.query_begin == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, canary});
}

TEST_CASE("a row that is longer than promised stays within its own columns, where asserts are off") {
  Storage storage;
  CHECK_THROWS_AS(build(ragged_tables(), storage.view(3), true), AssertionFailed);
  CHECK(storage.view(3).block_ids(1, 0) == canary);
}
