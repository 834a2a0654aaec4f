// Workspace: the only scratch memory of the CUDA kernels, and the way of a step's integers to the device.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cache/table_changes.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/kernels/apply_changes.cuh"
#include "pagedkv/cuda/kernels/partials.cuh"
#include "pagedkv/cuda/kernels/prefill_schedule.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/staging.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// A StepPlan on the device. Behind the fill, copies have no rows and slots are dead.
struct StepView {
  View<const BlockCopy, 1, Space::device> copies;  // [num_copies]
  View<const Slot, 1, Space::device> slots;        // [num_rows]
};

/// Capacities; nothing grows later. Device memory: 4 * max_seqs * max_blocks_per_seq bytes of tables, 8 * max_tokens of
/// slots, 8 * max_partials * (head_dim_v + 2.5) of partials; pinned host memory: num_buffers times tables and slots.
struct WorkspaceOptions {
  int max_seqs = 256;
  int max_blocks_per_seq = 1024;
  int max_tokens = 8192;     // rows that one step stores
  int max_copies = 1024;     // block copies of one step
  int max_partials = 32768;  // of (query row, query head, split): a call with more lets one CTA take all keys of a row
  int head_dim_v = 256;      // the largest in use
  int num_buffers = 2;       // uploads that may be in flight before the host waits
};

/// Belongs to the device that was current when it was made, and to one stream at a time: calls that share a workspace
/// must be ordered. Making one allocates and synchronises; using one does neither (a host that is num_buffers uploads
/// ahead waits for the oldest). Addresses never change, so a captured graph stays valid and sees each new upload; so
/// does every view that an earlier upload returned: enqueue what reads one batch before uploading the next, or use two.
class Workspace {
 public:
  /// Throws InvalidArgument on a capacity below 1, CudaError where memory runs out.
  explicit Workspace(const WorkspaceOptions& options)
      : options_(checked(options)),
        device_(this_device()),
        tables_(table_bytes(options), options.num_buffers),
        step_(step_bytes(options), options.num_buffers),
        outputs_(size(options.max_partials) * size(round_up(options.head_dim_v, 4))),
        softmax_(size(options.max_partials)),
        arrivals_(size(options.max_partials)),
        awaited_outputs_((size(options.max_partials) + AwaitedPartials::slack) * size(round_up(options.head_dim_v, 4)),
                         absent & 0xff),
        awaited_softmax_(size(options.max_partials) + AwaitedPartials::slack, absent & 0xff),
        prefill_counters_(1) {
    cudaFuncAttributes unused;  // asking loads the kernel, for which the first upload would else wait
    check(cudaFuncGetAttributes(&unused, changes_apply_kernel<ChangesConfig>), "workspace: load");
  }

  const WorkspaceOptions& options() const { return options_; }
  const DeviceInfo& device() const { return device_; }

  /// Copies block tables and lengths to the device, stream-ordered; the host may change its own at once. Sequences
  /// behind the fill get no queries and no keys; their ids, like all that no kernel reads (see TablesView), may be left
  /// of earlier batches. Throws InvalidArgument, before anything is enqueued, if the batch exceeds the capacities or
  /// the stream captures a graph.
  TablesView<Space::device> upload(const TablesView<Space::host>& tables, cudaStream_t stream) {
    auto* const block_ids = reinterpret_cast<std::int32_t*>(fill_lengths(tables, stream));
    for (std::int64_t s = 0; s < tables.num_seqs(); ++s)
      for (std::int64_t i = 0; i < tables.block_ids.extents[1]; ++i)
        block_ids[s * options_.max_blocks_per_seq + i] = tables.block_ids(s, i);
    return send(tables, size(tables.num_seqs()) * row_bytes(), stream);
  }

  /// The same for a batch that comes step after step: where the last upload of tables was of this batch too, only the
  /// entries that have changed since, and all lengths. Whole where they are too many, or the batch has forgotten them.
  TablesView<Space::device> upload(const BatchTables& batch, cudaStream_t stream) {
    const TablesView<Space::host> tables = batch.view();
    const auto changes = batch.changes().since(on_device_);
    const bool is_whole = !changes || changes->size() * sizeof(ChangedEntry) > size(tables.num_seqs()) * row_bytes();
    const auto uploaded = is_whole ? upload(tables, stream) : upload_changes(tables, *changes, stream);
    on_device_ = batch.changes().version();
    return uploaded;
  }

  /// What the last upload of tables sent to the device.
  std::size_t last_upload_bytes() const { return last_upload_bytes_; }

  /// What to capture a graph with: all max_seqs rows, at the addresses that every upload fills. Replays may bring any
  /// lengths up to the stated bounds.
  TablesView<Space::device> tables(int max_q_len, int max_kv_len) const {
    return tables_view(options_.max_seqs, max_q_len, max_kv_len);
  }

  /// Copies a step's block copies and slots to the device, like the tables.
  StepView upload(const StepPlan& step, cudaStream_t stream) {
    const auto copies = step.copies();
    const auto slots = step.slots();
    require(copies.size() <= size(options_.max_copies), "workspace: copies of a step, at most", options_.max_copies,
            copies.size());
    require(slots.size() <= size(options_.max_tokens), "workspace: rows of a step, at most", options_.max_tokens,
            slots.size());
    std::byte* const data = step_.fill(stream);
    auto* const to_slots = reinterpret_cast<Slot*>(data);
    std::fill(std::copy(slots.begin(), slots.end(), to_slots), to_slots + options_.max_tokens, dead_slot);
    auto* const to_copies = reinterpret_cast<BlockCopy*>(to_slots + options_.max_tokens);
    const BlockCopy no_copy{BlockId::none, BlockId::none, 0};
    std::fill(std::copy(copies.begin(), copies.end(), to_copies), to_copies + options_.max_copies, no_copy);
    step_.upload(step_bytes(options_), stream);
    return step_view(static_cast<std::int64_t>(copies.size()), static_cast<std::int64_t>(slots.size()));
  }

  /// What to capture a graph with: max_copies copies and `num_rows` slots, of which the last upload filled a part.
  StepView step(int num_rows) const {
    require(num_rows >= 0 && num_rows <= options_.max_tokens, "workspace: rows of a step, at most", options_.max_tokens,
            num_rows);
    return step_view(options_.max_copies, num_rows);
  }

  /// For launchers: where splits wait to be merged.
  Partials partials() const {
    const std::int64_t capacity = options_.max_partials, columns = round_up(options_.head_dim_v, 4);
    return {.outputs = dense_view<Space::device>(outputs_.data(), {capacity, columns}),
            .softmax = dense_view<Space::device>(softmax_.data(), {capacity}),
            .arrivals = dense_view<Space::device>(arrivals_.data(), {capacity})};
  }

  /// For launchers: where pieces are awaited.
  AwaitedPartials awaited_partials() const {
    const std::int64_t capacity = options_.max_partials, columns = round_up(options_.head_dim_v, 4);
    return {.outputs = dense_view<Space::device>(awaited_outputs_.data(), {capacity * columns}),
            .softmax = dense_view<Space::device>(awaited_softmax_.data(), {capacity})};
  }

  /// For launchers: what the CTAs of a prefill take their tiles by.
  PrefillCounters* prefill_counters() const { return prefill_counters_.data(); }

 private:
  static constexpr std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

  static const WorkspaceOptions& checked(const WorkspaceOptions& options) {
    const auto at_least_1 = [](int value, std::string_view what) { require(value >= 1, what, "at least 1", value); };
    at_least_1(options.max_seqs, "workspace: max_seqs");
    at_least_1(options.max_blocks_per_seq, "workspace: max_blocks_per_seq");
    at_least_1(options.max_tokens, "workspace: max_tokens");
    at_least_1(options.max_copies, "workspace: max_copies");
    at_least_1(options.max_partials, "workspace: max_partials");
    at_least_1(options.head_dim_v, "workspace: head_dim_v");
    return options;
  }
  static std::size_t length_bytes(const WorkspaceOptions& options) {
    return (2 * size(options.max_seqs) + 1) * sizeof(std::int32_t);
  }
  static std::size_t table_bytes(const WorkspaceOptions& options) {
    return length_bytes(options) + size(options.max_seqs) * size(options.max_blocks_per_seq) * sizeof(std::int32_t);
  }
  std::size_t row_bytes() const { return size(options_.max_blocks_per_seq) * sizeof(std::int32_t); }
  static std::size_t step_bytes(const WorkspaceOptions& options) {
    return size(options.max_tokens) * sizeof(Slot) + size(options.max_copies) * sizeof(BlockCopy);
  }

  // Checks the batch and writes its lengths to a staging buffer; returns the place behind them. From here on the device
  // follows no batch, until an upload has succeeded.
  std::byte* fill_lengths(const TablesView<Space::host>& tables, cudaStream_t stream) {
    const std::int64_t num_seqs = tables.num_seqs(), width = tables.block_ids.extents[1];
    require(num_seqs <= options_.max_seqs, "workspace: sequences, at most", options_.max_seqs, num_seqs);
    require(width <= options_.max_blocks_per_seq, "workspace: blocks of a sequence, at most",
            options_.max_blocks_per_seq, width);
    std::byte* const data = tables_.fill(stream);
    on_device_ = {};
    auto* const kv_len = reinterpret_cast<std::int32_t*>(data);
    auto* const query_begin = kv_len + options_.max_seqs;
    query_begin[0] = 0;
    for (std::int64_t s = 0; s < options_.max_seqs; ++s) {
      kv_len[s] = s < num_seqs ? tables.kv_len(s) : 0;
      query_begin[s + 1] = s < num_seqs ? tables.query_begin(s + 1) : query_begin[s];
    }
    return data + length_bytes(options_);
  }

  // The copy of the lengths goes behind the kernel: a Launch::overlap_previous directly behind it would read the tables
  // too early, and behind a copy it does not.
  TablesView<Space::device> upload_changes(const TablesView<Space::host>& tables, std::span<const std::int64_t> entries,
                                           cudaStream_t stream) {
    auto* const changes = reinterpret_cast<ChangedEntry*>(fill_lengths(tables, stream));
    const std::int64_t count = list_changes(entries, tables.block_ids, changes);
    if (count > 0) {
      auto* const block_ids = reinterpret_cast<std::int32_t*>(tables_.device() + length_bytes(options_));
      const auto num_ctas = static_cast<unsigned>(ceil_div<std::int64_t>(count, ChangesConfig::threads));
      launch(changes_apply_kernel<ChangesConfig>, {.grid = dim3(num_ctas), .threads = ChangesConfig::threads},
             Launch::after_previous, stream, "upload: launch",
             dense_view<Space::device>(static_cast<const ChangedEntry*>(changes), {count}),
             dense_view<Space::device>(block_ids, {options_.max_seqs, options_.max_blocks_per_seq}));
    }
    const auto uploaded = send(tables, 0, stream);
    last_upload_bytes_ += size(count) * sizeof(ChangedEntry);
    return uploaded;
  }

  // Enqueues the copy of the lengths and of `id_bytes` behind them.
  TablesView<Space::device> send(const TablesView<Space::host>& tables, std::size_t id_bytes, cudaStream_t stream) {
    last_upload_bytes_ = length_bytes(options_) + id_bytes;
    tables_.upload(last_upload_bytes_, stream);
    return tables_view(tables.num_seqs(), tables.max_q_len, tables.max_kv_len);
  }

  TablesView<Space::device> tables_view(std::int64_t num_seqs, int max_q_len, int max_kv_len) const {
    const auto* const kv_len = reinterpret_cast<const std::int32_t*>(tables_.device());
    const auto* const query_begin = kv_len + options_.max_seqs;
    const auto* const block_ids = query_begin + options_.max_seqs + 1;
    return {.block_ids = dense_view<Space::device>(block_ids, {num_seqs, options_.max_blocks_per_seq}),
            .kv_len = dense_view<Space::device>(kv_len, {num_seqs}),
            .query_begin = dense_view<Space::device>(query_begin, {num_seqs + 1}),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len};
  }

  StepView step_view(std::int64_t num_copies, std::int64_t num_rows) const {
    const auto* const slots = reinterpret_cast<const Slot*>(step_.device());
    const auto* const copies = reinterpret_cast<const BlockCopy*>(slots + options_.max_tokens);
    return {.copies = dense_view<Space::device>(copies, {num_copies}),
            .slots = dense_view<Space::device>(slots, {num_rows})};
  }

  WorkspaceOptions options_;
  DeviceInfo device_;
  StagedArray tables_;  // kv_len [max_seqs], query_begin [max_seqs + 1], block_ids [max_seqs, max_blocks_per_seq]
  StagedArray step_;    // slots [max_tokens], copies [max_copies]
  DeviceArray<float> outputs_;  // [max_partials, head_dim_v in steps of 16 bytes]
  DeviceArray<OnlineSoftmax> softmax_;
  DeviceArray<unsigned> arrivals_;
  DeviceArray<float> awaited_outputs_;  // as outputs_
  DeviceArray<OnlineSoftmax> awaited_softmax_;
  DeviceArray<PrefillCounters> prefill_counters_;
  TableVersion on_device_;  // the batch and its changes that tables_ holds
  std::size_t last_upload_bytes_ = 0;
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
