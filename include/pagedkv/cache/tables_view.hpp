// TablesView: the flat block tables and lengths of a batch, as kernels read them; integers only, on host or device.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv {
inline namespace v0 {

/// The batch of one attention call. Queries are ragged: sequence s owns the rows query_begin[s] .. query_begin[s + 1]
/// of q and out; its newest key belongs to its last query. What is not read may hold any bits: ids behind
/// ceil(kv_len / block_size), ids that no variant can see (BlockId::none), rows of sequences with kv_len 0.
template <Space S>
struct TablesView {
  View<const std::int32_t, 2, S> block_ids;    // [num_seqs, max_blocks_per_seq]
  View<const std::int32_t, 1, S> kv_len;       // [num_seqs], keys including those of this call's queries
  View<const std::int32_t, 1, S> query_begin;  // [num_seqs + 1], non-decreasing, starts at 0
  std::int32_t max_q_len = 0;                  // upper bound of query_begin[s + 1] - query_begin[s]
  std::int32_t max_kv_len = 0;                 // upper bound of kv_len[s]

  PAGEDKV_HD int num_seqs() const { return static_cast<int>(kv_len.extents[0]); }
  PAGEDKV_HD int q_len(int sequence) const { return query_begin(sequence + 1) - query_begin(sequence); }
};

}  // namespace v0
}  // namespace pagedkv
