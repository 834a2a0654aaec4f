// Options: the command line of `generate`.
#pragma once

#include <string>
#include <vector>

#include "engine/flags.hpp"

namespace engine {

struct Options {
  EngineFlags engine;
  SamplingFlags sampling;
  std::vector<std::string> prompts;  // those of the file behind those of the flags
  bool has_prompts_file = false;
  bool chat = false;  // prompts are what a user says
  bool stats = false;
  bool json = false;
  std::string help;  // not empty: print this and do nothing
};

/// Throws BadInput on a flag or a value that is not understood, or a file that cannot be read.
Options parse_options(int argc, const char* const* argv);

}  // namespace engine
