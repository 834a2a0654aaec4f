// Changed entries of block tables, into the copy of the tables in device memory.
//
//   grid    x: changes, Config::threads in a CTA
//   thread  writes one entry
//
// Bytes: 12 of a change, read over the bus from pinned host memory where they wait, and the 4 of its entry.
#pragma once

#include <cstdint>
#include <span>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

struct ChangedEntry {
  std::int32_t sequence, column, block_id;
};

struct ChangesConfig {
  static constexpr int threads = 128;
};

/// Writes the present values of `entries` (of TableChanges: sequence * columns + column) to `to`, which has room for as
/// many, and returns how many that are: entries of sequences behind `block_ids` are left out.
inline std::int64_t list_changes(std::span<const std::int64_t> entries,
                                 const View<const std::int32_t, 2, Space::host>& block_ids, ChangedEntry* to) {
  const std::int64_t columns = block_ids.extents[1];
  std::int64_t count = 0;
  for (const std::int64_t entry : entries) {
    const std::int64_t sequence = entry / columns, column = entry % columns;
    if (sequence >= block_ids.extents[0]) continue;
    to[count++] = {static_cast<std::int32_t>(sequence), static_cast<std::int32_t>(column), block_ids(sequence, column)};
  }
  return count;
}

/// An entry that is listed twice has the same value twice: the order of writes does not matter.
template <class Config>
__global__ void __launch_bounds__(Config::threads)
    changes_apply_kernel(const View<const ChangedEntry, 1, Space::device> changes,
                         const View<std::int32_t, 2, Space::device> block_ids) {
  const std::int64_t i = std::int64_t{blockIdx.x} * Config::threads + threadIdx.x;
  if (i >= changes.extents[0]) return;
  const ChangedEntry change = changes(i);
  PAGEDKV_ASSERT(change.sequence >= 0 && change.sequence < block_ids.extents[0]);
  PAGEDKV_ASSERT(change.column >= 0 && change.column < block_ids.extents[1]);
  block_ids(change.sequence, change.column) = change.block_id;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
