// What an engine is made with.
#pragma once

#include <functional>
#include <string>

#include "engine/bad_input.hpp"
#include "engine/drafts.hpp"
#include "engine/language_model.hpp"
#include "engine/scheduler.hpp"

namespace engine {

struct EngineOptions {
  int num_blocks = 512;
  int block_size = 16;
  bool prefix_cache = true;
  bool run_ahead = false;  // schedule and launch a step while the one before computes: for models on other machines
  SchedulerOptions scheduler = {};
  std::function<void(const Batch&)> on_launch = {};  // sees each batch as it is launched: for measurements
  int num_host_blocks = 0;                           // of host memory, for requests that are swapped out
  DraftOptions drafts = {};  // an engine with drafts never runs ahead: which were right decides what comes next

  /// Throws BadInput, naming the field.
  void validate() const {
    const auto check = [](const char* name, int lowest, int found) {
      if (found < lowest) throw BadInput(name, "at least " + std::to_string(lowest), std::to_string(found));
    };
    check("max batched tokens", 1, scheduler.max_batched_tokens);
    check("max seqs", 1, scheduler.max_seqs);
    check("watermark", 0, scheduler.watermark);
    check("host blocks", 0, num_host_blocks);
    check("drafts", 0, drafts.max_drafts);
    if (drafts.min_ngram < 1 || drafts.min_ngram > drafts.max_ngram)
      throw BadInput("n-grams of drafts", "1 or longer, the longest not below the shortest",
                     std::to_string(drafts.min_ngram) + " to " + std::to_string(drafts.max_ngram));
  }
};

}  // namespace engine
