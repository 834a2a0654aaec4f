// Options: the command line of `generate`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.hpp"

namespace engine {

enum class BackendKind { automatic, cpu, cuda };

struct Options {
  std::filesystem::path model;
  std::vector<std::string> prompts;  // those of the file behind those of the flags
  bool has_prompts_file = false;
  SamplingParams sampling;
  BackendKind backend = BackendKind::automatic;
  int num_threads = 0;  // 0: one for each core
  std::optional<int> block_size;
  int num_blocks = 0;  // 0: chosen by the model's size and the machine's memory
  int max_batched_tokens = 512;
  bool prefix_cache = true;
  bool stats = false;
  bool json = false;
  std::string help;  // not empty: print this and do nothing
};

/// Throws BadInput on a flag or a value that is not understood, or a file that cannot be read.
Options parse_options(int argc, const char* const* argv);

}  // namespace engine
