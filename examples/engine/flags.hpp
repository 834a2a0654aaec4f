// Flags that every program around the engine has: the model and its machine, memory, batching, sampling.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "engine/files/model_config.hpp"
#include "engine/sampling.hpp"

namespace CLI {
class App;
}

namespace engine {

enum class BackendKind { automatic, cpu, cuda };

/// What a model folder is loaded with. What is left open depends on the machine, see plan_memory().
struct EngineFlags {
  std::filesystem::path model;
  BackendKind backend = BackendKind::automatic;
  int num_threads = 0;               // of the CPU back end; 0: one for each core
  std::optional<int> max_model_len;  // tokens of one sequence; open: the model's positions
  std::optional<int> block_size;
  int num_blocks = 0;                  // of the KV pool; 0: what the memory plan finds
  std::optional<int> num_host_blocks;  // open: none, or if requests are swapped as many as the pool has, up to 4 GiB
  double memory_fraction = 0.9;        // of the GPU's free memory, for everything
  std::optional<int> max_seqs;         // that run at once
  int least_seqs = 1;                  // where max_seqs is open: the width of what will be asked for
  std::optional<int> max_batched_tokens;
  bool prefix_cache = true;
  bool swap = false;       // requests that are pushed out go to host memory, else are computed again
  int max_drafts = 0;      // tokens of a request guessed in a step
  bool run_ahead = true;   // on a GPU, without drafts
  bool use_graphs = true;  // on a GPU
};

/// Each function adds flags to `app` that write here when the command line is parsed, where they throw BadInput.
void add_engine_flags(CLI::App& app, EngineFlags& flags);

/// SamplingParams of the command line; what it leaves open is the model's recommendation, or else the default.
struct SamplingFlags {
  SamplingParams params;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;

  SamplingParams over(const GenerationDefaults& defaults) const;
};
void add_sampling_flags(CLI::App& app, SamplingFlags& flags);

/// Parses the command line; returns the help, if it was asked for, else "". Throws BadInput on what is not understood.
std::string parse_command_line(CLI::App& app, int argc, const char* const* argv);

/// Throws BadInput unless `value` lies within the limits.
void check_range(const std::string& name, double value, double lowest, double highest);

}  // namespace engine
