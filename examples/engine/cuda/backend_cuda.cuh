// CudaBackend: the decoder's operations on one GPU and one stream. Weights, activations, K and V are bf16; sums, the
// residual stream and logits are float.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda_graph.cuh"
#include "engine/backend.hpp"
#include "engine/bad_input.hpp"
#include "engine/cuda/attention.cuh"
#include "engine/cuda/cublas.cuh"
#include "engine/cuda/ops.cuh"
#include "engine/cuda/rope_store.cuh"
#include "engine/cuda/sampler.cuh"
#include "engine/cuda/step_size.hpp"
#include "engine/cuda/step_upload.cuh"
#include "engine/files/model_config.hpp"
#include "engine/language_model.hpp"
#include "engine/rope.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/swap.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/block_swap.hpp"
#include "pagedkv/storage/kv_layout.hpp"

namespace engine {

/// All memory is taken when it is made. Everything is enqueued; only `host_logits` waits. A step that only decodes is
/// padded with dead rows to one of a few sizes, so that a graph of its operations serves all steps of that size.
class CudaBackend {
  template <class T>
  using Array = pagedkv::cuda::DeviceArray<T>;

 public:
  using Element = pagedkv::bf16;
  using Sum = float;
  static constexpr pagedkv::Space space = pagedkv::Space::device;
  using Rows = ops::Device<Element>;
  using Residual = ops::Device<Sum>;
  using Heads = ops::Device<Element, 3>;
  using Vector = Array<float>;
  struct Matrix {
    Array<Element> values;
    int rows = 0, cols = 0;

    Rows view() const { return pagedkv::dense_view<space>(values.data(), {rows, cols}); }
  };

  /// Throws BadInput for a shape that no kernel here was made for, CudaError where the GPU's memory runs out.
  CudaBackend(const ModelConfig& config, const ModelOptions& options)
      : config_(checked(config)),
        max_padded_(std::min({options.max_rows, options.max_seqs, options.max_logit_rows})),
        max_keys_(options.max_blocks_per_seq * options.block_size),
        cublas_(stream_),
        workspace_({.max_seqs = 1,  // tables and slots come with StepUpload
                    .max_blocks_per_seq = 1,
                    .max_tokens = 1,
                    .max_copies = 1,
                    .max_partials = max_partials,
                    .head_dim_v = config.head_dim}),
        pool_(layout(config, options, options.num_blocks)),
        swapped_(layout(config, options, std::max(1, options.num_host_blocks))),
        block_size_(options.block_size),
        frequencies_(vector(rope_frequencies(config))),
        upload_(options,
                pagedkv::dense_view<space>(static_cast<const float*>(frequencies_.data()), {config.head_dim / 2})),
        choices_(index(std::max(options.max_seqs, options.max_logit_rows))),
        logits_(residual(options.max_logit_rows, pagedkv::round_up(config.vocab, ops::pack))),
        host_logits_(index(options.max_logit_rows) * index(config.vocab)) {
    logits_.extents[1] = config.vocab;
    pagedkv::cuda::check(cudaFuncSetAttribute(ops::choose_kernel<Sum>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              sizeof(ops::sampling::SharedMemory)),
                         "engine: shared memory");
  }

  Matrix matrix(std::span<const float> values, int rows, int cols) const {
    std::vector<Element> rounded(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), pagedkv::from_float<Element>);
    return {.values = to_device<Element>(rounded), .rows = rows, .cols = cols};
  }
  Vector vector(std::span<const float> values) const { return to_device(values); }
  Rows rows(int num_rows, int num_cols) { return take<Element>(num_rows, num_cols); }
  Residual residual(int num_rows, int num_cols) { return take<Sum>(num_rows, num_cols); }

  void swap_out(std::span<const pagedkv::BlockPair> blocks) {
    pagedkv::cuda::swap_blocks(blocks, pool_.layers(), swapped_.layers(), stream_);
  }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) {
    pagedkv::cuda::swap_blocks(blocks, swapped_.layers(), pool_.layers(), stream_);
  }

  StepRows begin(const Batch& batch) {
    num_logit_rows_ = static_cast<std::int64_t>(batch.logit_rows.size());
    if (only_decodes(batch)) return begin_padded(batch, batch.num_rows());
    const StepSize size{.rows = batch.num_rows(),
                        .seqs = batch.tables.num_seqs(),
                        .logit_rows = static_cast<int>(batch.logit_rows.size()),
                        .draws = static_cast<int>(batch.draws.size())};
    send(batch, size);
    is_padded_ = false;
    num_attending_ = batch.num_live_rows();
    tables_ = upload_.tables(size, batch.tables.max_q_len, batch.tables.max_kv_len);
    return {.rows = size.rows, .logit_rows = size.logit_rows};
  }

  /// A step of `num_rows` rows, all dead: to run or to capture what every step that only decodes has in common.
  StepRows begin_dead(int num_rows) {
    static constexpr std::int32_t zero = 0;
    const pagedkv::StepPlan plan;
    num_logit_rows_ = 0;
    const Batch nobody{.tokens = {},
                       .positions = {},
                       .plan = plan,
                       .tables = {.block_ids = {}, .kv_len = {}, .query_begin = pagedkv::dense_view(&zero, {1})},
                       .logit_rows = {}};
    return begin_padded(nobody, num_rows);
  }

  /// Does the step that was begun last only decode? Then the same operations serve every step of as many rows.
  bool is_padded() const { return is_padded_; }
  int max_padded_rows() const { return max_padded_; }

  void embed(const Matrix& table, const Residual& out) const {
    launch(ops::embed_kernel<Element>, out, table.view(), upload_.tokens(size_), newest(), out);
  }

  void rms_norm(const Residual& x, const Vector& gain, const Rows& out) const {
    launch(ops::add_rms_norm_kernel<Element>, out, x, Rows{}, gain.data(), config_.rms_eps, out);
  }
  void add_rms_norm(const Residual& x, const Rows& y, const Vector& gain, const Rows& out) const {
    launch(ops::add_rms_norm_kernel<Element>, out, x, y, gain.data(), config_.rms_eps, out);
  }

  void matmul(const Rows& x, const Matrix& w, const Rows& out) const { cublas_.matmul<Element>(x, w.view(), out); }

  void rope_and_store(int layer, const Rows& qkv, const HeadParams<Vector>& params) {
    const ops::RopeStore step{.qkv = qkv,
                              .bias = params.bias.data(),
                              .q_norm = params.q_norm.data(),
                              .k_norm = params.k_norm.data(),
                              .eps = config_.rms_eps,
                              .turns = upload_.turns(size_),
                              .slots = upload_.slots(size_),
                              .kv = pool_.layer(layer),
                              .block_size = block_size_,
                              .q_heads = config_.q_heads,
                              .kv_heads = config_.kv_heads};
    if (qkv.extents[0] == 0) return;
    pagedkv::cuda::with_head_dim(GpuHeadDims{}, config_.head_dim, "engine", [&](auto head_dim) {
      pagedkv::cuda::launch(ops::rope_store_kernel<head_dim.value>,
                            {.grid = dim3(static_cast<unsigned>(qkv.extents[0])), .threads = ops::rope_threads},
                            pagedkv::cuda::Launch::after_previous, stream_, "engine: launch", step);
    });
  }

  void attend(int layer, Heads q, Heads out) {
    q.extents[0] = out.extents[0] = num_attending_;
    const AttentionOnGpu problem{.q = q,
                                 .kv = pool_.layer(layer),
                                 .tables = tables_,
                                 .out = out,
                                 .lse = {},
                                 .scale = 1 / std::sqrt(static_cast<float>(q.extents[2]))};
    if (config_.sliding_window > 0)
      attend_window(problem, config_.sliding_window, workspace_, stream_);
    else
      attend_causal(problem, workspace_, stream_);
  }

  void silu_mul(const Rows& gate, const Rows& up) const { launch(ops::gate_multiply_kernel<Element>, gate, gate, up); }
  void add(const Residual& x, const Rows& y) const { launch(ops::row_add_kernel<Element>, x, x, y); }

  void gather(const Residual& x, const Residual& out) const {
    launch(ops::row_gather_kernel<Sum>, out, x, upload_.logit_rows(size_), out);
  }

  void logits(const Rows& x, const Matrix& w) const {
    Residual out = logits_;
    out.extents[0] = x.extents[0];
    cublas_.matmul<float>(x, w.view(), out);
  }

  /// Enqueues the choices of the step's draws from its logits.
  void choose() const {
    const auto draws = upload_.draws(size_);
    if (draws.extents[0] == 0) return;
    pagedkv::cuda::launch(ops::choose_kernel<Sum>,
                          {.grid = dim3(static_cast<unsigned>(draws.extents[0])),
                           .threads = ops::sampling::threads,
                           .shared_bytes = sizeof(ops::sampling::SharedMemory)},
                          pagedkv::cuda::Launch::after_previous, stream_, "engine: launch", logits_, draws,
                          pagedkv::dense_view<space>(choices_.data(), {draws.extents[0]}));
  }

  std::span<const float> host_logits() const {
    using pagedkv::cuda::check;
    const std::size_t row_bytes = index(logits_.extents[1]) * sizeof(float);
    if (num_logit_rows_ > 0)
      check(cudaMemcpy2DAsync(host_logits_.data(), row_bytes, logits_.data, index(logits_.strides[0]) * sizeof(float),
                              row_bytes, index(num_logit_rows_), cudaMemcpyDeviceToHost, stream_),
            "logits");
    stream_.wait();
    return {host_logits_.data(), index(num_logit_rows_ * logits_.extents[1])};
  }

  /// Device memory that is neither weights nor rows nor the pool.
  static std::size_t scratch_bytes(const ModelConfig& config, const ModelOptions& options) {
    const std::size_t partial_bytes = 8 * index(config.head_dim) + 20;  // WorkspaceOptions says so
    return Cublas::workspace_bytes + index(max_partials) * partial_bytes +
           2 * sizeof(std::int32_t) * index(options.max_seqs) * index(options.max_blocks_per_seq);
  }

  /// On the device: what the last step that chose has chosen.
  const Choice* choices() const { return choices_.data(); }
  const Stream& stream() const { return stream_; }

  std::string device() const {
    int device = 0;
    cudaDeviceProp properties{};
    pagedkv::cuda::check(cudaGetDevice(&device), "device");
    pagedkv::cuda::check(cudaGetDeviceProperties(&properties, device), "device");
    return std::string(properties.name) + ", bfloat16";
  }

 private:
  // Two tiles of 16 packed rows for each of the CTAs that any GPU has room for.
  static constexpr int max_partials = 1 << 14;

  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  static pagedkv::KvLayout layout(const ModelConfig& config, const ModelOptions& options, int num_blocks) {
    return {.num_layers = config.num_layers,
            .num_blocks = num_blocks,
            .kv_heads = config.kv_heads,
            .block_size = options.block_size,
            .head_dim = config.head_dim};
  }

  static const ModelConfig& checked(const ModelConfig& config) {
    const auto check = [](bool holds, const char* what, const std::string& expected, int found) {
      if (!holds) throw BadInput(what, expected, std::to_string(found));
    };
    check(config.head_dim == 64 || config.head_dim == 128, "config.json: head_dim on a GPU",
          "64 or 128 (any even one with --backend cpu)", config.head_dim);
    const auto check_width = [&](const char* what, int width) {
      check(width % ops::pack == 0 && width <= ops::max_width, what,
            "a multiple of " + std::to_string(ops::pack) + ", at most " + std::to_string(ops::max_width), width);
    };
    check_width("config.json: hidden_size on a GPU", config.hidden);
    check(config.intermediate % ops::pack == 0, "config.json: intermediate_size on a GPU",
          "a multiple of " + std::to_string(ops::pack), config.intermediate);
    check(config.vocab <= ops::max_sampled_vocab, "config.json: vocab_size on a GPU",
          "at most " + std::to_string(ops::max_sampled_vocab), config.vocab);
    return config;
  }

  // One row of each sequence, in their order, and memory for as many with dead rows behind them.
  bool only_decodes(const Batch& batch) const {
    const int num_seqs = batch.tables.num_seqs(), num_rows = batch.num_rows();
    if (num_rows == 0 || num_rows > max_padded_ || num_rows < num_seqs) return false;
    if (std::ssize(batch.logit_rows) > num_rows || std::ssize(batch.draws) > num_rows) return false;
    for (int s = 0; s < num_seqs; ++s)
      if (batch.tables.q_len(s) != 1) return false;
    return true;
  }

  StepRows begin_padded(const Batch& batch, int num_rows) {
    const int n = padded_step(num_rows, max_padded_);
    send(batch, {.rows = n, .seqs = n, .logit_rows = n, .draws = n});
    is_padded_ = true;
    num_attending_ = n;
    tables_ = upload_.tables(size_, 1, max_keys_);  // bounds that all such steps keep
    return {.rows = n, .logit_rows = n};
  }

  void send(const Batch& batch, const StepSize& size) {
    upload_.send(batch, size, stream_);
    size_ = size;
    pagedkv::cuda::copy_blocks(upload_.copies(), pool_, stream_);
  }

  ops::Device<const Choice, 1> newest() const {
    return pagedkv::dense_view<space>(static_cast<const Choice*>(choices_.data()),
                                      {static_cast<std::int64_t>(choices_.size())});
  }

  template <class T>
  static Array<T> to_device(std::span<const T> values) {
    Array<T> array(values.size());
    pagedkv::cuda::check(cudaMemcpy(array.data(), values.data(), array.size_bytes(), cudaMemcpyHostToDevice),
                         "weights");
    return array;
  }

  template <class T>
  ops::Device<T> take(int num_rows, int num_cols) {
    const auto& memory = memory_.emplace_back(sizeof(T) * index(num_rows) * index(num_cols));
    return pagedkv::dense_view<space>(reinterpret_cast<T*>(memory.data()), {num_rows, num_cols});
  }

  template <class... Parameters, class View, class... Arguments>
  void launch(void (*kernel)(Parameters...), const View& rows, const Arguments&... arguments) const {
    ops::launch_rows(kernel, rows.extents[0], rows.extents[1], stream_, arguments...);
  }

  ModelConfig config_;
  int max_padded_, max_keys_;
  Stream stream_;
  Cublas cublas_;
  pagedkv::cuda::Workspace workspace_;
  pagedkv::cuda::KvPool<Element> pool_;
  pagedkv::cuda::PinnedKvPool<Element> swapped_;  // what was pushed out of the pool
  pagedkv::Divisor block_size_;
  Vector frequencies_;  // [head_dim / 2], radians a position
  StepUpload upload_;
  Array<Choice> choices_;                 // of the last step that chose
  std::vector<Array<std::byte>> memory_;  // of the activations
  Residual logits_;                       // [max_logit_rows, vocab]
  pagedkv::cuda::PinnedArray<float> host_logits_;
  // Of the step that is being computed:
  StepSize size_;
  pagedkv::TablesView<pagedkv::Space::device> tables_;
  bool is_padded_ = false;
  int num_attending_ = 0;  // rows, those of sequences
  std::int64_t num_logit_rows_ = 0;
};

}  // namespace engine
