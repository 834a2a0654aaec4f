// One sequence, computed in chunks, straight through a model of the embedded weights: no scheduler, no prefix cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "engine/language_model.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "support/austen.hpp"

namespace pagedkv_test {

/// A model for chunks of up to `max_chunk` tokens, every one of which may yield logits.
inline engine::ModelOptions one_sequence_options(int max_chunk) {
  return {.num_blocks = 128,
          .block_size = 16,
          .max_rows = max_chunk,
          .max_blocks_per_seq = 128,
          .max_logit_rows = max_chunk};
}

/// Logits behind each of `tokens`, [tokens, vocab]. `forward(const Batch&)` is that of a model made with `options`.
template <class Forward>
std::vector<float> sequence_logits(const std::vector<std::int32_t>& tokens, const engine::ModelOptions& options,
                                   Forward&& forward) {
  pagedkv::BlockAllocator blocks{{.num_blocks = options.num_blocks, .block_size = options.block_size}};
  pagedkv::Sequence sequence{blocks};
  std::vector<float> logits;
  const auto max_chunk = static_cast<std::size_t>(options.max_rows);
  for (std::size_t first = 0; first < tokens.size(); first += max_chunk) {
    const std::size_t count = std::min(max_chunk, tokens.size() - first);
    std::vector<std::int32_t> rows(count), positions(count);
    std::iota(rows.begin(), rows.end(), 0);
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(first));
    pagedkv::StepPlan plan;
    pagedkv::require(sequence.append(static_cast<int>(count), plan), "sequence_logits: tokens, at most",
                     options.num_blocks * options.block_size, tokens.size());
    pagedkv::BatchTables tables(
        {.max_seqs = 1, .max_blocks_per_seq = options.max_blocks_per_seq, .block_size = options.block_size});
    tables.add(sequence, static_cast<int>(count));
    const std::span<const float> chunk = forward(engine::Batch{.tokens = std::span(tokens).subspan(first, count),
                                                               .positions = positions,
                                                               .plan = plan,
                                                               .tables = tables.view(),
                                                               .logit_rows = rows});
    logits.insert(logits.end(), chunk.begin(), chunk.end());
    plan.commit();
  }
  return logits;
}

inline std::span<const float> row_of(const std::vector<float>& logits, std::size_t row) {
  const auto vocab = static_cast<std::size_t>(austen_config().vocab);
  return std::span(logits).subspan(row * vocab, vocab);
}

}  // namespace pagedkv_test
