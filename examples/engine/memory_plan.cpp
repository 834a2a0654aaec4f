// plan_memory(): the arithmetic of MemoryPlan.
#include "engine/memory_plan.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "engine/bad_input.hpp"
#include "engine/engine_options.hpp"
#include "engine/table_row.hpp"
#include "pagedkv/core/math.hpp"

namespace engine {

namespace {

constexpr double float_bytes = 4;
constexpr std::int64_t most_ids = std::numeric_limits<int>::max() - 1;

// Bytes of one element of weights, and of K and V.
constexpr int element_bytes(bool is_gpu) { return is_gpu ? 2 : 4; }

// What a config may ask for goes beyond 64 bits.
std::int64_t saturated(double bytes) {
  return bytes < 9e18 ? static_cast<std::int64_t>(bytes) : std::numeric_limits<std::int64_t>::max();
}

struct Widths {
  double hidden, intermediate, q, qkv, vocab, layers;
};

Widths widths_of(const ModelConfig& config) {
  const double head_dim = config.head_dim;
  return {.hidden = static_cast<double>(config.hidden),
          .intermediate = static_cast<double>(config.intermediate),
          .q = config.q_heads * head_dim,
          .qkv = (config.q_heads + 2. * config.kv_heads) * head_dim,
          .vocab = static_cast<double>(config.vocab),
          .layers = static_cast<double>(config.num_layers)};
}

std::string room_of(const MemoryPlan& plan) {
  return plan.machine.is_gpu ? "the GPU's free memory times memory-fraction, less the model" : "this machine's memory";
}

// The blocks that the memory has room for.
std::int64_t most_blocks(const MemoryPlan& plan, const EngineFlags& flags) {
  double room = static_cast<double>(plan.machine.bytes);
  if (plan.machine.is_gpu) room = room * flags.memory_fraction - static_cast<double>(plan.model.total());
  return std::min(most_ids, static_cast<std::int64_t>(std::max(0., room)) / plan.block_bytes);
}

int choose_num_blocks(const MemoryPlan& plan, const EngineFlags& flags) {
  const std::int64_t most = most_blocks(plan, flags), per_seq = plan.sizes.max_blocks_per_seq;
  if (flags.num_blocks > most)
    throw BadInput("kv-blocks", "at most " + std::to_string(most) + " (" + room_of(plan) + ")",
                   std::to_string(flags.num_blocks));
  if (flags.num_blocks > 0) return flags.num_blocks;
  if (plan.machine.is_gpu && most == 0)
    throw BadInput("GPU memory", "room for one KV block (" + room_of(plan) + ")", "none");
  const std::int64_t wanted = (plan.machine.is_gpu ? 2 * plan.sizes.max_seqs : 4) * per_seq;
  const std::int64_t allowed = plan.machine.is_gpu ? most : plan.machine.bytes / 4 / plan.block_bytes;
  return static_cast<int>(std::clamp(wanted, std::int64_t{1}, std::max(std::int64_t{1}, allowed)));
}

int choose_num_host_blocks(const MemoryPlan& plan, const EngineFlags& flags) {
  const std::int64_t most = std::min(most_ids, plan.machine.host_bytes / plan.block_bytes);
  if (flags.num_host_blocks.value_or(0) > most)
    throw BadInput("host-blocks", "at most " + std::to_string(most) + " (this machine's memory)",
                   std::to_string(*flags.num_host_blocks));
  if (flags.num_host_blocks) return *flags.num_host_blocks;
  if (!flags.swap) return 0;
  return static_cast<int>(
      std::min({std::int64_t{plan.sizes.num_blocks}, most, (std::int64_t{4} << 30) / plan.block_bytes}));
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }
double mebibytes(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

ModelMemory cpu_model_memory(const ModelConfig& config, const ModelOptions& options) {
  const Widths w = widths_of(config);
  const double matrices = w.hidden * (w.qkv + w.q + 3 * w.intermediate);
  const double vectors =
      2 * w.hidden + (config.attention_bias ? w.qkv : 0) + (config.qk_norm ? 2. * config.head_dim : 0);
  const double embeddings = w.vocab * w.hidden * (config.tie_embeddings ? 1 : 2);
  const double row = 2 * w.hidden + w.qkv + w.q + 2 * w.intermediate, logit_row = w.hidden + w.vocab;
  const double activations = options.max_rows * row + options.max_logit_rows * logit_row;
  const auto bytes_of = [](double floats) { return static_cast<std::size_t>(saturated(float_bytes * floats)); };
  return {.weights = bytes_of(w.layers * (matrices + vectors) + w.hidden + embeddings),
          .activations = bytes_of(activations + static_cast<double>(options.max_seqs) * options.max_blocks_per_seq),
          .code = 0};
}

MemoryPlan plan_memory(const ModelConfig& config, const EngineFlags& flags, const MachineMemory& machine,
                       ModelMemory (*memory_of)(const ModelConfig&, const ModelOptions&), int default_block_size) {
  const Widths w = widths_of(config);
  MemoryPlan plan;
  plan.machine = machine;
  plan.weight_bytes = element_bytes(machine.is_gpu);
  plan.max_model_len = std::min(config.max_positions, flags.max_model_len.value_or(config.max_positions));

  ModelOptions& sizes = plan.sizes;
  const auto cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  sizes.num_threads = flags.num_threads > 0 ? flags.num_threads : cores;
  sizes.use_graphs = flags.use_graphs;
  sizes.block_size = flags.block_size.value_or(default_block_size);
  sizes.max_blocks_per_seq = pagedkv::ceil_div(plan.max_model_len, sizes.block_size);
  sizes.max_rows = flags.max_batched_tokens.value_or(machine.is_gpu ? 8192 : 512);
  sizes.max_seqs =
      std::min(flags.max_seqs.value_or(std::max(machine.is_gpu ? 256 : 32, flags.least_seqs)), sizes.max_rows);
  constexpr int for_prompt_scores = 64;
  sizes.max_logit_rows = std::min(sizes.max_rows, sizes.max_seqs * (1 + flags.max_drafts) + for_prompt_scores);

  plan.model = memory_of(config, sizes);
  const double embedding = config.tie_embeddings ? 0 : w.vocab * w.hidden * plan.weight_bytes;
  plan.step_weights = saturated(static_cast<double>(plan.model.weights) - embedding);
  plan.logits = saturated(sizes.max_logit_rows * w.vocab * float_bytes);
  plan.block_bytes =
      saturated(2 * w.layers * config.kv_heads * config.head_dim * sizes.block_size * element_bytes(machine.is_gpu));
  sizes.num_blocks = choose_num_blocks(plan, flags);
  sizes.num_host_blocks = choose_num_host_blocks(plan, flags);
  return plan;
}

EngineOptions engine_options(const MemoryPlan& plan, const EngineFlags& flags) {
  EngineOptions options;
  options.num_blocks = plan.sizes.num_blocks;
  options.num_host_blocks = plan.sizes.num_host_blocks;
  options.block_size = plan.sizes.block_size;
  options.prefix_cache = flags.prefix_cache;
  options.run_ahead = plan.machine.is_gpu && flags.run_ahead && flags.max_drafts == 0;
  options.scheduler.max_batched_tokens = plan.sizes.max_rows;
  options.scheduler.max_seqs = plan.sizes.max_seqs;
  options.scheduler.watermark = plan.sizes.num_blocks / 100;
  options.scheduler.preemption = flags.swap ? Preemption::swap : Preemption::recompute;
  options.drafts.max_drafts = flags.max_drafts;
  return options;
}

std::string MemoryPlan::table() const {
  std::string text = table_row(machine.is_gpu ? "free memory of the GPU" : "memory of the machine", "%10.1f MiB",
                               mebibytes(machine.bytes)) +
                     table_row("weights", "%10.1f MiB", mebibytes(model.weights)) +
                     table_row("activations", "%10.1f MiB for steps of %d tokens of %d sequences, %.1f of them logits",
                               mebibytes(model.activations), sizes.max_rows, sizes.max_seqs, mebibytes(logits));
  if (model.code > 0) text += table_row("kernels and graphs, about", "%10.1f MiB", mebibytes(model.code));
  text += table_row("KV pool", "%10.1f MiB: %d blocks of %d, %" PRId64 " tokens", mebibytes(pool()), sizes.num_blocks,
                    sizes.block_size, tokens());
  if (sizes.num_host_blocks > 0)
    text += table_row("KV pool of the host", "%10.1f MiB: %d blocks", mebibytes(host_pool()), sizes.num_host_blocks);
  return text + table_row("at once, at full length", "%10.1f sequences of %d tokens", concurrency(), max_model_len);
}

nlohmann::ordered_json MemoryPlan::json() const {
  return {{"machine_bytes", machine.bytes},
          {"weight_bytes", model.weights},
          {"activation_bytes", model.activations},
          {"logit_bytes", logits},
          {"code_bytes", model.code},
          {"pool_bytes", pool()},
          {"host_pool_bytes", host_pool()},
          {"num_blocks", sizes.num_blocks},
          {"block_size", sizes.block_size},
          {"tokens", tokens()},
          {"max_model_len", max_model_len},
          {"max_seqs", sizes.max_seqs},
          {"max_batched_tokens", sizes.max_rows},
          {"concurrency", concurrency()}};
}

}  // namespace engine
