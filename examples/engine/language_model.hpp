// LanguageModel: tokens in, logits out, on whatever machine; the seam between the engine and what computes.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/files/model_config.hpp"
#include "engine/files/safetensors.hpp"
#include "engine/sampler.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/storage/block_swap.hpp"

namespace engine {

/// A token that the model shall choose itself. `params` ask for nothing but temperature, top-k, top-p, min-p and a
/// seed.
struct Draw {
  int logit_row;  // an index into Batch::logit_rows; several samples may draw from one row
  const SamplingParams* params;
  int sample;    // seed, sample and position choose the random number
  int position;  // of the chosen token
};

/// In Batch::tokens: the token that draw `draw` of the step launched before chose, perhaps not known on the host yet.
constexpr std::int32_t token_of_draw(int draw) { return -1 - draw; }

/// One step's input. Rows are the new tokens of all sequences, in the order of the plan's appends; rows behind the last
/// one that a sequence owns are dead: nothing is stored for them and nobody reads their results.
struct Batch {
  std::span<const std::int32_t> tokens;              // [num_rows]
  std::span<const std::int32_t> positions;           // [num_rows]
  const pagedkv::StepPlan& plan;                     // of num_rows rows
  pagedkv::TablesView<pagedkv::Space::host> tables;  // whose queries are the rows
  std::span<const std::int32_t> logit_rows;          // rows whose next token is wanted
  std::span<const Draw> draws = {};                  // for launch(): the choices that the model makes

  int num_rows() const { return static_cast<int>(tokens.size()); }
  int num_live_rows() const { return tables.query_begin(tables.num_seqs()); }
};

/// Sizes that memory is taken for once, when a model is made.
struct ModelOptions {
  int num_blocks = 512;
  int num_host_blocks = 0;  // of memory that swapped blocks go to
  int block_size = 16;
  int max_rows = 512;  // of one step
  int max_seqs = 32;   // of one step
  int max_blocks_per_seq = 128;
  int max_logit_rows = 32;  // of one step
  int num_threads = 1;      // of the CPU back end
  bool use_graphs = true;   // the GPU replays steps that only decode, captured when the model is made
};

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;

  /// Writes the rows' K and V into the cache and returns logits [logit_rows, vocab] on the host, valid until the next
  /// call. Every token of the batch is known.
  virtual std::span<const float> forward(const Batch& batch) = 0;

  /// Starts a step that chooses tokens as `batch.draws` say; the batch is read before it returns. At most two steps may
  /// be launched and not collected.
  virtual void launch(const Batch& batch);

  /// Waits for the oldest launched step; what its draws chose, in their order, valid until the next call.
  virtual std::span<const Choice> collect();

  /// Copies blocks of the cache to host memory (device -> host ids), and back (host -> device ids), in the order of the
  /// launches: behind the steps launched before, in front of those after.
  virtual void swap_out(std::span<const pagedkv::BlockPair> blocks);
  virtual void swap_in(std::span<const pagedkv::BlockPair> blocks);

  /// Logit rows of one step, at most.
  virtual int max_logit_rows() const { return std::numeric_limits<int>::max(); }

  /// Bytes of K and V that one token takes, all layers.
  virtual std::int64_t kv_bytes_per_token() const = 0;

  /// "CPU, float32, 2 threads", say.
  virtual std::string device() const = 0;

 private:
  Sampler sampler_;
  std::vector<Choice> newest_;                // of the step launched last
  std::deque<std::vector<Choice>> launched_;  // oldest first
  std::vector<Choice> collected_;
};

/// Throws BadInput where the checkpoint does not fit the config.
std::unique_ptr<LanguageModel> make_cpu_model(const ModelConfig& config, const Checkpoint& checkpoint,
                                              const ModelOptions& options);
#if defined(PAGEDKV_ENGINE_CUDA)
/// Null where there is no GPU that this program was built for.
std::unique_ptr<LanguageModel> make_cuda_model(const ModelConfig& config, const Checkpoint& checkpoint,
                                               const ModelOptions& options);
#endif

}  // namespace engine
