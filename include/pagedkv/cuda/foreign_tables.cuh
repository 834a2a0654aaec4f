// TablesView of block tables that other libraries' code has made in device memory, in the two dialects of BatchTables.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/kernels/build_tables.cuh"
#include "pagedkv/cuda/launch.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// pagedkv::PaddedTables in device memory.
struct PaddedTablesView {
  View<const std::int32_t, 2, Space::device> block_tables;  // [num_seqs, max_blocks_per_seq]
  View<const std::int32_t, 1, Space::device> context_lens;  // [num_seqs]
  View<const std::int32_t, 1, Space::device> query_begin;   // [num_seqs + 1]
};

/// What the host knows of lengths that are on the device: upper bounds.
struct TablesBounds {
  int max_q_len = 1;
  int max_kv_len = 0;
};

/// The dialect of vLLM is TablesView's own: the same arrays under other names; nothing is launched or copied. For one
/// query a sequence query_begin is any array that holds 0, 1, .., num_seqs; it need not change from step to step.
/// Throws InvalidArgument where sizes disagree.
inline TablesView<Space::device> view_tables(const PaddedTablesView& padded, const TablesBounds& bounds) {
  const std::int64_t num_seqs = padded.context_lens.extents[0];
  require(padded.block_tables.extents[0] == num_seqs, "view_tables: block_tables rows", num_seqs,
          padded.block_tables.extents[0]);
  require(padded.query_begin.extents[0] == num_seqs + 1, "view_tables: query_begin entries", num_seqs + 1,
          padded.query_begin.extents[0]);
  return {.block_ids = padded.block_tables,
          .kv_len = padded.context_lens,
          .query_begin = padded.query_begin,
          .max_q_len = bounds.max_q_len,
          .max_kv_len = bounds.max_kv_len};
}

/// The dialect of FlashInfer: fills `storage` and returns a view of it. Enqueues one kernel; can be captured, and a
/// replay reads the arrays anew; sequences behind the fill have kv_begin[s + 1] == kv_begin[s]. The next attention call
/// of the stream must not be launched with Launch::overlap_previous: it would read the tables too early. Throws
/// InvalidArgument, before launching, where sizes disagree; offsets and ids are the caller's word.
inline TablesView<Space::device> build_tables(const RaggedTablesView& ragged, const TablesStorage& storage,
                                              int block_size, const TablesBounds& bounds, cudaStream_t stream) {
  const std::int64_t num_seqs = ragged.last_block_len.extents[0];
  const bool has_queries = !ragged.q_begin.empty();
  require(block_size >= 1, "build_tables: block_size", "at least 1", block_size);
  require(ragged.kv_begin.extents[0] == num_seqs + 1, "build_tables: kv_begin entries", num_seqs + 1,
          ragged.kv_begin.extents[0]);
  require(storage.block_ids.extents[0] >= num_seqs, "build_tables: storage.block_ids rows, at least", num_seqs,
          storage.block_ids.extents[0]);
  require(storage.kv_len.extents[0] >= num_seqs, "build_tables: storage.kv_len entries, at least", num_seqs,
          storage.kv_len.extents[0]);
  const std::int64_t num_keys = storage.block_ids.extents[1] * block_size;
  require(bounds.max_kv_len <= num_keys, "build_tables: max_kv_len, at most what a row can name,", num_keys,
          bounds.max_kv_len);
  if (has_queries)
    require(ragged.q_begin.extents[0] == num_seqs + 1, "build_tables: q_begin entries", num_seqs + 1,
            ragged.q_begin.extents[0]);
  else
    require(storage.query_begin.extents[0] >= num_seqs + 1, "build_tables: storage.query_begin entries, at least",
            num_seqs + 1, storage.query_begin.extents[0]);
  if (num_seqs > 0) {
    launch(ragged_tables_kernel<TablesConfig>,
           {.grid = dim3(static_cast<unsigned>(num_seqs)), .threads = TablesConfig::threads}, Launch::after_previous,
           stream, "build_tables: launch", ragged, storage, block_size);
  }
  TablesView<Space::device> tables{.block_ids = storage.block_ids,
                                   .kv_len = storage.kv_len,
                                   .query_begin = has_queries ? ragged.q_begin : storage.query_begin,
                                   .max_q_len = has_queries ? bounds.max_q_len : 1,
                                   .max_kv_len = bounds.max_kv_len};
  tables.block_ids.extents[0] = tables.kv_len.extents[0] = num_seqs;
  tables.query_begin.extents[0] = num_seqs + 1;
  return tables;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
