// Steps on a machine that computes them at once: the choices are made in launch() and wait for collect().
#include "engine/language_model.hpp"

#include <utility>

#include "pagedkv/core/error.hpp"

namespace engine {

void LanguageModel::launch(const Batch& batch) {
  pagedkv::require(launched_.size() < 2, "LanguageModel::launch: steps that were not collected, at most", 1,
                   launched_.size());
  std::vector<std::int32_t> tokens(batch.tokens.begin(), batch.tokens.end());
  for (std::int32_t& token : tokens)
    if (token < 0) token = newest_.at(static_cast<std::size_t>(-1 - token)).token;
  const std::span<const float> logits = forward({.tokens = tokens,
                                                 .positions = batch.positions,
                                                 .plan = batch.plan,
                                                 .tables = batch.tables,
                                                 .logit_rows = batch.logit_rows});
  const std::size_t vocab = batch.logit_rows.empty() ? 0 : logits.size() / batch.logit_rows.size();
  newest_.clear();
  for (const Draw& draw : batch.draws)
    newest_.push_back(sampler_.choose(logits.subspan(static_cast<std::size_t>(draw.logit_row) * vocab, vocab),
                                      *draw.params, draw.sample, draw.position));
  launched_.push_back(newest_);
}

std::span<const Choice> LanguageModel::collect() {
  pagedkv::require(!launched_.empty(), "LanguageModel::collect: launched steps", "at least 1", 0);
  collected_ = std::move(launched_.front());
  launched_.pop_front();
  return collected_;
}

void LanguageModel::swap_out(std::span<const pagedkv::BlockPair>) {
  throw pagedkv::Error("LanguageModel: swapping is not supported by this model");
}

void LanguageModel::swap_in(std::span<const pagedkv::BlockPair>) {
  throw pagedkv::Error("LanguageModel: swapping is not supported by this model");
}

}  // namespace engine
