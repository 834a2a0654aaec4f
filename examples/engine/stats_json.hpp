// The statistics of a run as JSON, for programs.
#pragma once

#include <nlohmann/json.hpp>

#include "engine/stats.hpp"

namespace engine {

inline nlohmann::ordered_json json_of(const EngineStats& stats) {
  return {{"steps", stats.num_steps},
          {"seconds", stats.seconds},
          {"prompt_tokens", stats.prompt_tokens},
          {"cached_tokens", stats.cached_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"tokens_per_second", stats.tokens_per_second()},
          {"preemptions", stats.num_preemptions},
          {"swaps", stats.num_swaps},
          {"drafted_tokens", stats.drafted_tokens},
          {"accepted_drafts", stats.accepted_drafts},
          {"block_copies", stats.block_copies},
          {"block_size", stats.block_size},
          {"num_blocks", stats.num_blocks},
          {"peak_sequences", stats.peak_seqs},
          {"peak_blocks", stats.peak_blocks},
          {"peak_tokens", stats.peak_tokens},
          {"peak_tokens_contiguous", stats.contiguous_tokens()},
          {"blocks_saved_by_sharing", stats.saved_by_sharing()}};
}

}  // namespace engine
