// One case of the prefill benchmark: the batch on the device, the check of what is computed, the burst, the counters.
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/kv_memory.cuh"
#include "support/lengths.hpp"
#include "support/prefill_burst.cuh"
#include "support/prefill_entry.cuh"
#include "support/prefill_gemm.cuh"
#include "support/prefill_peers.hpp"
#include "support/prefill_report.hpp"
#include "support/prefill_shapes.hpp"
#include "support/reference.cuh"
#include "support/statistics.hpp"

namespace bench {

/// What all cases share; set before the first.
struct PrefillRun {
  PrefillPeers peers;
  std::string cublaslt;    // a file, or "": the system's
  double sustained_s = 0;  // 0: bursts
  bool any_case_failed = false;
  std::map<std::string, double> first;  // FLOP/s of the first row of each shape

  static PrefillRun& instance() {
    static PrefillRun run;
    return run;
  }
};

/// Device memory that all cases share, allocated once: queries, outputs, scratch. K and V are KvMemory's.
class PrefillMemory {
 public:
  static constexpr std::int64_t max_q_elements = std::int64_t{16384} * 32 * 256;  // of a call

  static PrefillMemory& instance() {
    static PrefillMemory memory;
    return memory;
  }

  /// The queries of a set, random numbers. Sets share them where there are more than fit.
  const pagedkv::bf16* q(int set, std::int64_t q_elements) const {
    const std::int64_t fitting = static_cast<std::int64_t>(q_.size()) / q_elements;
    return q_.data() + set % fitting * q_elements;
  }
  pagedkv::bf16* out() const { return out_.data(); }
  pagedkv::cuda::Workspace& workspace() { return workspace_; }
  Burst& burst() { return burst_; }

 private:
  PrefillMemory()
      : q_(3 * static_cast<std::size_t>(max_q_elements)),
        out_(static_cast<std::size_t>(max_q_elements)),
        workspace_({.max_seqs = 1,
                    .max_blocks_per_seq = 1,
                    .max_tokens = 1,
                    .max_copies = 1,
                    .max_partials = 1 << 17,
                    .head_dim_v = 256}) {
    fill_normal(q_.data(), q_.size(), 3);
  }

  pagedkv::cuda::DeviceArray<pagedkv::bf16> q_, out_;
  pagedkv::cuda::Workspace workspace_;
  Burst burst_;
};

namespace detail {

/// found[0] becomes 1 where any of `size` elements is NaN.
template <class T>
__global__ void find_nan_kernel(const T* data, std::int64_t size, int* found) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size; i += stride)
    if (isnan(pagedkv::to_float(data[i]))) *found = 1;
}

template <class T>
pagedkv::cuda::DeviceArray<T> to_device(const std::vector<T>& from) {
  pagedkv::cuda::DeviceArray<T> to(from.size());
  check(cudaMemcpy(to.data(), from.data(), to.size_bytes(), cudaMemcpyHostToDevice), "PrefillBatch");
  return to;
}

inline pagedkv::View<const std::int32_t, 1, pagedkv::Space::device> view(
    const pagedkv::cuda::DeviceArray<std::int32_t>& array) {
  return pagedkv::dense_view<pagedkv::Space::device>(static_cast<const std::int32_t*>(array.data()),
                                                     {static_cast<std::int64_t>(array.size())});
}

}  // namespace detail

/// A case's problems: tables and lengths of its own, everything else of the shared memory.
template <int HeadDim>
class PrefillBatch {
 public:
  explicit PrefillBatch(const PrefillCase& c)
      : shape_(c.shape),
        num_sets_(num_prefill_sets(c.shape, Burst::calls)),
        width_(pagedkv::ceil_div(c.shape.kv_len, c.block_size())) {
    problem_.kv = KvMemory::instance().view<pagedkv::bf16>(
        {.kv_heads = shape_.kv_heads, .block_size = c.block_size(), .head_dim = HeadDim});
    const std::int64_t blocks_of_set = std::int64_t{shape_.num_seqs} * width_;
    pagedkv::require(blocks_of_set <= problem_.kv.num_blocks(), "prefill benchmark: blocks of a case, at most",
                     problem_.kv.num_blocks(), blocks_of_set);
    pagedkv::require(shape_.q_elements() <= PrefillMemory::max_q_elements, "prefill benchmark: elements of q, at most",
                     PrefillMemory::max_q_elements, shape_.q_elements());
    host_ids_ = shuffled_sets(num_sets_, blocks_of_set, problem_.kv.num_blocks(), 5);
    std::vector<std::int32_t> begin;
    for (int s = 0; s <= shape_.num_seqs; ++s) begin.push_back(s * shape_.q_len);
    block_ids_ = detail::to_device(host_ids_);
    query_begin_ = detail::to_device(begin);
    kv_len_ = detail::to_device(std::vector<std::int32_t>(static_cast<std::size_t>(shape_.num_seqs), shape_.kv_len));
    problem_.out = rows(PrefillMemory::instance().out(), shape_.num_tokens());
    problem_.scale = 1 / std::sqrt(static_cast<float>(HeadDim));
    problem_.tables.kv_len = detail::view(kv_len_);
    problem_.tables.query_begin = detail::view(query_begin_);
    problem_.tables.max_q_len = shape_.q_len;
    problem_.tables.max_kv_len = shape_.kv_len;
  }

  int last_set() const { return num_sets_ - 1; }

  /// The problem of call `call`; the sets rotate.
  PrefillProblem problem(int call) const {
    const int set = call % num_sets_;
    PrefillProblem problem = problem_;
    problem.q = rows(PrefillMemory::instance().q(set, shape_.q_elements()), shape_.num_tokens());
    const std::int32_t* const ids = block_ids_.data() + table_row(set, 0);
    problem.tables.block_ids = pagedkv::dense_view<pagedkv::Space::device>(ids, {shape_.num_seqs, width_});
    return problem;
  }

  /// Relative L2 distance of problem(set).out from the truth over some of its rows, every head; NaN where any element
  /// of the whole output is, e.g. left as poison() made it. A row is checked as a batch of its own would be: one
  /// query, whose newest key is the last that the row sees.
  double relative_error(int set) const {
    constexpr std::int64_t max_keys = std::int64_t{1} << 22;  // of the slow reference
    if (has_nan()) return std::nan("");
    const std::vector<SampledRow> sampled = sampled_rows(shape_, max_keys, 11);
    const auto row_size = static_cast<std::size_t>(shape_.q_heads) * HeadDim;
    const pagedkv::cuda::DeviceArray<pagedkv::bf16> q(sampled.size() * row_size), out(sampled.size() * row_size);
    const PrefillProblem whole = problem(set);
    std::vector<std::int32_t> ids, kv_len;
    for (std::size_t i = 0; i < sampled.size(); ++i) {
      const auto [sequence, query] = sampled[i];
      const std::size_t row =
          static_cast<std::size_t>(sequence) * static_cast<std::size_t>(shape_.q_len) + static_cast<std::size_t>(query);
      copy_row(q.data() + i * row_size, whole.q.data + row * row_size, row_size);
      copy_row(out.data() + i * row_size, whole.out.data + row * row_size, row_size);
      kv_len.push_back(shape_.causal ? shape_.kv_len - shape_.q_len + query + 1 : shape_.kv_len);
      const auto own = host_ids_.begin() + static_cast<std::ptrdiff_t>(table_row(set, sequence));
      ids.insert(ids.end(), own, own + width_);
    }
    const auto row_ids = detail::to_device(ids), row_kv_len = detail::to_device(kv_len);
    const auto num_rows = static_cast<std::int64_t>(sampled.size());
    PrefillProblem alone = whole;
    alone.q = rows(static_cast<const pagedkv::bf16*>(q.data()), num_rows);
    alone.out = rows(out.data(), num_rows);
    alone.tables.kv_len = detail::view(row_kv_len);
    alone.tables.block_ids = pagedkv::dense_view<pagedkv::Space::device>(
        static_cast<const std::int32_t*>(row_ids.data()), {num_rows, width_});
    return bench::relative_error<HeadDim>(alone, 1, static_cast<int>(num_rows));
  }

 private:
  template <class T>
  pagedkv::View<T, 3, pagedkv::Space::device> rows(T* data, std::int64_t count) const {
    return pagedkv::dense_view<pagedkv::Space::device>(data, {count, shape_.q_heads, HeadDim});
  }
  /// Where the block table of a sequence begins.
  std::size_t table_row(int set, int sequence) const {
    return (static_cast<std::size_t>(set) * static_cast<std::size_t>(shape_.num_seqs) +
            static_cast<std::size_t>(sequence)) *
           static_cast<std::size_t>(width_);
  }
  static void copy_row(pagedkv::bf16* to, const pagedkv::bf16* from, std::size_t size) {
    check(cudaMemcpyAsync(to, from, size * sizeof *to, cudaMemcpyDeviceToDevice), "PrefillBatch");
  }
  bool has_nan() const {
    const auto found = detail::to_device(std::vector<int>{0});
    detail::find_nan_kernel<<<2048, 256>>>(problem_.out.data, shape_.q_elements(), found.data());
    int any = 0;
    check(cudaMemcpy(&any, found.data(), sizeof any, cudaMemcpyDeviceToHost), "PrefillBatch");
    return any != 0;
  }

  PrefillShape shape_;
  int num_sets_, width_;
  std::vector<std::int32_t> host_ids_;  // [num_sets, num_seqs, width]
  pagedkv::cuda::DeviceArray<std::int32_t> block_ids_, query_begin_, kv_len_;
  PrefillProblem problem_;
};

/// Checks and times one case; the row goes to the table, the counters to Google Benchmark.
template <int HeadDim>
void run_prefill_case(benchmark::State& state, const PrefillCase& c) try {
  constexpr double tolerance = 1e-2;  // bf16 outputs are 2e-3 to 4e-3 away from the truth
  PrefillRun& run = PrefillRun::instance();
  PrefillMemory& memory = PrefillMemory::instance();
  const PrefillBatch<HeadDim> batch(c);
  const auto call = [&](int i, cudaStream_t stream) {
    enqueue_prefill<HeadDim>(batch.problem(i), c.shape.causal, c.path, memory.workspace(), stream);
  };
  PrefillRow row;
  row.name = c.name();
  row.flops = c.shape.flops();

  poison(batch.problem(0));
  call(batch.last_set(), memory.burst().stream());
  check(cudaStreamSynchronize(memory.burst().stream()), "prefill benchmark");
  row.error = batch.relative_error(batch.last_set());
  if (!(row.error < tolerance))
    throw std::runtime_error("wrong result, relative L2 error " + std::to_string(row.error));

  row.call = memory.burst().seconds(call);
  const Gemm* const gemm = Gemm::instance(run.cublaslt);
  const auto product = [&](int i, cudaStream_t stream) { gemm->enqueue(i, stream); };
  Spread of_gemm{};
  if (gemm != nullptr) of_gemm = memory.burst().seconds(product);
  if (run.sustained_s > 0) {
    row.call = spread_of({memory.burst().sustained_seconds(run.sustained_s, row.call.median, call)});
    if (gemm != nullptr)
      of_gemm = spread_of({memory.burst().sustained_seconds(run.sustained_s, of_gemm.median, product)});
  }
  if (gemm != nullptr) row.gemm = Gemm::flops / of_gemm.median;
  row.first = run.first.try_emplace(c.shape.name(), row.speed()).first->second;
  if (run.sustained_s == 0) {  // the peers' figures are of bursts
    const std::string shape = c.shape.name();
    row.contiguous = c.path == PrefillPath::sm80 ? run.peers.find(shape, "fa2") : run.peers.best_contiguous(shape);
    row.block16 = run.peers.best_block16(shape);
  }
  report(row);
  for (auto _ : state) state.SetIterationTime(row.call.median);
  for (const auto& [name, value] : row.counters()) state.counters[name] = value;
} catch (const std::exception& error) {
  PrefillRun::instance().any_case_failed = true;
  std::printf("%-49s FAILED: %s\n", c.name().c_str(), error.what());
  std::fflush(stdout);
  state.SkipWithError(error.what());
}

}  // namespace bench
