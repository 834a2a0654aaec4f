// One case of the decode benchmarks: the batch on the device, the check of what is computed, the replays, the counters.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/cold_read.cuh"
#include "support/decode_report.hpp"
#include "support/graph.cuh"
#include "support/kv_memory.cuh"
#include "support/lengths.hpp"
#include "support/reference.cuh"
#include "support/statistics.hpp"

namespace bench {

struct DecodeCase {
  std::string group;
  int q_heads, kv_heads;
  Lengths lengths;
  int q_len = 1;  // queries of each sequence, its newest keys
  int block_size = 16;
  pagedkv::KvOrder order = pagedkv::KvOrder::hnd;
  pagedkv::cuda::Launch launch = pagedkv::cuda::Launch::overlap_previous;
  bool batch_invariant = false;
  bool hot = false;     // always the same K and V, from L2 where they fit
  double seconds = 0.;  // 0: 21 replays; otherwise as many as take so long, e.g. to look at the power draw

  /// group/heads/lengths, then whatever is not usual.
  std::string name(int head_dim, const char* element) const {
    std::string text = group + "/" + std::to_string(q_heads) + "_" + std::to_string(kv_heads) + "/" + lengths.name;
    if (head_dim != 128) text += "/d" + std::to_string(head_dim);
    if (block_size != 16) text += "/block" + std::to_string(block_size);
    if (order == pagedkv::KvOrder::nhd) text += "/nhd";
    if (q_len != 1) text += "/q" + std::to_string(q_len);
    if (element != std::string("bf16")) text += std::string("/") + element;
    if (launch == pagedkv::cuda::Launch::after_previous) text += "/after_previous";
    if (batch_invariant) text += "/invariant";
    if (hot) text += "/hot";
    return text;
  }

  /// K and V, each read once.
  std::int64_t kv_bytes(int head_dim) const { return lengths.total() * kv_heads * head_dim * 2 * 2; }
};

template <class Element>
inline constexpr const char* element_name = "bf16";
template <>
inline constexpr const char* element_name<pagedkv::f16> = "f16";

/// A case's arrays on the device: block tables for as many calls as rotate, the rest once.
template <int HeadDim, class Element>
class DecodeBatch {
 public:
  using Problem = pagedkv::AttentionProblem<pagedkv::Space::device, Element>;

  explicit DecodeBatch(const DecodeCase& c)
      : num_calls_(num_rotating_sets(c.kv_bytes(HeadDim))),
        num_sets_(c.hot ? 1 : num_calls_),
        num_seqs_(c.lengths.num_seqs()),
        width_(pagedkv::ceil_div(c.lengths.longest(), c.block_size)),
        block_ids_(size(num_sets_) * size(num_seqs_) * size(width_)),
        kv_len_(size(num_seqs_)),
        query_begin_(size(num_seqs_) + 1),
        q_(size(num_seqs_) * size(c.q_len * c.q_heads) * HeadDim),
        out_(q_.size()) {
    problem_.kv = KvMemory::instance().view<Element>(
        {.kv_heads = c.kv_heads, .block_size = c.block_size, .head_dim = HeadDim, .order = c.order});
    upload(block_ids_, block_tables(c, problem_.kv.num_blocks()));
    upload(kv_len_, c.lengths.kv_len);
    std::vector<std::int32_t> begin(query_begin_.size());
    for (std::size_t s = 0; s < begin.size(); ++s) begin[s] = static_cast<std::int32_t>(s) * c.q_len;
    upload(query_begin_, begin);
    fill_normal(q_.data(), q_.size(), 3);
    const std::int64_t num_tokens = std::int64_t{num_seqs_} * c.q_len;
    problem_.q = pagedkv::dense_view<pagedkv::Space::device>(static_cast<const Element*>(q_.data()),
                                                             {num_tokens, c.q_heads, HeadDim});
    problem_.out = pagedkv::dense_view<pagedkv::Space::device>(out_.data(), {num_tokens, c.q_heads, HeadDim});
    problem_.scale = 1 / std::sqrt(static_cast<float>(HeadDim));
    problem_.tables.kv_len = view(kv_len_, num_seqs_);
    problem_.tables.query_begin = view(query_begin_, num_seqs_ + 1);
    problem_.tables.max_q_len = c.q_len;
    problem_.tables.max_kv_len = c.lengths.longest();
  }

  int num_calls() const { return num_calls_; }
  int last_set() const { return num_sets_ - 1; }

  /// The problem of call `call`.
  Problem problem(int call) const {
    Problem problem = problem_;
    const std::int32_t* const ids = block_ids_.data() + size(call % num_sets_) * size(num_seqs_) * size(width_);
    problem.tables.block_ids = pagedkv::dense_view<pagedkv::Space::device>(ids, {num_seqs_, width_});
    return problem;
  }

 private:
  static std::size_t size(int count) { return static_cast<std::size_t>(count); }

  static pagedkv::View<const std::int32_t, 1, pagedkv::Space::device> view(
      const pagedkv::cuda::DeviceArray<std::int32_t>& array, std::int64_t extent) {
    return pagedkv::dense_view<pagedkv::Space::device>(static_cast<const std::int32_t*>(array.data()), {extent});
  }

  static void upload(const pagedkv::cuda::DeviceArray<std::int32_t>& to, const std::vector<std::int32_t>& from) {
    check(cudaMemcpy(to.data(), from.data(), to.size_bytes(), cudaMemcpyHostToDevice), "DecodeBatch");
  }

  /// [num_sets, num_seqs, width]: blocks in random order, none in two sets while memory lasts; -1 behind a sequence's
  /// last.
  std::vector<std::int32_t> block_tables(const DecodeCase& c, std::int64_t num_blocks) const {
    std::int64_t blocks_of_set = 0;
    for (const int len : c.lengths.kv_len) blocks_of_set += pagedkv::ceil_div(len, c.block_size);
    pagedkv::require(blocks_of_set <= num_blocks, "decode benchmark: blocks of a case, at most", num_blocks,
                     blocks_of_set);
    const std::vector<std::int32_t> ids = shuffled_sets(num_sets_, blocks_of_set, num_blocks, 5);
    std::vector<std::int32_t> tables(block_ids_.size(), -1);
    auto next = ids.begin();
    auto row = tables.begin();
    for (int set = 0; set < num_sets_; ++set)
      for (const int len : c.lengths.kv_len) {
        const int num_own = pagedkv::ceil_div(len, c.block_size);
        std::copy(next, next + num_own, row);
        next += num_own;
        row += width_;
      }
    return tables;
  }

  int num_calls_, num_sets_, num_seqs_, width_;
  pagedkv::cuda::DeviceArray<std::int32_t> block_ids_, kv_len_, query_begin_;
  pagedkv::cuda::DeviceArray<Element> q_, out_;
  Problem problem_;
};

/// What is measured.
template <int HeadDim, class Problem>
void enqueue_decode(const Problem& problem, const DecodeCase& c, pagedkv::cuda::Workspace& workspace,
                    cudaStream_t stream) {
  pagedkv::cuda::decode<HeadDim>(problem, pagedkv::Causal{}, workspace, stream,
                                 {.launch = c.launch, .batch_invariant = c.batch_invariant});
}

/// Checks and times one case; the row goes to the table, the counters to Google Benchmark.
template <int HeadDim, class Element>
void run_decode_case(benchmark::State& state, const DecodeCase& c) try {
  constexpr double tolerance = 1e-2;    // bf16 outputs are about 2e-3 away from the truth
  constexpr int max_checked_seqs = 32;  // by the slow reference; all rows are looked at for NaN
  DecodeBatch<HeadDim, Element> batch(c);
  pagedkv::cuda::Workspace workspace({.max_seqs = c.lengths.num_seqs(),
                                      .max_blocks_per_seq = 1,
                                      .max_tokens = 1,
                                      .max_copies = 1,
                                      .max_partials = 1 << 17,
                                      .head_dim_v = HeadDim});
  const int num_rows = c.q_len * std::min(c.lengths.num_seqs(), max_checked_seqs);
  DecodeRow row;
  row.name = c.name(HeadDim, element_name<Element>);
  row.bytes = static_cast<double>(c.kv_bytes(HeadDim));
  row.kernel = pagedkv::cuda::explain(batch.problem(0), workspace);
  if (HeadDim == 128 && c.block_size == 16 && c.q_len == 1 && !c.hot)
    row.peer = peers().find(c.q_heads, c.kv_heads, c.lengths.name);

  poison(batch.problem(0));
  Graph graph(batch.num_calls(), [&](int call, cudaStream_t stream) {
    enqueue_decode<HeadDim>(batch.problem(call), c, workspace, stream);
  });
  row.error = relative_error<HeadDim>(batch.problem(0), c.q_len, num_rows);  // of the call before the capture
  if (row.error < tolerance) {
    poison(batch.problem(0));
    const double seconds = graph.seconds_per_call();
    row.error = relative_error<HeadDim>(batch.problem(batch.last_set()), c.q_len, num_rows);
    const double replays = c.seconds / (seconds * batch.num_calls());
    if (row.error < tolerance) {
      row.ceiling = ColdReads::instance().ceiling();
      row.floor = ColdReads::instance().seconds(c.kv_bytes(HeadDim), c.hot);
      row.call = spread_of(graph.samples(std::max(21, static_cast<int>(replays))));
    }
  }
  report(row);
  if (!(row.error < tolerance)) return state.SkipWithError("wrong result: the relative L2 error is too large");
  for (auto _ : state) state.SetIterationTime(row.call.median);
  state.SetLabel(row.kernel.substr(0, row.kernel.find(';')));
  for (const auto& [name, value] : row.counters()) state.counters[name] = value;
} catch (const std::exception& error) {
  report_failure(c.name(HeadDim, element_name<Element>), error.what());
  state.SkipWithError(error.what());
}

}  // namespace bench
