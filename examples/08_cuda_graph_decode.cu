// A decode loop in a CUDA graph: one step is captured once and replayed for every later one, while sequences join,
// leave and grow; an eager loop beside it must leave the same bits.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/workspace.cuh"

using namespace pagedkv;

namespace {

constexpr int num_layers = 3, q_heads = 8, kv_heads = 2, head_dim = 64, block_size = 16, num_blocks = 128;
constexpr int max_seqs = 6, max_blocks_per_seq = 32, max_kv_len = max_blocks_per_seq * block_size;
constexpr int prompt_len = 201, num_steps = 60;
constexpr std::size_t q_elements = max_seqs * q_heads * head_dim, kv_elements = prompt_len * kv_heads * head_dim;

/// Queries, keys and values of every layer, as a model would write them each step to the same memory.
class ModelRows {
 public:
  void renew(cudaStream_t stream) {
    for (bf16& x : host_) x = from_float<bf16>(static_cast<float>(generator_() % 2001) / 1000.f - 1.f);
    cuda::check(cudaMemcpyAsync(device_.data(), host_.data(), device_.size_bytes(), cudaMemcpyDefault, stream), "rows");
  }
  auto q(int layer) const {
    return dense_view<Space::device>(static_cast<const bf16*>(at(layer)), {max_seqs, q_heads, head_dim});
  }
  auto k(int layer, int num_rows) const {
    return dense_view<Space::device>(at(layer) + q_elements, {num_rows, kv_heads, head_dim});
  }
  auto v(int layer, int num_rows) const {
    return dense_view<Space::device>(at(layer) + q_elements + kv_elements, {num_rows, kv_heads, head_dim});
  }

 private:
  static constexpr std::size_t layer_elements = q_elements + 2 * kv_elements;
  bf16* at(int layer) const { return device_.data() + static_cast<std::size_t>(layer) * layer_elements; }

  std::mt19937 generator_{7};
  std::vector<bf16> host_ = std::vector<bf16>(num_layers * layer_elements);
  cuda::DeviceArray<bf16> device_{num_layers * layer_elements};
};

/// One of the two caches, and what attention over it gives.
struct Side {
  cuda::KvPool<bf16> pool{{.num_layers = num_layers,
                           .num_blocks = num_blocks,
                           .kv_heads = kv_heads,
                           .block_size = block_size,
                           .head_dim = head_dim}};
  cuda::Workspace workspace{{.max_seqs = max_seqs,
                             .max_blocks_per_seq = max_blocks_per_seq,
                             .max_tokens = prompt_len,
                             .max_copies = max_seqs}};
  cuda::DeviceArray<bf16> out{num_layers * q_elements};

  std::vector<bf16> read_out() const {
    std::vector<bf16> copy(out.size());
    cuda::check(cudaMemcpy(copy.data(), out.data(), out.size_bytes(), cudaMemcpyDefault), "read out");
    return copy;
  }
};

// [step]
void enqueue_step(Side& side, const ModelRows& rows, int num_rows, const cuda::StepView& step,
                  const TablesView<Space::device>& tables, cudaStream_t stream) {
  cuda::copy_blocks(step, side.pool, stream);
  for (int layer = 0; layer < num_layers; ++layer) {
    cuda::store_kv(step, side.pool.layer(layer), rows.k(layer, num_rows), rows.v(layer, num_rows), stream);
    bf16* const out = side.out.data() + static_cast<std::size_t>(layer) * q_elements;
    const AttentionProblem<Space::device, bf16> problem{
        .q = rows.q(layer),
        .kv = side.pool.layer(layer),
        .tables = tables,
        .out = dense_view<Space::device>(out, {max_seqs, q_heads, head_dim}),
        .lse = {},
        .scale = 1 / std::sqrt(float{head_dim})};
    cuda::decode<head_dim>(problem, Causal{}, side.workspace, stream);
  }
}
// [step]

/// Who is in the batch: forks of a prompt and of each other.
class Crowd {
 public:
  explicit Crowd(Sequence& prompt) : prompt_(prompt) {}

  const BatchTables& tables() const { return tables_; }

  /// Some leave (every twentieth step all of them), one may join, and everybody gets one more token. False: out of
  /// blocks.
  bool advance(int index, StepPlan& step) {
    const auto one_in = [&](unsigned n) { return generator_() % n == 0; };
    for (int row = 0; row < tables_.num_seqs(); ++row) {
      auto& member = members_[static_cast<std::size_t>(row)];
      if (!member || !(member->size() == max_kv_len || index % 20 == 19 || one_in(16))) continue;
      member.reset();
      tables_.remove(row);
    }
    const auto free = std::find(members_.begin(), members_.end(), std::nullopt);  // the row that tables_ gives, too
    if (free != members_.end() && index % 20 != 19 && !one_in(4)) {
      const auto& parent = members_[generator_() % max_seqs];
      *free = parent ? parent->fork() : prompt_.fork();  // their last block is shared until somebody writes to it
      tables_.add(**free, 1);
    }
    for (int row = 0; row < tables_.num_seqs(); ++row) {  // in the order of the queries: so lie the rows of k and v
      auto& member = members_[static_cast<std::size_t>(row)];
      if (!member) continue;
      if (!member->append(1, step)) return false;
      tables_.update(row, *member, 1);
    }
    return true;
  }

 private:
  std::mt19937 generator_{11};
  Sequence& prompt_;
  std::array<std::optional<Sequence>, max_seqs> members_;
  BatchTables tables_{{.max_seqs = max_seqs, .max_blocks_per_seq = max_blocks_per_seq, .block_size = block_size}};
};

}  // namespace

int main() {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = block_size}};
  StepPlan step;
  Sequence prompt{blocks};
  if (!prompt.append(prompt_len, step)) return 1;
  const Stream stream;
  ModelRows rows;
  Side eager, replayed;
  rows.renew(stream);
  for (Side* side : {&eager, &replayed}) {  // the prompt's keys and values
    const cuda::StepView on_device = side->workspace.upload(step, stream);
    for (int layer = 0; layer < num_layers; ++layer)
      cuda::store_kv(on_device, side->pool.layer(layer), rows.k(layer, prompt_len), rows.v(layer, prompt_len), stream);
  }
  step.commit();

  // [capture]
  cuda::Workspace& workspace = replayed.workspace;  // what it holds stays at its addresses; each upload refills them
  const Graph graph(stream, [&] {                   // for any step of up to max_seqs sequences of up to max_kv_len keys
    enqueue_step(replayed, rows, max_seqs, workspace.step(max_seqs), workspace.tables(1, max_kv_len), stream);
  });
  // [capture]

  Crowd crowd{prompt};
  int num_tokens = 0, num_copies = 0, fewest = max_seqs, most = 0, mismatches = 0;
  for (int i = 0; i < num_steps; ++i) {
    if (!crowd.advance(i, step)) return 1;
    rows.renew(stream);

    // The bounds decide how work is cut; the eager call states those of the capture.
    const auto tables = eager.workspace.upload(crowd.tables().capacity_view(1, max_kv_len), stream);
    enqueue_step(eager, rows, step.num_rows(), eager.workspace.upload(step, stream), tables, stream);

    // [replay]
    static_cast<void>(workspace.upload(crowd.tables(), stream));  // lengths, block tables
    static_cast<void>(workspace.upload(step, stream));            // block copies, slots
    graph.replay(stream);
    // [replay]
    num_tokens += step.num_rows();
    num_copies += static_cast<int>(step.copies().size());
    fewest = std::min(fewest, step.num_rows());
    most = std::max(most, step.num_rows());
    step.commit();

    stream.wait();
    const std::vector<bf16> expected = eager.read_out(), got = replayed.read_out();
    mismatches += std::memcmp(expected.data(), got.data(), expected.size() * sizeof(bf16)) == 0 ? 0 : 1;
  }
  std::printf("%d steps of %d to %d sequences: %d tokens, %d block copies\n", num_steps, fewest, most, num_tokens,
              num_copies);
  std::printf("1 capture, %d replays, %d mismatches\n", num_steps, mismatches);
}
