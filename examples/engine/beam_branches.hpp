// The branches of a request that does beam search: each step's beams are forks of those before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/beam.hpp"
#include "engine/request.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace engine {

/// Goes on from `rows`, the logits behind each beam: to the next beams or, when the search is over, to the best texts,
/// finished and best first. Beams that nobody continues are dropped at once, so that before the next append their
/// blocks are free and the last heir of a shared tail writes in place.
inline void grow_beams(Request& request, std::span<const std::span<const float>> rows,
                       pagedkv::BlockAllocator& blocks) {
  const std::vector<BeamSearch::Choice> choices = request.beam->advance(rows);
  std::vector<Branch> next;
  for (const auto& [parent, token] : choices) {
    const Branch& from = request.branches[static_cast<std::size_t>(parent)];
    next.push_back({.kv = from.kv.fork(),
                    .tokens = from.tokens,
                    .index = static_cast<int>(next.size()),
                    .num_published = from.num_published});
    next.back().tokens.push_back(token);
  }
  if (request.beam->is_over()) {
    const auto prompt = std::span(request.branches[0].tokens).first(static_cast<std::size_t>(request.prompt_len));
    for (const BeamSearch::Hypothesis& hypothesis : request.beam->finished()) {
      Branch& branch = next.emplace_back(Branch{.kv = pagedkv::Sequence{blocks},
                                                .tokens = {prompt.begin(), prompt.end()},
                                                .index = static_cast<int>(next.size()),
                                                .sum_logprob = hypothesis.sum_logprob,
                                                .score = hypothesis.score,
                                                .finish = hypothesis.ends_with_eos ? Finish::eos : Finish::length});
      branch.tokens.insert(branch.tokens.end(), hypothesis.tokens.begin(), hypothesis.tokens.end());
    }
  }
  request.branches = std::move(next);
}

}  // namespace engine
