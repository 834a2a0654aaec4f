// Every operation of the GPU back end against its slow twin on the CPU, prompts and decode steps, over one paged cache.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/backend_cpu.hpp"
#include "engine/cuda/backend_cuda.cuh"
#include "engine/files/model_config.hpp"
#include "engine/language_model.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/storage/block_swap.hpp"

using namespace engine;
using Values = std::vector<float>;

namespace {

struct Shape {
  int head_dim = 64, q_heads = 4, kv_heads = 2, hidden = 256, window = 0;
  bool has_bias = false, has_norms = false;
};

ModelConfig config_of(const Shape& shape) {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden = shape.hidden;
  config.intermediate = 104;
  config.vocab = 90;
  config.q_heads = shape.q_heads;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.max_positions = 4096;
  config.rope_theta = 1e6;
  config.sliding_window = shape.window;
  config.attention_bias = shape.has_bias;
  config.qk_norm = shape.has_norms;
  return config;
}

const ModelOptions options{.num_blocks = 64,
                           .num_host_blocks = 64,
                           .block_size = 8,
                           .max_rows = 96,
                           .max_seqs = 8,
                           .max_blocks_per_seq = 24,
                           .max_logit_rows = 8};

/// Numbers that bf16 holds exactly, the same for both back ends.
Values random_values(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Values values(static_cast<std::size_t>(count));
  for (float& x : values) x = pagedkv::to_float(pagedkv::from_float<pagedkv::bf16>(normal(generator)));
  return values;
}

/// A back end with memory for the rows of a step, filled and read from the host.
template <class B>
struct Machine {
  using Heads = engine::Heads<B>;

  explicit Machine(const Shape& shape) : config(config_of(shape)), backend(config, options) {
    const int dim = config.head_dim, width = (config.q_heads + 2 * config.kv_heads) * dim;
    if (shape.has_bias) params.bias = backend.vector(random_values(width, 1));
    if (shape.has_norms) {
      params.q_norm = backend.vector(random_values(dim, 2));
      params.k_norm = backend.vector(random_values(dim, 3));
    }
    table = backend.matrix(random_values(90 * config.hidden, 4), 90, config.hidden);
    gain = backend.vector(random_values(config.hidden, 5));
    x = backend.residual(options.max_rows, config.hidden);
    last = backend.residual(options.max_logit_rows, config.hidden);
    y = backend.rows(options.max_rows, config.hidden);
    qkv = backend.rows(options.max_rows, width);
    attended = backend.rows(options.max_rows, config.q_heads * dim);
    gate_up = backend.rows(options.max_rows, 2 * config.intermediate);
  }

  static auto cut(auto view, int num_rows) {
    view.extents[0] = num_rows;
    return view;
  }
  static auto columns(auto view, std::int64_t first, std::int64_t count) {
    view.data += first;
    view.extents[1] = count;
    return view;
  }
  Heads heads(Rows<B> rows, int count) const {
    return {.data = rows.data,
            .extents = {rows.extents[0], count, config.head_dim},
            .strides = {rows.strides[0], config.head_dim, 1}};
  }

  void put(const auto& view, const Values& values) {
    using T = std::remove_reference_t<decltype(*view.data)>;
    std::vector<T> elements;
    for (const float value : values) elements.push_back(pagedkv::from_float<T>(value));
    pagedkv::cuda::check(cudaMemcpy(view.data, elements.data(), elements.size() * sizeof(T), cudaMemcpyDefault), "put");
    pagedkv::cuda::check(cudaDeviceSynchronize(), "put");
  }
  /// The first `num_rows` rows, dense.
  Values get(const auto& view, int num_rows) {
    using T = std::remove_reference_t<decltype(*view.data)>;
    pagedkv::cuda::check(cudaDeviceSynchronize(), "get");
    Values values;
    std::vector<T> row(static_cast<std::size_t>(view.extents[1]));
    for (int i = 0; i < num_rows; ++i) {
      pagedkv::cuda::check(cudaMemcpy(row.data(), view.at(i, 0), row.size() * sizeof(T), cudaMemcpyDefault), "get");
      for (const T element : row) values.push_back(pagedkv::to_float(element));
    }
    return values;
  }

  /// All operations on one batch; what each left behind in the live rows.
  std::vector<Values> run(const Batch& batch, unsigned seed) {
    const StepRows step = backend.begin(batch);
    const int live = batch.num_live_rows();
    std::vector<Values> left;
    const auto sum = cut(x, step.rows);
    const auto rows = cut(y, step.rows), packed = cut(qkv, step.rows), out = cut(attended, step.rows);
    const auto both = cut(gate_up, step.rows);
    backend.embed(table, sum);
    left.push_back(get(sum, live));
    backend.rms_norm(sum, gain, rows);
    left.push_back(get(rows, live));
    put(rows, random_values(std::int64_t{step.rows} * config.hidden, seed));
    backend.add_rms_norm(sum, rows, gain, rows);
    left.push_back(get(sum, live));
    left.push_back(get(rows, live));
    for (int layer = 0; layer < config.num_layers; ++layer) {
      put(packed, random_values(std::int64_t{step.rows} * packed.extents[1], seed + 1 + static_cast<unsigned>(layer)));
      backend.rope_and_store(layer, packed, params);
      left.push_back(get(columns(packed, 0, out.extents[1]), live));
      backend.attend(layer, heads(packed, config.q_heads), heads(out, config.q_heads));
      left.push_back(get(out, live));
    }
    put(both, random_values(std::int64_t{step.rows} * both.extents[1], seed + 7));
    const auto gate = columns(both, 0, config.intermediate);
    backend.silu_mul(gate, columns(both, config.intermediate, config.intermediate));
    left.push_back(get(gate, live));
    put(rows, random_values(std::int64_t{step.rows} * config.hidden, seed + 8));
    backend.add(sum, rows);
    left.push_back(get(sum, live));
    const auto wanted = cut(last, step.logit_rows);
    backend.gather(sum, wanted);
    left.push_back(get(wanted, static_cast<int>(batch.logit_rows.size())));
    return left;
  }

  ModelConfig config;
  B backend;
  HeadParams<typename B::Vector> params;
  typename B::Matrix table;
  typename B::Vector gain;
  Residual<B> x, last;
  Rows<B> y, qkv, attended, gate_up;
};

/// All blocks to the host, back to the wrong places, and back to the right ones.
void swap_all(auto& backend) {
  const auto pairs = [](int from_shift, int to_shift) {
    std::vector<pagedkv::BlockPair> all;
    for (int i = 0; i < 64; ++i)
      all.push_back({pagedkv::BlockId{(i + from_shift) % 64}, pagedkv::BlockId{(i + to_shift) % 64}});
    return all;
  };
  backend.swap_out(pairs(0, 5));
  backend.swap_in(pairs(5, 1));
  backend.swap_in(pairs(5, 0));
}

const char* const names[] = {"embed",           "rms_norm",      "add_rms_norm's sum", "add_rms_norm", "rope, layer 0",
                             "attend, layer 0", "rope, layer 1", "attend, layer 1",    "silu_mul",     "add",
                             "gather"};

/// Sequences that grow a few tokens a step; an extra one leaves dead rows behind the others.
struct Story {
  pagedkv::BlockAllocator blocks{{.num_blocks = options.num_blocks, .block_size = options.block_size}};
  std::vector<pagedkv::Sequence> sequences;
  std::mt19937 generator{3};

  template <class F>
  void step(const std::vector<int>& lengths, int num_dead, F&& compute) {
    pagedkv::StepPlan plan;
    pagedkv::BatchTables tables(
        {.max_seqs = 8, .max_blocks_per_seq = options.max_blocks_per_seq, .block_size = options.block_size});
    std::vector<std::int32_t> tokens, positions, logit_rows;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      if (i == sequences.size()) sequences.emplace_back(blocks);
      if (lengths[i] == 0) continue;
      REQUIRE(sequences[i].append(lengths[i], plan));
      tables.add(sequences[i], lengths[i]);
      for (int position = sequences[i].size() - lengths[i]; position < sequences[i].size(); ++position) {
        tokens.push_back(static_cast<std::int32_t>(generator() % 90));
        positions.push_back(position);
      }
      logit_rows.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
    }
    if (num_dead > 0) {
      pagedkv::Sequence gone{blocks};
      REQUIRE(gone.append(num_dead, plan));
      tokens.resize(tokens.size() + static_cast<std::size_t>(num_dead));
      positions.resize(tokens.size());
    }
    compute(Batch{
        .tokens = tokens, .positions = positions, .plan = plan, .tables = tables.view(), .logit_rows = logit_rows});
    plan.commit();
  }
};

}  // namespace

TEST_CASE(
    "every operation agrees with the CPU's: prompts, chunks, decode steps, dead rows, and blocks that were away") {
  for (const Shape& shape :
       {Shape{},
        Shape{.head_dim = 128, .q_heads = 8, .kv_heads = 2, .hidden = 1024, .has_bias = true, .has_norms = true},
        Shape{.q_heads = 14, .kv_heads = 2, .hidden = 896, .has_bias = true},
        Shape{.head_dim = 128, .q_heads = 2, .kv_heads = 2, .hidden = 16384, .window = 9, .has_norms = true},
        Shape{.q_heads = 3, .kv_heads = 1, .hidden = 72, .window = 20}}) {
    CAPTURE(shape.head_dim);
    CAPTURE(shape.hidden);
    Machine<CpuBackend> cpu(shape);
    Machine<CudaBackend> gpu(shape);
    Story story;
    unsigned seed = 100;
    for (const auto& [lengths, num_dead] : std::vector<std::pair<std::vector<int>, int>>{{{5, 33, 1}, 0},
                                                                                         {{20, 1, 9}, 4},
                                                                                         {{1, 1, 1}, 0},
                                                                                         {{1, 1, 1, 1, 1}, 2},
                                                                                         {{1, 0, 1}, 0},
                                                                                         {{40, 1, 1, 0, 1, 7}, 0}}) {
      seed += 10;
      CAPTURE(seed);
      story.step(lengths, num_dead, [&](const Batch& batch) {
        swap_all(cpu.backend);
        swap_all(gpu.backend);
        const auto expected = cpu.run(batch, seed), got = gpu.run(batch, seed);
        REQUIRE(got.size() == expected.size());
        REQUIRE(got.size() == std::size(names));
        for (std::size_t op = 0; op < got.size(); ++op) {
          CAPTURE(names[op]);
          REQUIRE(got[op].size() == expected[op].size());
          float largest = 0;
          for (std::size_t i = 0; i < got[op].size(); ++i)
            largest = std::max(largest, std::abs(got[op][i] - expected[op][i]) / (1 + std::abs(expected[op][i])));
          // The input of both is the same, so what differs is rounded once to bf16, or in attention a few times.
          CHECK(largest <= (op == 0 ? 0.f : std::string(names[op]).starts_with("attend") ? 0.02f : 0.005f));
        }
      });
    }
  }
}

TEST_CASE("what the GPU was not made for is refused by name") {
  const auto message = [](auto change) {
    ModelConfig config = config_of({});
    change(config);
    try {
      CudaBackend(config, options);
    } catch (const BadInput& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message([](ModelConfig& config) { config.head_dim = 96; }).starts_with("config.json: head_dim on a GPU"));
  CHECK(message([](ModelConfig& config) { config.hidden = 252; }).starts_with("config.json: hidden_size on a GPU"));
  CHECK(message([](ModelConfig& config) { config.intermediate = 100; }).starts_with("config.json: intermediate_size"));
  CHECK(message([](ModelConfig& config) { config.vocab = 1 << 20; }).starts_with("config.json: vocab_size on a GPU"));
}
