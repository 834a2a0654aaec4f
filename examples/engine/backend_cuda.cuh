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

#include "engine/bad_input.hpp"
#include "engine/cublas.cuh"
#include "engine/language_model.hpp"
#include "engine/model_config.hpp"
#include "engine/ops.cuh"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/staging.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/workspace.cuh"

namespace engine {

/// All memory is taken when it is made. Everything is enqueued; only `logits` waits.
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

  /// Throws BadInput for a head_dim that no kernel here was compiled for, CudaError where the GPU's memory runs out.
  CudaBackend(const ModelConfig& config, const ModelOptions& options)
      : rms_eps_(checked(config).rms_eps),
        max_rows_(options.max_rows),
        stream_(make_stream()),
        cublas_(stream_.get()),
        workspace_(workspace_options(config, options)),
        inputs_(sizeof(std::int32_t) * (2 * size(options.max_rows) + size(options.max_logit_rows)), 2),
        pool_({.num_layers = config.num_layers,
               .num_blocks = options.num_blocks,
               .kv_heads = config.kv_heads,
               .block_size = options.block_size,
               .head_dim = config.head_dim}),
        logits_(residual(options.max_logit_rows, config.vocab)),
        host_logits_(size(options.max_logit_rows) * size(config.vocab)) {
    std::vector<float> frequencies;
    for (int i = 0; i < config.head_dim / 2; ++i)
      frequencies.push_back(static_cast<float>(std::pow(config.rope_theta, -2.0 * i / config.head_dim)));
    frequencies_ = vector(frequencies);
  }

  Matrix matrix(std::span<const float> values, int rows, int cols) const {
    std::vector<Element> rounded(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), pagedkv::from_float<Element>);
    return {.values = to_device<Element>(rounded), .rows = rows, .cols = cols};
  }
  Vector vector(std::span<const float> values) const { return to_device(values); }
  Rows rows(int num_rows, int num_cols) { return take<Element>(num_rows, num_cols); }
  Residual residual(int num_rows, int num_cols) { return take<Sum>(num_rows, num_cols); }

  void begin(const Batch& batch) {
    pagedkv::require(batch.num_rows() <= max_rows_, "CudaBackend::begin: rows, at most", max_rows_, batch.num_rows());
    const auto num_logit_rows = static_cast<std::int64_t>(batch.logit_rows.size());
    pagedkv::require(num_logit_rows <= logits_.extents[0], "CudaBackend::begin: logit rows, at most",
                     logits_.extents[0], num_logit_rows);
    num_live_rows_ = batch.num_live_rows();
    auto* const host = reinterpret_cast<std::int32_t*>(inputs_.fill(stream_.get()));
    std::copy(batch.tokens.begin(), batch.tokens.end(), host);
    std::copy(batch.positions.begin(), batch.positions.end(), host + max_rows_);
    std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), host + 2 * max_rows_);
    inputs_.upload(sizeof(std::int32_t) * (2 * size(max_rows_) + batch.logit_rows.size()), stream_.get());
    tables_ = workspace_.upload(batch.tables, stream_.get());
    step_ = workspace_.upload(batch.plan, stream_.get());
    pagedkv::cuda::copy_blocks(step_, pool_, stream_.get());
  }

  void embed(const Matrix& table, const Residual& out) const {
    launch(ops::row_gather_kernel<Element>, out, table.view(), input(0, out.extents[0]), out);
  }

  void rms_norm(const Residual& x, const Vector& gain, const Rows& out) const {
    launch(ops::rms_norm_kernel<Element>, out, x, list(gain), rms_eps_, out);
  }

  void matmul(const Rows& x, const Matrix& w, const Rows& out) const { cublas_.matmul<Element>(x, w.view(), out); }

  void rope(const Heads& x) const {
    launch(ops::head_turn_kernel<Element>, x, x, input(max_rows_, x.extents[0]), list(frequencies_));
  }

  void store_kv(int layer, const Heads& k, const Heads& v) {
    pagedkv::cuda::store_kv(step_, pool_.layer(layer), k, v, stream_.get());
  }

  void attend(int layer, Heads q, Heads out) {
    q.extents[0] = out.extents[0] = num_live_rows_;
    const pagedkv::AttentionProblem<space, Element> problem{.q = q,
                                                            .kv = pool_.layer(layer),
                                                            .tables = tables_,
                                                            .out = out,
                                                            .lse = {},
                                                            .scale = 1 / std::sqrt(static_cast<float>(q.extents[2]))};
    pagedkv::cuda::attend(pagedkv::cuda::HeadDims<64, 128>{}, problem, pagedkv::Causal{}, workspace_, stream_.get());
  }

  void silu_mul(const Rows& gate, const Rows& up) const { launch(ops::gate_multiply_kernel<Element>, gate, gate, up); }
  void add(const Residual& x, const Rows& y) const { launch(ops::row_add_kernel<Element>, x, x, y); }

  void gather(const Residual& x, const Residual& out) const {
    launch(ops::row_gather_kernel<Sum>, out, x, input(2 * std::int64_t{max_rows_}, out.extents[0]), out);
  }

  std::span<const float> logits(const Rows& x, const Matrix& w) {
    Residual out = logits_;
    out.extents[0] = x.extents[0];
    cublas_.matmul<float>(x, w.view(), out);
    const std::size_t count = static_cast<std::size_t>(out.extents[0] * out.extents[1]);
    using pagedkv::cuda::check;
    check(cudaMemcpyAsync(host_logits_.data(), out.data, count * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
          "logits");
    check(cudaStreamSynchronize(stream_.get()), "logits");
    return {host_logits_.data(), count};
  }

  std::string device() const {
    int device = 0;
    cudaDeviceProp properties{};
    pagedkv::cuda::check(cudaGetDevice(&device), "device");
    pagedkv::cuda::check(cudaGetDeviceProperties(&properties, device), "device");
    return std::string(properties.name) + ", bfloat16";
  }

 private:
  struct DestroyStream {
    void operator()(cudaStream_t stream) const { static_cast<void>(cudaStreamDestroy(stream)); }
  };
  using Stream = std::unique_ptr<CUstream_st, DestroyStream>;

  static std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

  static const ModelConfig& checked(const ModelConfig& config) {
    if (config.head_dim != 64 && config.head_dim != 128)
      throw BadInput("config.json: head_dim on the GPU", "64 or 128 (any even one with --backend cpu)",
                     std::to_string(config.head_dim));
    return config;
  }

  static Stream make_stream() {
    cudaStream_t stream = nullptr;
    pagedkv::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    return Stream(stream);
  }

  // Partials: two tiles of 16 packed rows for each of the CTAs that any GPU has room for.
  static pagedkv::cuda::WorkspaceOptions workspace_options(const ModelConfig& config, const ModelOptions& options) {
    return {.max_seqs = options.max_seqs,
            .max_blocks_per_seq = options.max_blocks_per_seq,
            .max_tokens = options.max_rows,
            .max_copies = options.max_rows,
            .max_partials = 1 << 14,
            .head_dim_v = config.head_dim};
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
    const auto& memory = memory_.emplace_back(sizeof(T) * size(num_rows) * size(num_cols));
    return pagedkv::dense_view<space>(reinterpret_cast<T*>(memory.data()), {num_rows, num_cols});
  }

  static ops::Device<const float, 1> list(const Vector& values) {
    return pagedkv::dense_view<space>(values.data(), {static_cast<std::int64_t>(values.size())});
  }

  // Integers of the batch on the device: tokens at 0, positions at max_rows_, logit rows at 2 * max_rows_.
  ops::Device<const std::int32_t, 1> input(std::int64_t begin, std::int64_t count) const {
    const auto* const integers = reinterpret_cast<const std::int32_t*>(inputs_.device());
    return pagedkv::dense_view<space>(integers + begin, {count});
  }

  template <class... Parameters, class View, class... Arguments>
  void launch(void (*kernel)(Parameters...), const View& rows, const Arguments&... arguments) const {
    ops::launch_rows(kernel, rows.extents[0], stream_.get(), arguments...);
  }

  float rms_eps_;
  int max_rows_;
  Stream stream_;
  Cublas cublas_;
  pagedkv::cuda::Workspace workspace_;
  pagedkv::cuda::StagedArray inputs_;  // tokens [max_rows], positions [max_rows], logit rows [max_logit_rows]
  pagedkv::cuda::KvPool<Element> pool_;
  std::vector<Array<std::byte>> memory_;  // of the activations
  Residual logits_;                       // [max_logit_rows, vocab]
  pagedkv::cuda::PinnedArray<float> host_logits_;
  Vector frequencies_;  // [head_dim / 2], radians a position
  // Of the batch that is being computed:
  pagedkv::cuda::StepView step_;
  pagedkv::TablesView<pagedkv::Space::device> tables_;
  int num_live_rows_ = 0;
};

}  // namespace engine
