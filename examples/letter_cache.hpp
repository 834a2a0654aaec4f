// LetterCache: a toy model's cache for the examples; its "keys" are letters, so what a block table names can be read as text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/storage/kv_pool.hpp"

class LetterCache {
 public:
  LetterCache(int num_blocks, int block_size)
      : pool_({.num_blocks = num_blocks, .kv_heads = 1, .block_size = block_size, .head_dim = 1}) {}

  /// One step of an engine with one layer: copies of shared tails, then a row of K and V per new letter, in the order of the
  /// appends; then the step is committed. Returns the number of copies.
  int run(pagedkv::StepPlan& step, std::string_view letters) {
    std::vector<float> rows(letters.begin(), letters.end());
    const auto view = pagedkv::dense_view(rows.data(), {step.num_rows(), 1, 1});  // [num_rows, kv_heads, head_dim]
    const int num_copies = static_cast<int>(step.copies().size());
    pagedkv::cpu::copy_blocks(step, pool_);
    pagedkv::cpu::store_kv(step, pool_.layer(0), view, view);
    step.commit();
    return num_copies;
  }

  /// What an attention kernel would find behind the sequence's block table.
  std::string read(const pagedkv::Sequence& sequence) {
    const auto keys = pool_.layer(0).k;  // [num_blocks, kv_heads, block_size, head_dim]
    std::string text;
    for (int position = 0; position < sequence.size(); ++position) {
      const pagedkv::Slot slot = sequence.table().slot(position);
      text += static_cast<char>(keys(slot / keys.extents[2], 0, slot % keys.extents[2], 0));
    }
    return text;
  }

 private:
  pagedkv::KvPool<float> pool_;
};
