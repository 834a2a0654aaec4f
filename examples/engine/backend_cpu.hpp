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
#include "engine/files/model_config.hpp"
#include "engine/gemm.hpp"
#include "engine/language_model.hpp"
#include "engine/rope.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/storage/block_swap.hpp"
#include "pagedkv/storage/kv_layout.hpp"
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
        sliding_window_(config.sliding_window),
        frequencies_(rope_frequencies(config)),
        pool_(layout(config, options, options.num_blocks)),
        swapped_(layout(config, options, std::max(1, options.num_host_blocks))),
        threads_(options.num_threads),
        logits_(rows(options.max_logit_rows, config.vocab)) {}

  Matrix matrix(std::span<const float> values, int rows, int cols) const { return {values, rows, cols}; }
  Vector vector(std::span<const float> values) const { return {values.begin(), values.end()}; }
  Rows rows(int num_rows, int num_cols) {
    std::vector<float>& values =
        memory_.emplace_back(static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(num_cols));
    return pagedkv::dense_view(values.data(), {num_rows, num_cols});
  }
  Rows residual(int num_rows, int num_cols) { return rows(num_rows, num_cols); }

  void swap_out(std::span<const pagedkv::BlockPair> blocks) { move_blocks(blocks, pool_.layers(), swapped_.layers()); }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) { move_blocks(blocks, swapped_.layers(), pool_.layers()); }

  StepRows begin(const Batch& batch) {
    batch_ = &batch;
    pagedkv::cpu::copy_blocks(batch.plan, pool_);
    turns_.clear();
    for (const std::int32_t position : batch.positions)
      for (const float frequency : frequencies_) {
        const float angle = static_cast<float>(position) * frequency;
        turns_.push_back({std::cos(angle), std::sin(angle)});
      }
    return {.rows = batch.num_rows(), .logit_rows = static_cast<int>(batch.logit_rows.size())};
  }

  void embed(const Matrix& table, const Rows& out) const {
    for (std::int64_t row = 0; row < out.extents[0]; ++row)
      table.copy_row(batch_->tokens[static_cast<std::size_t>(row)], out.at(row, 0));
  }

  void rms_norm(const Rows& x, const Vector& gain, const Rows& out) const {
    for (std::int64_t row = 0; row < x.extents[0]; ++row) normalize(x.at(row, 0), gain, out.at(row, 0));
  }

  void add_rms_norm(const Rows& x, const Rows& y, const Vector& gain, const Rows& out) const {
    add(x, y);
    rms_norm(x, gain, out);
  }

  void matmul(const Rows& x, const Matrix& w, const Rows& out) {
    // Multiply-adds: some 10 us of one core, against some 5 to wake another.
    constexpr std::int64_t worth_waking = 1 << 19;
    if (x.extents[0] * w.rows() * w.cols() < worth_waking)
      engine::matmul(x, w, out, pagedkv::cpu::InlineExecutor{});
    else
      engine::matmul(x, w, out, threads_);
  }

  void rope_and_store(int layer, const Rows& qkv, const HeadParams<Vector>& params) {
    const pagedkv::KvView<float, space> kv = pool_.layer(layer);
    const std::int64_t dim = kv.k.extents[3], kv_heads = kv.k.extents[1], q_heads = qkv.extents[1] / dim - 2 * kv_heads;
    const auto heads = [&](std::int64_t first, std::int64_t num_heads) {
      return Heads{.data = qkv.data + first * dim,
                   .extents = {qkv.extents[0], num_heads, dim},
                   .strides = {qkv.strides[0], dim, 1}};
    };
    const Heads q = heads(0, q_heads), k = heads(q_heads, kv_heads);
    if (!params.bias.empty()) add_to_each_row(qkv, params.bias);
    if (!params.q_norm.empty()) normalize_heads(q, params.q_norm);
    if (!params.k_norm.empty()) normalize_heads(k, params.k_norm);
    turn(q);
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
    if (sliding_window_ > 0)
      pagedkv::cpu::attend(problem, pagedkv::SlidingWindow{.window = sliding_window_}, threads_);
    else
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

  void logits(const Rows& x, const Matrix& w) {
    Rows out = logits_;
    out.extents[0] = x.extents[0];
    matmul(x, w, out);
  }

  std::span<const float> host_logits() const {
    return {logits_.data, batch_->logit_rows.size() * static_cast<std::size_t>(logits_.extents[1])};
  }

  std::string device() const {
    const int n = threads_.num_threads();
    return "CPU, float32, " + std::to_string(n) + (n == 1 ? " thread" : " threads");
  }

 private:
  using Layers = pagedkv::KvLayers<float>;

  static pagedkv::KvLayout layout(const ModelConfig& config, const ModelOptions& options, int num_blocks) {
    return {.num_layers = config.num_layers,
            .num_blocks = num_blocks,
            .kv_heads = config.kv_heads,
            .block_size = options.block_size,
            .head_dim = config.head_dim};
  }

  static void move_blocks(std::span<const pagedkv::BlockPair> blocks, const Layers& source, const Layers& destination) {
    pagedkv::validate_swap(blocks, source, destination);
    const Layers from = pagedkv::blocks_as_rows(source), to = pagedkv::blocks_as_rows(destination);
    const auto move = [](const pagedkv::BlockPair& pair, const auto& rows, const auto& out) {
      const float* const block = rows.at(to_index(pair.source), 0, 0, 0);
      std::copy_n(block, rows.extents[3], out.at(to_index(pair.destination), 0, 0, 0));
    };
    for (int i = 0; i < from.num_layers; ++i)
      for (const pagedkv::BlockPair& pair : blocks) {
        move(pair, from.layer(i).k, to.layer(i).k);
        move(pair, from.layer(i).v, to.layer(i).v);
      }
  }

  struct Turn {
    float cos, sin;
  };

  // Zhang and Sennrich 2019, arXiv:1910.07467: out = in / rms(in) * gain, [gain.size()] each. out may be in.
  void normalize(const float* in, const Vector& gain, float* out) const {
    double sum = 0;
    for (std::size_t i = 0; i < gain.size(); ++i) sum += static_cast<double>(in[i]) * static_cast<double>(in[i]);
    const float scale = 1 / std::sqrt(static_cast<float>(sum / static_cast<double>(gain.size())) + rms_eps_);
    for (std::size_t i = 0; i < gain.size(); ++i) out[i] = in[i] * scale * gain[i];
  }

  void normalize_heads(const Heads& x, const Vector& gain) const {
    for (std::int64_t row = 0; row < x.extents[0]; ++row)
      for (std::int64_t head = 0; head < x.extents[1]; ++head) normalize(x.at(row, head, 0), gain, x.at(row, head, 0));
  }

  static void add_to_each_row(const Rows& x, const Vector& values) {
    for (std::int64_t row = 0; row < x.extents[0]; ++row)
      for (std::size_t i = 0; i < values.size(); ++i) x.at(row, 0)[i] += values[i];
  }

  // Su et al. 2021, arXiv:2104.09864, in the layout of Hugging Face's checkpoints: element i turns with the one half a
  // head behind it.
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
  int sliding_window_;                     // 0: none
  std::vector<float> frequencies_;         // [head_dim / 2], radians a position
  pagedkv::KvPool<float> pool_, swapped_;  // swapped_: what was pushed out of the pool
  pagedkv::cpu::ThreadExecutor threads_;
  std::deque<std::vector<float>> memory_;  // of the activations; a deque never moves them
  Rows logits_;                            // [max_logit_rows, vocab]
  const Batch* batch_ = nullptr;           // of the forward pass that is running
  std::vector<Turn> turns_;                // [rows, head_dim / 2]
};

}  // namespace engine
