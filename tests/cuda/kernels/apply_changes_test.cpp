// The kernel's own source, run on the host by emulated warps: a table that gets only the changes becomes the batch's.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/apply_changes.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/table_changes.hpp"
#include "pagedkv/core/math.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;
using cuda::ChangedEntry;
using Config = cuda::ChangesConfig;

constexpr int num_rows = 6, columns = 600, device_columns = 603, block_size = 2;
constexpr std::int32_t canary = -77;

/// A table in device memory, whose rows are wider than the batch's, with one more row behind it.
struct DeviceTable {
  std::vector<std::int32_t> ids = std::vector<std::int32_t>((num_rows + 1) * device_columns, canary);

  std::int32_t& at(int row, int column) { return ids[static_cast<std::size_t>(row * device_columns + column)]; }

  void apply(const std::vector<ChangedEntry>& changes) {
    const auto list = dense_view<Space::device>(changes.data(), {std::ssize(changes)});
    const auto table = dense_view<Space::device>(ids.data(), {num_rows, device_columns});
    run_grid({static_cast<unsigned>(ceil_div<std::int64_t>(std::ssize(changes), Config::threads))}, Config::threads,
             [&] { cuda::changes_apply_kernel<Config>(list, table); });
  }
};

std::vector<ChangedEntry> list_of(std::span<const std::int64_t> entries, const BatchTables& tables) {
  std::vector<ChangedEntry> changes(entries.size());
  changes.resize(static_cast<std::size_t>(cuda::list_changes(entries, tables.view().block_ids, changes.data())));
  return changes;
}

std::vector<BlockId> some_blocks(Random& random, int count) {
  std::vector<BlockId> blocks;
  for (int i = 0; i < count; ++i) blocks.push_back(BlockId{random.between(0, 99999)});
  return blocks;
}

/// Adds a sequence to the batch, or removes one.
void change(BatchTables& tables, std::vector<bool>& in_use, Random& random) {
  const int row = random.between(0, num_rows - 1);
  if (in_use[static_cast<std::size_t>(row)]) {
    tables.remove(row);
    in_use[static_cast<std::size_t>(row)] = false;
    return;
  }
  const int num_blocks = random.one_in(2) ? random.between(0, 3) : random.between(0, columns / 4);
  const int given = tables.add(some_blocks(random, num_blocks), num_blocks * block_size, 0);
  in_use[static_cast<std::size_t>(given)] = true;
}

}  // namespace

TEST_CASE("a table that is sent the changes of each step is the batch's after each, and nothing beside it is written") {
  BatchTables tables({.max_seqs = num_rows, .max_blocks_per_seq = columns, .block_size = block_size});
  std::vector<bool> in_use(num_rows);
  Random random(1);
  DeviceTable device;
  std::size_t most = 0;
  int num_lost = 0;
  for (int step = 0; step < 120; ++step) {
    const TableVersion seen = tables.changes().version();
    for (int i = random.between(0, 2); i > 0; --i) change(tables, in_use, random);
    if (const auto entries = tables.changes().since(seen)) {
      const auto changes = list_of(*entries, tables);
      most = std::max(most, changes.size());
      device.apply(changes);
    } else {
      ++num_lost;
      for (int row = 0; row < tables.num_seqs(); ++row)
        for (int i = 0; i < columns; ++i) device.at(row, i) = tables.view().block_ids(row, i);
    }
    for (int row = 0; row < tables.num_seqs(); ++row)
      for (int i = 0; i < ceil_div(tables.kv_len(row), block_size); ++i)
        REQUIRE(device.at(row, i) == tables.view().block_ids(row, i));
    for (int row = 0; row < num_rows; ++row)
      for (int i = columns; i < device_columns; ++i) REQUIRE(device.at(row, i) == canary);
    for (int i = 0; i < device_columns; ++i) REQUIRE(device.at(num_rows, i) == canary);
  }
  CHECK(most > Config::threads);  // of a CTA
  CHECK(num_lost > 0);
}

TEST_CASE("changes of sequences behind the fill are not sent, and an entry that changed twice has its last value") {
  BatchTables tables({.max_seqs = num_rows, .max_blocks_per_seq = columns, .block_size = block_size});
  const TableVersion seen = tables.changes().version();
  Random random(2);
  for (int i = 0; i < 3; ++i) tables.add(some_blocks(random, 2), 4, 1);
  tables.clear();
  const std::vector<BlockId> last{BlockId{5}, BlockId{6}, BlockId{7}};
  tables.add(last, 6, 1);
  const auto changes = list_of(*tables.changes().since(seen), tables);
  CHECK(changes.size() == 7);  // two added, two erased, three added
  for (const ChangedEntry& change : changes) {
    CHECK(change.sequence == 0);
    CHECK(change.block_id == 5 + change.column);
  }
  DeviceTable device;
  device.apply(changes);
  CHECK(device.at(0, 2) == 7);
  CHECK(device.at(0, 3) == canary);
  CHECK(device.at(1, 0) == canary);
}

TEST_CASE("an entry that lies outside the table is an error of the library") {
  DeviceTable device;
  CHECK_THROWS_AS(device.apply({{num_rows, 0, 1}}), AssertionFailed);
  CHECK_THROWS_AS(device.apply({{0, device_columns, 1}}), AssertionFailed);
  CHECK(device.at(1, 0) == canary);
}
