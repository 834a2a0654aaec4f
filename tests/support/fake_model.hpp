// FakeModel: a language model whose next token is a hash of everything before it, read back through the block tables:
// one wrong slot, table entry or copy, and the text differs from the oracle's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "engine/language_model.hpp"
#include "pagedkv/core/error.hpp"

namespace pagedkv_test {

class FakeModel : public engine::LanguageModel {
 public:
  /// What one forward pass was asked to do, sequence by sequence.
  struct Pass {
    std::vector<int> q_len, kv_len;
    int num_rows = 0, num_logit_rows = 0;
  };

  FakeModel(int vocab, int num_blocks, int block_size, int num_host_blocks = 0, int max_logit_rows = 1 << 20)
      : vocab_(vocab),
        block_size_(block_size),
        max_logit_rows_(max_logit_rows),
        slots_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_size), -1),
        host_slots_(static_cast<std::size_t>(num_host_blocks) * static_cast<std::size_t>(block_size), -1) {}

  std::span<const float> forward(const engine::Batch& batch) override {
    for (const pagedkv::BlockCopy& copy : batch.plan.copies())
      for (int i = 0; i < copy.num_rows; ++i) at(copy.destination, i) = at(copy.source, i);
    const std::span<const pagedkv::Slot> slots = batch.plan.slots();
    pagedkv::require(std::ssize(slots) == batch.num_rows(), "FakeModel: slots", batch.num_rows(), std::ssize(slots));
    for (std::size_t row = 0; row < slots.size(); ++row)
      if (slots[row] >= 0) slots_[static_cast<std::size_t>(slots[row])] = batch.tokens[row];

    pagedkv::require(std::ssize(batch.logit_rows) <= max_logit_rows_, "FakeModel: logit rows", max_logit_rows_,
                     std::ssize(batch.logit_rows));
    Pass& pass = passes_.emplace_back();
    pass.num_rows = batch.num_rows();
    pass.num_logit_rows = static_cast<int>(batch.logit_rows.size());
    logits_.clear();
    auto wanted = batch.logit_rows.begin();
    for (int s = 0; s < batch.tables.num_seqs(); ++s) {
      const int q_len = batch.tables.q_len(s), kv_len = batch.tables.kv_len(s), begin = batch.tables.query_begin(s);
      pass.q_len.push_back(q_len);
      pass.kv_len.push_back(kv_len);
      std::vector<std::int32_t> context;
      for (int position = 0; position < kv_len; ++position)
        context.push_back(
            at(pagedkv::BlockId{batch.tables.block_ids(s, position / block_size_)}, position % block_size_));
      for (int i = 0; i < q_len; ++i) {
        const auto row = static_cast<std::size_t>(begin + i);
        const int position = kv_len - q_len + i;
        pagedkv::require(batch.positions[row] == position, "FakeModel: position", position, batch.positions[row]);
        const pagedkv::Slot slot =
            std::int64_t{batch.tables.block_ids(s, position / block_size_)} * block_size_ + position % block_size_;
        pagedkv::require(slots[row] == slot, "FakeModel: slot of the row", slot, slots[row]);
        if (wanted == batch.logit_rows.end() || *wanted != begin + i) continue;
        ++wanted;
        const std::vector<float> row_logits =
            logits_of(std::span(context).first(static_cast<std::size_t>(position) + 1), vocab_, habit);
        logits_.insert(logits_.end(), row_logits.begin(), row_logits.end());
      }
    }
    pagedkv::require(wanted == batch.logit_rows.end(), "FakeModel: logit rows", "queries of a sequence", "others");
    return logits_;
  }

  void swap_out(std::span<const pagedkv::BlockPair> blocks) override { move(blocks, slots_, host_slots_); }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) override { move(blocks, host_slots_, slots_); }

  int max_logit_rows() const override { return max_logit_rows_; }

  std::int64_t kv_bytes_per_token() const override { return 4; }
  std::string device() const override { return "fake"; }

  const std::vector<Pass>& passes() const { return passes_; }
  int num_rows() const {
    int sum = 0;
    for (const Pass& pass : passes_) sum += pass.num_rows;
    return sum;
  }
  void forget_passes() { passes_.clear(); }

  /// What is added to the logit of the token that the last one suggests: at 6 the text repeats itself for the most
  /// part, and yet depends on all of its context.
  float habit = 0;

  static std::vector<float> logits_of(std::span<const std::int32_t> context, int vocab, float habit = 0) {
    std::uint64_t hash = 0x9e3779b97f4a7c15u;
    for (const std::int32_t token : context) hash = mix(hash ^ static_cast<std::uint64_t>(token));
    std::vector<float> logits;
    for (int i = 0; i < vocab; ++i)
      logits.push_back(static_cast<float>(mix(hash + static_cast<std::uint64_t>(i)) >> 40) * 0x1p-21f);  // 0 to 8
    logits[mix(static_cast<std::uint64_t>(context.back()) + 77) % static_cast<std::uint64_t>(vocab)] += habit;
    return logits;
  }

  /// What greedy search must generate behind `tokens`.
  static std::vector<std::int32_t> continuation(std::vector<std::int32_t> tokens, int max_tokens, int vocab,
                                                std::int32_t eos) {
    const std::size_t prompt_len = tokens.size();
    do {
      const std::vector<float> logits = logits_of(tokens, vocab);
      tokens.push_back(static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    } while (tokens.back() != eos && tokens.size() < prompt_len + static_cast<std::size_t>(max_tokens));
    return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt_len), tokens.end()};
  }

 private:
  static std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  void move(std::span<const pagedkv::BlockPair> blocks, const std::vector<std::int32_t>& from,
            std::vector<std::int32_t>& to) const {
    for (const auto& [source, destination] : blocks)
      for (int i = 0; i < block_size_; ++i)
        to.at(static_cast<std::size_t>(pagedkv::to_index(destination) * block_size_ + i)) =
            from.at(static_cast<std::size_t>(pagedkv::to_index(source) * block_size_ + i));
  }
  std::int32_t& at(pagedkv::BlockId block, int offset) {
    const std::int64_t slot = std::int64_t{pagedkv::to_index(block)} * block_size_ + offset;
    pagedkv::require(slot >= 0 && slot < std::ssize(slots_), "FakeModel: slot below", std::ssize(slots_), slot);
    return slots_[static_cast<std::size_t>(slot)];
  }

  int vocab_;
  int block_size_;
  int max_logit_rows_;
  std::vector<std::int32_t> slots_, host_slots_;  // the token whose K and V a slot holds
  std::vector<float> logits_;
  std::vector<Pass> passes_;
};

}  // namespace pagedkv_test
