// CudaModel: the decoder on a GPU, steps launched ahead of the host, those that only decode as one graph each.
#pragma once

#include <nvtx3/nvToolsExt.h>

#include <map>
#include <span>
#include <string>

#include "cuda_graph.cuh"
#include "engine/cuda/backend_cuda.cuh"
#include "engine/cuda/choice_queue.cuh"
#include "engine/cuda/step_size.hpp"
#include "engine/language_model.hpp"
#include "engine/model.hpp"

namespace engine {

/// A span of the host's time that profilers show by its name.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name) { nvtxRangePushA(name); }
  ~ProfilerRange() { nvtxRangePop(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

class CudaModel final : public LanguageModel {
 public:
  /// Throws like Model and CudaBackend. Captures the graphs that options.use_graphs asks for: some milliseconds each.
  CudaModel(const ModelConfig& config, const Checkpoint& checkpoint, const ModelOptions& options)
      : model_(config, checkpoint, options),
        choices_(static_cast<std::size_t>(std::max(options.max_seqs, options.max_logit_rows))) {
    for (const int num_rows : padded_steps(backend().max_padded_rows())) {
      const StepRows step = backend().begin_dead(num_rows);
      enqueue(step);  // kernels are loaded when they are first launched, which a capture may not do
      if (options.use_graphs) graphs_.try_emplace(num_rows, backend().stream(), [&] { enqueue(step); });
    }
    backend().stream().wait();
  }

  std::span<const float> forward(const Batch& batch) override {
    const ProfilerRange range("forward");
    run({.tokens = batch.tokens,
         .positions = batch.positions,
         .plan = batch.plan,
         .tables = batch.tables,
         .logit_rows = batch.logit_rows});
    return backend().host_logits();
  }

  void launch(const Batch& batch) override {
    const ProfilerRange range("launch");
    choices_.require_room();
    run(batch);
    choices_.push(backend().choices(), batch.draws.size(), backend().stream());
  }

  std::span<const Choice> collect() override {
    const ProfilerRange range("collect");
    return choices_.pop();
  }

  void swap_out(std::span<const pagedkv::BlockPair> blocks) override { backend().swap_out(blocks); }
  void swap_in(std::span<const pagedkv::BlockPair> blocks) override { backend().swap_in(blocks); }
  int max_logit_rows() const override { return model_.max_logit_rows(); }

  std::int64_t kv_bytes_per_token() const override { return model_.kv_bytes_per_token(); }
  std::string device() const override { return model_.device(); }

 private:
  CudaBackend& backend() { return model_.backend(); }

  void run(const Batch& batch) {
    nvtxRangePushA("upload");
    const StepRows step = backend().begin(batch);
    nvtxRangePop();
    const auto graph = backend().is_padded() ? graphs_.find(step.rows) : graphs_.end();
    if (graph != graphs_.end())
      graph->second.replay(backend().stream());
    else
      enqueue(step);
  }

  void enqueue(const StepRows& step) {
    model_.compute(step, [](int, const auto&) {});
    backend().choose();
  }

  Model<CudaBackend> model_;
  std::map<int, Graph> graphs_;  // by the number of rows
  ChoiceQueue choices_;
};

}  // namespace engine
