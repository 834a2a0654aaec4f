// EngineStats: what a run counted, and the memory it took against what other ways of keeping K and V would have taken.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <span>
#include <string>

#include "engine/request.hpp"
#include "engine/table_row.hpp"
#include "pagedkv/core/math.hpp"

namespace engine {

struct EngineStats {
  std::int64_t num_steps = 0;
  std::int64_t prompt_tokens = 0;  // of finished requests
  std::int64_t cached_tokens = 0;  // of the prompts, found in the prefix cache
  std::int64_t generated_tokens = 0;
  std::int64_t block_copies = 0;  // by copy-on-write
  std::int64_t num_preemptions = 0;
  std::int64_t num_swaps = 0;        // preemptions that kept K and V in host memory
  std::int64_t drafted_tokens = 0;   // guesses that were verified
  std::int64_t accepted_drafts = 0;  // of those, right ones
  double seconds = 0;                // inside Engine::step

  // At the step in which the running sequences held the most tokens.
  int peak_seqs = 0;
  std::int64_t peak_tokens = 0;  // what exact allocation takes, each sequence for itself
  std::int64_t peak_blocks = 0;  // owned

  // Summed over all steps.
  std::int64_t table_entries = 0;  // of all block tables
  std::int64_t used_blocks = 0;    // different blocks behind them

  // What they are measured in.
  int block_size = 0;
  int num_blocks = 0;
  int max_positions = 0;
  std::int64_t kv_bytes_per_token = 0;

  void observe(std::span<Request* const> running, int num_used_blocks) {
    std::int64_t tokens = 0, entries = 0;
    int seqs = 0;
    for (const Request* request : running)
      for (const Branch& branch : request->branches) {
        tokens += branch.kv.size();
        entries += std::ssize(branch.kv.blocks());
        seqs += branch.kv.size() > 0;
      }
    table_entries += entries;
    used_blocks += num_used_blocks;
    if (tokens <= peak_tokens) return;
    peak_tokens = tokens;
    peak_blocks = num_used_blocks;
    peak_seqs = seqs;
  }

  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(generated_tokens) / seconds : 0; }
  double saved_by_sharing() const {
    return table_entries > 0 ? 1 - static_cast<double>(used_blocks) / static_cast<double>(table_entries) : 0;
  }
  std::int64_t contiguous_tokens() const { return std::int64_t{peak_seqs} * max_positions; }

  /// Lines of "name  value" for people.
  std::string table() const {
    const auto memory = [&](const char* name, std::int64_t tokens) {
      const std::int64_t num = pagedkv::ceil_div(tokens, std::int64_t{block_size});
      return table_row(name, "%6" PRId64 " blocks %8.0f KiB", num,
                       static_cast<double>(tokens * kv_bytes_per_token) / 1024);
    };
    return table_row("generated", "%" PRId64 " tokens in %.2f s: %.0f tokens/s", generated_tokens, seconds,
                     tokens_per_second()) +
           table_row("scheduled", "%" PRId64 " steps, %" PRId64 " preemptions (%" PRId64 " by swap)", num_steps,
                     num_preemptions, num_swaps) +
           table_row("KV cache at its fullest", "%d sequences, %" PRId64 " tokens, blocks of %d", peak_seqs,
                     peak_tokens, block_size) +
           memory("  in use, paged", peak_blocks * block_size) + memory("  exact allocation", peak_tokens) +
           memory("  contiguous maximum length", contiguous_tokens()) +
           table_row("blocks saved by sharing", "%.0f %% of all block table entries", 100 * saved_by_sharing()) +
           table_row("copies by copy-on-write", "%" PRId64 " blocks", block_copies) +
           table_row("prefix-cache hits", "%" PRId64 " of %" PRId64 " prompt tokens", cached_tokens, prompt_tokens);
  }
};

}  // namespace engine
