// CpuBackend: the decoder's operations in float32 on the cores of this machine. Same bits for any batch and any
// threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "engine/backend.hpp"
#include "engine/gemm.hpp"
#include "engine/language_model.hpp"
#include "engine/model_config.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace engine {

class CpuBackend {
 public:
  using Element = float;
  using Sum = float;
  static constexpr pagedkv::Space space = pagedkv::Space::host;
  using Matrix = PackedMatrix;
  using Vector = std::vector<float>;
  using Rows = pagedkv::View<float, 2>;
  using Heads = pagedkv::View<float, 3>;

  CpuBackend(const ModelConfig& config, const ModelOptions& options)
      : rms_eps_(config.rms_eps),
        pool_({.num_layers = config.num_layers,
               .num_blocks = options.num_blocks,
               .kv_heads = config.kv_heads,
               .block_size = options.block_size,
               .head_dim = config.head_dim}),
        threads_(options.num_threads),
        logits_(rows(options.max_logit_rows, config.vocab)) {
    for (int i = 0; i < config.head_dim / 2; ++i)
      frequencies_.push_back(static_cast<float>(std::pow(config.rope_theta, -2.0 * i / config.head_dim)));
  }

  Matrix matrix(std::span<const float> values, int rows, int cols) const { return {values, rows, cols}; }
  Vector vector(std::span<const float> values) const { return {values.begin(), values.end()}; }
  Rows rows(int num_rows, int num_cols) {
    std::vector<float>& values =
        memory_.emplace_back(static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(num_cols));
    return pagedkv::dense_view(values.data(), {num_rows, num_cols});
  }
  Rows residual(int num_rows, int num_cols) { return rows(num_rows, num_cols); }

  void begin(const Batch& batch) {
    batch_ = &batch;
    pagedkv::cpu::copy_blocks(batch.plan, pool_);
    turns_.clear();
    for (const std::int32_t position : batch.positions)
      for (const float frequency : frequencies_) {
        const float angle = static_cast<float>(position) * frequency;
        turns_.push_back({std::cos(angle), std::sin(angle)});
      }
  }

  void embed(const Matrix& table, const Rows& out) const {
    for (std::int64_t row = 0; row < out.extents[0]; ++row)
      table.copy_row(batch_->tokens[static_cast<std::size_t>(row)], out.at(row, 0));
  }

  // Zhang and Sennrich 2019, arXiv:1910.07467.
  void rms_norm(const Rows& x, const Vector& gain, const Rows& out) const {
    const std::int64_t width = x.extents[1];
    for (std::int64_t row = 0; row < x.extents[0]; ++row) {
      const float* in = x.at(row, 0);
      double sum = 0;
      for (std::int64_t i = 0; i < width; ++i) sum += static_cast<double>(in[i]) * static_cast<double>(in[i]);
      const float scale = 1 / std::sqrt(static_cast<float>(sum / static_cast<double>(width)) + rms_eps_);
      for (std::int64_t i = 0; i < width; ++i) out(row, i) = in[i] * scale * gain[static_cast<std::size_t>(i)];
    }
  }

  void add_rms_norm(const Rows& x, const Rows& y, const Vector& gain, const Rows& out) const {
    add(x, y);
    rms_norm(x, gain, out);
  }

  void matmul(const Rows& x, const Matrix& w, const Rows& out) {
    constexpr std::int64_t worth_waking =
        1 << 19;  // multiply-adds: some 10 us of one core, against some 5 to wake another
    if (x.extents[0] * w.rows() * w.cols() < worth_waking)
      engine::matmul(x, w, out, pagedkv::cpu::InlineExecutor{});
    else
      engine::matmul(x, w, out, threads_);
  }

  void rope_and_store(int layer, const Rows& qkv, const HeadParams<Vector>&) {
    const pagedkv::KvView<float, space> kv = pool_.layer(layer);
    const std::int64_t dim = kv.k.extents[3], kv_heads = kv.k.extents[1], q_heads = qkv.extents[1] / dim - 2 * kv_heads;
    const auto heads = [&](std::int64_t first, std::int64_t num_heads) {
      return Heads{
          .data = qkv.data + first * dim, .extents = {qkv.extents[0], num_heads, dim}, .strides = {qkv.strides[0], dim, 1}};
    };
    const Heads k = heads(q_heads, kv_heads);
    turn(heads(0, q_heads));
    turn(k);
    pagedkv::cpu::store_kv(batch_->plan, kv, k, heads(q_heads + kv_heads, kv_heads));
  }

  void attend(int layer, Heads q, Heads out) {
    q.extents[0] = out.extents[0] = batch_->num_live_rows();
    const pagedkv::AttentionProblem<pagedkv::Space::host, float> problem{
        .q = q,
        .kv = pool_.layer(layer),
        .tables = batch_->tables,
        .out = out,
        .lse = {},
        .scale = 1 / std::sqrt(static_cast<float>(q.extents[2]))};
    pagedkv::cpu::attend(problem, pagedkv::Causal{}, threads_);
  }

  // Shazeer 2020, arXiv:2002.05202: the gate of SwiGLU.
  void silu_mul(const Rows& gate, const Rows& up) const {
    for (std::int64_t row = 0; row < gate.extents[0]; ++row)
      for (std::int64_t i = 0; i < gate.extents[1]; ++i) {
        const float x = gate(row, i);
        gate(row, i) = x / (1 + std::exp(-x)) * up(row, i);
      }
  }

  void add(const Rows& x, const Rows& y) const {
    for (std::int64_t row = 0; row < x.extents[0]; ++row)
      for (std::int64_t i = 0; i < x.extents[1]; ++i) x(row, i) += y(row, i);
  }

  void gather(const Rows& x, const Rows& out) const {
    for (std::int64_t row = 0; row < out.extents[0]; ++row)
      std::copy_n(x.at(batch_->logit_rows[static_cast<std::size_t>(row)], 0), x.extents[1], out.at(row, 0));
  }

  std::span<const float> logits(const Rows& x, const Matrix& w) {
    Rows out = logits_;
    out.extents[0] = x.extents[0];
    matmul(x, w, out);
    return {out.data, static_cast<std::size_t>(out.extents[0] * out.extents[1])};
  }

  std::string device() const {
    const int n = threads_.num_threads();
    return "CPU, float32, " + std::to_string(n) + (n == 1 ? " thread" : " threads");
  }

 private:
  struct Turn {
    float cos, sin;
  };

  // Su et al. 2021, arXiv:2104.09864, in the layout of Hugging Face's checkpoints: element i turns with i + head_dim
  // / 2.
  void turn(const Heads& x) const {
    const std::int64_t half = x.extents[2] / 2;
    for (std::int64_t row = 0; row < x.extents[0]; ++row)
      for (std::int64_t head = 0; head < x.extents[1]; ++head) {
        float* values = x.at(row, head, 0);
        const Turn* turns = turns_.data() + row * half;
        for (std::int64_t i = 0; i < half; ++i) {
          const float a = values[i], b = values[i + half];
          values[i] = a * turns[i].cos - b * turns[i].sin;
          values[i + half] = b * turns[i].cos + a * turns[i].sin;
        }
      }
  }

  float rms_eps_;
  std::vector<float> frequencies_;  // [head_dim / 2], radians a position
  pagedkv::KvPool<float> pool_;
  pagedkv::cpu::ThreadExecutor threads_;
  std::deque<std::vector<float>> memory_;  // of the activations; a deque never moves them
  Rows logits_;                            // [max_logit_rows, vocab]
  const Batch* batch_ = nullptr;           // of the forward pass that is running
  std::vector<Turn> turns_;                // [rows, head_dim / 2]
};

}  // namespace engine
