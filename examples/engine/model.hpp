// Model: the decoder of Llama (Touvron et al. 2023, arXiv:2302.13971), Mistral and Qwen over any Backend, one step of a
// mixed batch at a time.
#pragma once

#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend.hpp"
#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/language_model.hpp"

namespace engine {

template <Backend B>
class Model final : public LanguageModel {
 public:
  /// Reads and packs all weights. Throws BadInput where a tensor is missing, has another shape or would be left over.
  Model(const ModelConfig& config, const Checkpoint& checkpoint, const ModelOptions& options)
      : config_(config), max_logit_rows_(options.max_logit_rows), backend_(config, options) {
    std::set<std::string> used;
    const auto load = [&](const std::string& name, std::vector<std::int64_t> shape) {
      used.insert(name);
      return to_float(checkpoint.require_tensor(name, shape), name);
    };
    const auto norm = [&](const std::string& name) { return backend_.vector(load(name, {config.hidden})); };
    // Matrices that multiply the same input become one, their rows stacked.
    const auto append = [](std::vector<float>& values, const std::vector<float>& more) {
      values.insert(values.end(), more.begin(), more.end());
    };
    const auto matrix = [&](const std::vector<std::string>& names, const std::vector<int>& heights, int width) {
      std::vector<float> values;
      for (std::size_t i = 0; i < names.size(); ++i) append(values, load(names[i] + ".weight", {heights[i], width}));
      return backend_.matrix(values, std::accumulate(heights.begin(), heights.end(), 0), width);
    };
    const auto bias = [&](const std::vector<std::string>& names, const std::vector<int>& heights) {
      std::vector<float> values;
      for (std::size_t i = 0; i < names.size(); ++i) append(values, load(names[i] + ".bias", {heights[i]}));
      return backend_.vector(values);
    };

    const int q_width = config.q_heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
    embedding_ = matrix({"model.embed_tokens"}, {config.vocab}, config.hidden);
    if (!config.tie_embeddings) head_ = matrix({"lm_head"}, {config.vocab}, config.hidden);
    final_norm_ = norm("model.norm.weight");
    for (int i = 0; i < config.num_layers; ++i) {
      const std::string at = "model.layers." + std::to_string(i) + ".", attention = at + "self_attn.",
                        mlp = at + "mlp.";
      const std::vector<std::string> qkv{attention + "q_proj", attention + "k_proj", attention + "v_proj"};
      const std::vector<int> qkv_widths{q_width, kv_width, kv_width};
      HeadParams<typename B::Vector> heads;
      if (config.attention_bias) heads.bias = bias(qkv, qkv_widths);
      if (config.qk_norm) {
        heads.q_norm = backend_.vector(load(attention + "q_norm.weight", {config.head_dim}));
        heads.k_norm = backend_.vector(load(attention + "k_norm.weight", {config.head_dim}));
      }
      layers_.push_back({.attention_norm = norm(at + "input_layernorm.weight"),
                         .qkv = matrix(qkv, qkv_widths, config.hidden),
                         .heads = std::move(heads),
                         .attention_out = matrix({attention + "o_proj"}, {config.hidden}, q_width),
                         .mlp_norm = norm(at + "post_attention_layernorm.weight"),
                         .gate_up = matrix({mlp + "gate_proj", mlp + "up_proj"},
                                           {config.intermediate, config.intermediate}, config.hidden),
                         .down = matrix({mlp + "down_proj"}, {config.hidden}, config.intermediate)});
    }
    checkpoint.refuse_others(used);
    x_ = backend_.residual(options.max_rows, config.hidden);
    y_ = backend_.rows(options.max_rows, config.hidden);
    qkv_ = backend_.rows(options.max_rows, q_width + 2 * kv_width);
    attended_ = backend_.rows(options.max_rows, q_width);
    gate_up_ = backend_.rows(options.max_rows, 2 * config.intermediate);
    last_ = backend_.residual(options.max_logit_rows, config.hidden);
  }

  std::span<const float> forward(const Batch& batch) override {
    return forward(batch, [](int, const auto&) {});
  }

  /// `probe(i, x)` sees the residual stream: i = 0 behind the embedding, i + 1 behind layer i; and last, as num_layers
  /// + 1, the logit rows behind the final norm.
  template <class Probe>
  std::span<const float> forward(const Batch& batch, Probe&& probe) {
    compute(backend_.begin(batch), probe);
    return backend_.host_logits();
  }

  /// What lies between the back end's begin() and the logits in its memory: the same operations for every step of as
  /// many rows.
  template <class Probe>
  void compute(const StepRows& step, Probe&& probe) {
    const int rows = step.rows, heads = config_.q_heads;
    const Residual<B> x = first(x_, rows);
    const Rows<B> y = first(y_, rows), qkv = first(qkv_, rows), attended = first(attended_, rows);
    const Rows<B> gate_up = first(gate_up_, rows);
    const Heads<B> q = heads_of(qkv, 0, heads);
    const Rows<B> gate = columns(gate_up, 0), up = columns(gate_up, config_.intermediate);

    // [layers]
    backend_.embed(embedding_, x);
    for (int i = 0; i < config_.num_layers; ++i) {
      const Layer& layer = layers_[static_cast<std::size_t>(i)];
      if (i == 0)
        backend_.rms_norm(x, layer.attention_norm, y);
      else
        backend_.add_rms_norm(x, y, layer.attention_norm, y);
      probe(i, x);
      backend_.matmul(y, layer.qkv, qkv);
      backend_.rope_and_store(i, qkv, layer.heads);
      backend_.attend(i, q, heads_of(attended, 0, heads));
      backend_.matmul(attended, layer.attention_out, y);

      backend_.add_rms_norm(x, y, layer.mlp_norm, y);
      backend_.matmul(y, layer.gate_up, gate_up);
      backend_.silu_mul(gate, up);
      backend_.matmul(gate, layer.down, y);
    }
    backend_.add(x, y);
    probe(config_.num_layers, x);
    const Residual<B> last = first(last_, step.logit_rows);
    const Rows<B> normed = first(y_, step.logit_rows);
    backend_.gather(x, last);
    backend_.rms_norm(last, final_norm_, normed);
    probe(config_.num_layers + 1, normed);
    backend_.logits(normed, config_.tie_embeddings ? embedding_ : head_);
    // [layers]
  }

  void swap_out(std::span<const pagedkv::BlockPair> blocks) override {
    if constexpr (requires { backend_.swap_out(blocks); })
      backend_.swap_out(blocks);
    else
      LanguageModel::swap_out(blocks);
  }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) override {
    if constexpr (requires { backend_.swap_in(blocks); })
      backend_.swap_in(blocks);
    else
      LanguageModel::swap_in(blocks);
  }
  int max_logit_rows() const override { return max_logit_rows_; }

  std::int64_t kv_bytes_per_token() const override {
    return std::int64_t{2} * config_.num_layers * config_.kv_heads * config_.head_dim *
           static_cast<std::int64_t>(sizeof(typename B::Element));
  }
  std::string device() const override { return backend_.device(); }
  B& backend() { return backend_; }

 private:
  struct Layer {
    typename B::Vector attention_norm;
    typename B::Matrix qkv;
    HeadParams<typename B::Vector> heads;
    typename B::Matrix attention_out;
    typename B::Vector mlp_norm;
    typename B::Matrix gate_up, down;
  };

  template <class View>
  static View first(View view, int num_rows) {
    pagedkv::require(num_rows <= view.extents[0], "Model::forward: rows at most", view.extents[0], num_rows);
    view.extents[0] = num_rows;
    return view;
  }
  Rows<B> columns(Rows<B> view, int begin) const {
    view.data += begin;
    view.extents[1] = config_.intermediate;
    return view;
  }
  Heads<B> heads_of(Rows<B> view, int first_head, int num_heads) const {
    const std::int64_t dim = config_.head_dim;
    return {.data = view.data + first_head * dim,
            .extents = {view.extents[0], num_heads, dim},
            .strides = {view.strides[0], dim, 1}};
  }

  ModelConfig config_;
  int max_logit_rows_;
  B backend_;
  typename B::Matrix embedding_, head_;  // the head stays empty where it is the embedding
  typename B::Vector final_norm_;
  std::vector<Layer> layers_;
  Residual<B> x_, last_;
  Rows<B> y_, qkv_, attended_, gate_up_;
};

}  // namespace engine
