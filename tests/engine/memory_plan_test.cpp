// The memory plan: what a config and flags make of a machine's memory, before anything is allocated.
#include "engine/memory_plan.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/engine_options.hpp"
#include "engine/temp_folder.hpp"

namespace {

using namespace engine;
using engine_test::check_message;
using engine_test::complaint;

constexpr std::int64_t gib = std::int64_t{1} << 30;

ModelConfig qwen3_config() {
  ModelConfig config;
  config.num_layers = 28;
  config.hidden = 1024;
  config.intermediate = 3072;
  config.vocab = 151936;
  config.q_heads = 16;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.max_positions = 40960;
  config.qk_norm = true;
  config.tie_embeddings = true;
  return config;
}

const MachineMemory host{.is_gpu = false, .bytes = 64 * gib, .host_bytes = 64 * gib};
const MachineMemory gpu{.is_gpu = true, .bytes = 100 * gib, .host_bytes = 64 * gib};

// A back end that takes 10 GiB in all.
ModelMemory ten_gib(const ModelConfig&, const ModelOptions&) {
  return {.weights = std::size_t{7} << 30, .activations = std::size_t{2} << 30, .code = std::size_t{1} << 30};
}

MemoryPlan on_gpu(const EngineFlags& flags, const MachineMemory& machine = gpu) {
  return plan_memory(qwen3_config(), flags, machine, ten_gib);
}
MemoryPlan on_host(const EngineFlags& flags, const ModelConfig& config = qwen3_config()) {
  return plan_memory(config, flags, host, cpu_model_memory);
}

TEST_CASE("a GPU's pool is what the fraction of the free memory leaves behind the model") {
  const MemoryPlan plan = on_gpu({});
  const std::int64_t block = 2 * 28 * 8 * 128 * 16 * 2;
  CHECK(plan.block_bytes == block);
  CHECK(plan.sizes.num_blocks == (90 * gib - 10 * gib) / block);
  CHECK(plan.tokens() == std::int64_t{plan.sizes.num_blocks} * 16);
  CHECK(plan.concurrency() == doctest::Approx(plan.sizes.num_blocks / 2560.));
  CHECK(plan.sizes.max_seqs == 256);
  CHECK(plan.sizes.max_rows == 8192);

  EngineFlags half;
  half.memory_fraction = .5;
  CHECK(on_gpu(half).sizes.num_blocks == (50 * gib - 10 * gib) / block);
}

TEST_CASE("a GPU's pool holds no more than twice what the sequences can fill") {
  EngineFlags flags;
  flags.max_seqs = 4;
  flags.max_model_len = 100;  // 7 blocks
  CHECK(on_gpu(flags).sizes.num_blocks == 2 * 4 * 7);
}

TEST_CASE("a CPU's pool holds four full lengths, within a quarter of the memory") {
  ModelConfig config = qwen3_config();
  CHECK(on_host({}).pool() <= 16 * gib);
  CHECK(on_host({}).pool() > 16 * gib - on_host({}).block_bytes);
  config.max_positions = 1000;
  const MemoryPlan plan = on_host({}, config);
  CHECK(plan.sizes.num_blocks == 4 * 63);
  CHECK(plan.concurrency() == 4);
  CHECK(plan.sizes.max_seqs == 32);
  CHECK(plan.sizes.max_rows == 512);
}

TEST_CASE("weights and activations of the CPU are counted to the float") {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden = 3;
  config.intermediate = 5;
  config.vocab = 7;
  config.q_heads = 2;
  config.kv_heads = 1;
  config.head_dim = 2;
  const ModelOptions sizes{.max_rows = 11, .max_seqs = 6, .max_blocks_per_seq = 13, .max_logit_rows = 3};
  // q, k, v, o, gate, up, down and two norms a layer; the last norm; embedding and head.
  CHECK(cpu_model_memory(config, sizes).weights == 4 * (2 * (12 + 6 + 6 + 12 + 45 + 6) + 3 + 2 * 21));
  // Residual stream, its norm, q k v, attention's output, gate and up; last rows and logits; block tables.
  CHECK(cpu_model_memory(config, sizes).activations == 4 * (11 * (3 + 3 + 8 + 4 + 10) + 3 * (3 + 7) + 6 * 13));
  config.tie_embeddings = config.qk_norm = config.attention_bias = true;
  CHECK(cpu_model_memory(config, sizes).weights == 4 * (2 * (12 + 6 + 6 + 12 + 45 + 6 + 8 + 4) + 3 + 21));
}

TEST_CASE("a step reads all weights but an embedding that is not the head") {
  ModelConfig config = qwen3_config();
  CHECK(on_host({}, config).step_weights == static_cast<std::int64_t>(on_host({}, config).model.weights));
  config.tie_embeddings = false;
  CHECK(on_host({}, config).step_weights ==
        static_cast<std::int64_t>(on_host({}, config).model.weights) - 4 * std::int64_t{151936} * 1024);
}

TEST_CASE("flags go before what the machine would choose") {
  EngineFlags flags;
  flags.num_blocks = 77;
  flags.block_size = 32;
  flags.max_seqs = 5;
  flags.max_batched_tokens = 40;
  flags.max_model_len = 1000;
  flags.num_threads = 3;
  flags.use_graphs = false;
  const ModelOptions sizes = on_gpu(flags).sizes;
  CHECK(sizes.num_blocks == 77);
  CHECK(sizes.block_size == 32);
  CHECK(sizes.max_seqs == 5);
  CHECK(sizes.max_rows == 40);
  CHECK(sizes.max_blocks_per_seq == 32);
  CHECK(sizes.num_threads == 3);
  CHECK(!sizes.use_graphs);
  const EngineOptions options = engine_options(on_gpu(flags), flags);
  CHECK(options.num_blocks == 77);
  CHECK(options.block_size == 32);
  CHECK(options.scheduler.max_seqs == 5);
  CHECK(options.scheduler.max_batched_tokens == 40);

  flags = {};
  flags.least_seqs = 100;  // a wide request
  CHECK(on_host(flags).sizes.max_seqs == 100);
  flags.least_seqs = 1000;
  CHECK(on_host(flags).sizes.max_seqs == 512);  // no more than a step's tokens
}

TEST_CASE("logit rows: one for each sequence and draft, and some for the scores of prompts, but no more than rows") {
  EngineFlags flags;
  flags.max_seqs = 10;
  CHECK(on_host(flags).sizes.max_logit_rows == 10 + 64);
  flags.max_drafts = 3;
  CHECK(on_host(flags).sizes.max_logit_rows == 40 + 64);
  flags.max_batched_tokens = 50;
  CHECK(on_host(flags).sizes.max_logit_rows == 50);
}

TEST_CASE("a step is launched ahead on a GPU alone, and not with drafts") {
  EngineFlags flags;
  CHECK(engine_options(on_gpu(flags), flags).run_ahead);
  CHECK(!engine_options(on_host(flags), flags).run_ahead);
  flags.max_drafts = 2;
  CHECK(!engine_options(on_gpu(flags), flags).run_ahead);
  CHECK(engine_options(on_gpu(flags), flags).drafts.max_drafts == 2);
  flags.max_drafts = 0;
  flags.run_ahead = false;
  CHECK(!engine_options(on_gpu(flags), flags).run_ahead);
}

TEST_CASE("who swaps has host blocks: as many as the pool, up to 4 GiB, or as many as asked for") {
  EngineFlags flags;
  CHECK(on_gpu(flags).sizes.num_host_blocks == 0);
  flags.swap = true;
  CHECK(on_gpu(flags).host_pool() <= 4 * gib);
  CHECK(on_gpu(flags).host_pool() > 4 * gib - on_gpu(flags).block_bytes);
  CHECK(engine_options(on_gpu(flags), flags).scheduler.preemption == Preemption::swap);
  flags.num_blocks = 50;
  CHECK(on_gpu(flags).sizes.num_host_blocks == 50);
  flags.num_host_blocks = 60;
  CHECK(on_gpu(flags).sizes.num_host_blocks == 60);
  CHECK(engine_options(on_gpu(flags), flags).num_host_blocks == 60);
}

TEST_CASE("what does not fit is refused with both numbers") {
  EngineFlags flags;
  flags.num_blocks = 1 << 30;
  check_message(complaint([&] { on_host(flags); }), {"kv-blocks: at most 18724 (this machine's memory)", "1073741824"});
  check_message(complaint([&] { on_gpu(flags); }), {"kv-blocks: at most 46811 (the GPU's free memory", "1073741824"});
  flags = {};
  flags.num_host_blocks = 1 << 30;
  check_message(complaint([&] { on_gpu(flags); }),
                {"host-blocks: at most 37449 (this machine's memory)", "1073741824"});
  const MachineMemory small{.is_gpu = true, .bytes = 11 * gib, .host_bytes = gib};  // 90 % of it are 9.9 GiB
  check_message(complaint([&] { on_gpu({}, small); }), {"GPU memory: room for one KV block", "none"});
}

TEST_CASE("sizes beyond 64 bits are not taken for small ones") {
  ModelConfig config = qwen3_config();
  config.num_layers = 1 << 14;
  config.hidden = config.intermediate = 1 << 20;
  config.q_heads = config.kv_heads = 1 << 12;
  config.head_dim = config.vocab = 1 << 16;
  EngineFlags flags;
  flags.block_size = 1 << 16;
  flags.num_blocks = 1;
  check_message(complaint([&] { on_host(flags, config); }), {"kv-blocks: at most 0"});
  CHECK(cpu_model_memory(config, {}).weights == std::size_t{9223372036854775807u});
}

TEST_CASE("the table and the JSON say what was planned") {
  EngineFlags flags;
  flags.num_blocks = 2560;
  const MemoryPlan plan = on_gpu(flags);
  for (const std::string part :
       {"free memory of the GPU", "102400.0 MiB", "weights", "7168.0 MiB", "steps of 8192 tokens of 256 sequences",
        "4480.0 MiB: 2560 blocks of 16, 40960 tokens", "1.0 sequences of 40960 tokens"}) {
    CAPTURE(part);
    CHECK(plan.table().find(part) != std::string::npos);
  }
  CHECK(plan.json()["pool_bytes"] == 2560 * plan.block_bytes);
  CHECK(plan.json()["concurrency"] == 1);
}

}  // namespace
