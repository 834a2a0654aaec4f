// Backend: the dozen operations a decoder is made of. The model is written once over them; a machine is a type that has
// them.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/files/model_config.hpp"
#include "engine/language_model.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"

namespace engine {

/// Rows of activations, row-major, perhaps some columns of a wider tensor.
template <class B>
using Rows = pagedkv::View<typename B::Element, 2, B::space>;

/// Rows of the residual stream, to which every layer adds a little: its element may be wider than that of activations.
template <class B>
using Residual = pagedkv::View<typename B::Sum, 2, B::space>;

/// Rows seen as heads: [rows, heads, head_dim].
template <class B>
using Heads = pagedkv::View<typename B::Element, 3, B::space>;

/// What a layer does to its queries and keys before they meet; empty where the model has none of it.
template <class Vector>
struct HeadParams {
  Vector bias;            // [(q_heads + 2 * kv_heads) * head_dim], added to q, k and v as they lie side by side
  Vector q_norm, k_norm;  // [head_dim], gains of an RMSNorm over each head (Qwen3)
};

/// How many rows a step computes: those of its batch, perhaps with dead ones behind them.
struct StepRows {
  int rows, logit_rows;
};

/// A back end computes one batch at a time: begin(batch), then operations on its rows, in order. Every view of
/// activations has as many rows as begin() said (or logit rows, behind `gather`). Nothing but `host_logits` waits for
/// the machine.
template <class B>
concept Backend =
    requires(B backend, const ModelConfig& config, const ModelOptions& options, const Batch& batch, int n,
             std::vector<float> values, typename B::Matrix matrix, typename B::Vector vector,
             const HeadParams<typename B::Vector>& head_params, Rows<B> rows, Residual<B> residual, Heads<B> heads) {
      typename B::Element;  // of activations, K and V
      typename B::Sum;      // of the residual stream
      { B::space } -> std::convertible_to<pagedkv::Space>;
      B(config, options);  // makes the KV pool

      { backend.matrix(values, n, n) } -> std::same_as<typename B::Matrix>;  // weights [rows, cols], row-major floats
      { backend.vector(values) } -> std::same_as<typename B::Vector>;
      { backend.rows(n, n) } -> std::same_as<Rows<B>>;          // memory for activations; lives as long as the back end
      { backend.residual(n, n) } -> std::same_as<Residual<B>>;  // the same for the residual stream

      { backend.begin(batch) } -> std::same_as<StepRows>;  // uploads; copies the plan's shared blocks
      backend.embed(matrix, residual);                     // out = the matrix's rows of the batch's tokens
      backend.rms_norm(residual, vector, rows);            // out = x / rms(x) * gain
      backend.add_rms_norm(residual, rows, vector, rows);  // x += y; out = x / rms(x) * gain; out may be y
      backend.matmul(rows, matrix, rows);                  // out = x transpose(w)
      // q, k and v side by side in one row: bias, norms, rotary embedding of q and k; then K and V of layer n into the
      // cache
      backend.rope_and_store(n, rows, head_params);
      backend.attend(n, heads, heads);     // causal, perhaps within a window, over the cache; q and out
      backend.silu_mul(rows, rows);        // gate = silu(gate) * up
      backend.add(residual, rows);         // x += y
      backend.gather(residual, residual);  // out = the batch's logit rows of x
      backend.logits(rows, matrix);        // x transpose(w), to memory of the back end
      { backend.host_logits() } -> std::same_as<std::span<const float>>;  // of the batch's logit rows; waits
      { backend.device() } -> std::same_as<std::string>;
    };

}  // namespace engine
