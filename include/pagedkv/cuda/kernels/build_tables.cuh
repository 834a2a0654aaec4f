// Block tables of rows of different lengths, one behind the other (CSR), to the padded rows that attention reads.
//
//   grid    x: sequence
//   CTA     copies its sequence's ids; thread 0 writes the length
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// pagedkv::RaggedTables in device memory.
struct RaggedTablesView {
  View<const std::int32_t, 1, Space::device> q_begin;         // [num_seqs + 1]; empty: one query each
  View<const std::int32_t, 1, Space::device> kv_begin;        // [num_seqs + 1], into kv_block_ids
  View<const std::int32_t, 1, Space::device> kv_block_ids;    // [at least kv_begin[num_seqs]]
  View<const std::int32_t, 1, Space::device> last_block_len;  // [num_seqs], 1 .. block_size; not read where no block is
};

/// Device memory that the caller owns, for tables built there.
struct TablesStorage {
  View<std::int32_t, 2, Space::device> block_ids;    // [num_seqs or more, max_blocks_per_seq]
  View<std::int32_t, 1, Space::device> kv_len;       // [num_seqs or more]
  View<std::int32_t, 1, Space::device> query_begin;  // [num_seqs + 1 or more]; may be empty where q_begin is given
};

struct TablesConfig {
  static constexpr int threads = 128;
};

/// Rows that are longer than their place are cut: a bound was broken, and nobody's memory shall pay.
template <class Config>
__global__ void __launch_bounds__(Config::threads)
    ragged_tables_kernel(const RaggedTablesView ragged, const TablesStorage tables, const int block_size) {
  const int sequence = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int begin = ragged.kv_begin(sequence), num_given = ragged.kv_begin(sequence + 1) - begin;
  const int num_blocks = min(num_given, static_cast<int>(tables.block_ids.extents[1]));
  PAGEDKV_ASSERT(num_blocks == num_given);
  for (int i = thread; i < num_blocks; i += Config::threads)
    tables.block_ids(sequence, i) = ragged.kv_block_ids(begin + i);
  if (thread != 0) return;
  const int last_len = num_blocks < num_given ? block_size : ragged.last_block_len(sequence);
  tables.kv_len(sequence) = num_blocks > 0 ? (num_blocks - 1) * block_size + last_len : 0;
  if (!ragged.q_begin.empty()) return;
  if (sequence == 0) tables.query_begin(0) = 0;
  tables.query_begin(sequence + 1) = sequence + 1;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
