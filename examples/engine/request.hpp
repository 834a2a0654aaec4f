// Request: what was asked, the continuations it grows, and where it stands; the unit that the scheduler moves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/beam.hpp"
#include "engine/drafts.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"

namespace engine {

/// eos: a token that ends texts; stop: the user found what shall end this one.
enum class Finish { none, eos, length, stop, aborted };

/// One continuation of a prompt: its tokens, and the part of them whose K and V are in the cache.
struct Branch {
  pagedkv::Sequence kv;
  std::vector<std::int32_t> tokens;  // prompt included; below 0: chosen by a step that was not collected yet
  int index = 0;                     // names it to the user and to the random generator
  double sum_logprob = 0;            // of the generated tokens, under the model's own distribution
  double score = 0;                  // what beams are ordered by
  Finish finish = Finish::none;
  int num_published = 0;  // full blocks that the prefix cache was offered

  int num_lacking() const { return static_cast<int>(tokens.size()) - kv.size(); }

  /// The tokens up to the first that the host does not know.
  std::span<const std::int32_t> known_tokens() const {
    auto last = tokens.end();
    while (last != tokens.begin() && last[-1] < 0) --last;
    return {tokens.begin(), last};
  }
};

/// waiting -> trunk -> (tails ->) decode -> finished, and back to waiting when preempted; who was swapped out goes on
/// in the state that it was torn from.
///   trunk   the first branch computes what all of them share: the prompt, or after a preemption the longest prefix
///   tails   each branch, forked from the trunk, recomputes what it alone had generated, up to its last token
///   decode  every branch lacks exactly its last token: one row each a step
enum class State { waiting, trunk, tails, decode, finished };

struct Request {
  int id = 0;        // in order of arrival
  int priority = 0;  // lower: sooner
  int prompt_len = 0;
  SamplingParams params;
  std::vector<std::int32_t> end_ids;  // tokens that end its texts
  std::uint64_t cache_salt = 0;       // of the prefixes that it may share
  State state = State::waiting;
  std::vector<Branch> branches;  // one until the prompt is computed; sorted best first when a beam search is over
  std::optional<BeamSearch> beam;
  int trunk_len = 0;   // tokens that the first unfinished branch computes for all
  int num_cached = 0;  // prompt tokens found in the prefix cache at the first admission
  int num_preempted = 0;
  State interrupted = State::waiting;  // while it waits with its K and V in host memory: what it was doing
  std::optional<NgramDrafter> drafter;
  std::vector<std::int32_t> drafts;       // guesses behind the last token, in the step that is being launched
  std::vector<TokenScore> prompt_scores;  // with params.prompt_logprobs: of the prompt's tokens from the second on

  Branch& leader() {
    return *std::find_if(branches.begin(), branches.end(), [](const Branch& b) { return b.finish == Finish::none; });
  }
  /// Every branch has ended, and all of its tokens are known.
  bool is_complete() const {
    return std::all_of(branches.begin(), branches.end(),
                       [](const Branch& b) { return b.finish != Finish::none && b.tokens.back() >= 0; });
  }
  int num_unfinished() const {
    return static_cast<int>(
        std::count_if(branches.begin(), branches.end(), [](const Branch& b) { return b.finish == Finish::none; }));
  }

  /// Rows that the request may take in one decode step, now or after its prompt.
  int num_rows() const {
    return beam || (branches.size() == 1 && state != State::decode) ? params.width() : num_unfinished();
  }

  /// One text, and nothing to look at but a row of logits: its next tokens can be guessed and verified.
  bool can_draft() const { return state == State::decode && params.width() == 1 && !params.needs_logits(); }

  /// Rows of the prompt from prompt_scores.size() on must yield logits, too.
  bool lacks_scores() const { return params.prompt_logprobs && std::ssize(prompt_scores) < prompt_len - 1; }

  int num_left(const Branch& branch) const {  // to generate
    return prompt_len + params.max_tokens - static_cast<int>(branch.tokens.size());
  }

  /// How many tokens of `branch` shall be in the cache before the request leaves the trunk, or the tails.
  int goal(const Branch& branch) {
    if (state == State::tails) return static_cast<int>(branch.tokens.size()) - 1;
    return &branch == &leader() ? trunk_len : 0;
  }

  /// From waiting to trunk: with one branch the trunk is all of it, and its last row yields logits. Several end it
  /// where they part, and before the last token of any, so that all yield their logits in one decode step.
  void start() {
    const std::vector<std::int32_t>& trunk = leader().tokens;
    trunk_len = static_cast<int>(trunk.size());
    if (num_unfinished() > 1)
      for (const Branch& branch : branches)
        if (branch.finish == Finish::none) trunk_len = std::min(trunk_len, shared_len(trunk, branch.tokens));
    state = State::trunk;
  }

  /// To the next state, if the goals of this one are reached: by a step, or because a branch that was behind has ended.
  void advance() {
    if (state == State::trunk && leader().kv.size() == trunk_len) {
      if (leader().num_lacking() == 0)
        state = State::decode;
      else
        fork_tails();
    }
    const auto is_there = [this](const Branch& b) { return b.finish != Finish::none || b.kv.size() == goal(b); };
    if (state == State::tails && std::all_of(branches.begin(), branches.end(), is_there)) state = State::decode;
  }

  /// Gives every block back. The tokens stay: to be recomputed.
  void drop_blocks(pagedkv::BlockAllocator& blocks) {
    for (Branch& branch : branches) {
      branch.kv = pagedkv::Sequence{blocks};
      branch.num_published = 0;
    }
  }

  /// The order of service.
  static bool is_sooner(const Request* a, const Request* b) {
    return a->priority != b->priority ? a->priority < b->priority : a->id < b->id;
  }

  /// Blocks that the request can come to own while it runs: all branches share the prompt's full blocks.
  static std::int64_t max_blocks(int prompt_len, const SamplingParams& params, int block_size) {
    const std::int64_t shared = prompt_len / block_size;
    const std::int64_t longest = pagedkv::ceil_div(prompt_len + params.max_tokens - 1, block_size);
    return shared + params.width() * (longest - shared);
  }

 private:
  void fork_tails() {
    const Branch& trunk = leader();
    for (Branch& branch : branches)
      if (branch.finish == Finish::none && &branch != &trunk) {
        branch.kv = trunk.kv.fork();
        branch.num_published = trunk.num_published;
      }
    state = State::tails;
  }

  static int shared_len(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
    const auto parted = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
    return static_cast<int>(std::min<std::ptrdiff_t>(parted, std::min(std::ssize(a), std::ssize(b)) - 1));
  }
};

}  // namespace engine
