// Swap and resume: a sequence makes room on the GPU for another one, waits in host memory, and goes on where it was,
// without computing a token again.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/gather.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/swap.cuh"
#include "pagedkv/cuda/workspace.cuh"

using namespace pagedkv;

namespace {

constexpr int num_layers = 2, kv_heads = 2, head_dim = 64, block_size = 16, num_blocks = 8, num_host_blocks = 32;

KvLayout layout_of(int blocks) {
  return {.num_layers = num_layers,
          .num_blocks = blocks,
          .kv_heads = kv_heads,
          .block_size = block_size,
          .head_dim = head_dim};
}

/// A model would compute K and V; here they are random, so that one wrong block would show.
class Cache {
 public:
  void run(StepPlan& step) {
    std::vector<bf16> rows(static_cast<std::size_t>(step.num_rows() * kv_heads * head_dim));
    for (bf16& x : rows) x = from_float<bf16>(static_cast<float>(generator_() % 2001) / 1000.f - 1.f);
    cuda::check(cudaMemcpyAsync(rows_.data(), rows.data(), rows.size() * sizeof(bf16), cudaMemcpyDefault, stream),
                "rows");
    const auto view = dense_view<Space::device>(rows_.data(), {step.num_rows(), kv_heads, head_dim});
    const cuda::StepView on_device = workspace_.upload(step, stream);
    for (int layer = 0; layer < num_layers; ++layer) cuda::store_kv(on_device, pool.layer(layer), view, view, stream);
    step.commit();
  }

  /// K and V of the last layer, as attention would read them: through the block table.
  std::vector<bf16> read(const Sequence& sequence) {
    BatchTables tables{{.max_seqs = 1, .max_blocks_per_seq = num_blocks, .block_size = block_size}};
    tables.add(sequence, 1);
    const auto k = dense_view<Space::device>(rows_.data(), {sequence.size(), kv_heads, head_dim});
    const auto v =
        dense_view<Space::device>(rows_.data() + k.extents[0] * k.strides[0], {sequence.size(), kv_heads, head_dim});
    cuda::gather_kv(workspace_.upload(tables.view(), stream), {}, pool.layer(num_layers - 1), k, v, stream);
    std::vector<bf16> copy(static_cast<std::size_t>(2 * k.extents[0] * k.strides[0]));
    cuda::check(cudaMemcpyAsync(copy.data(), rows_.data(), copy.size() * sizeof(bf16), cudaMemcpyDefault, stream),
                "read");
    cuda::check(cudaStreamSynchronize(stream), "read");
    return copy;
  }

  cudaStream_t stream = nullptr;  // the default stream
  cuda::KvPool<bf16> pool{layout_of(num_blocks)};

 private:
  std::mt19937 generator_{7};
  cuda::Workspace workspace_{{.max_seqs = 1, .max_blocks_per_seq = num_blocks, .max_tokens = num_blocks * block_size}};
  cuda::DeviceArray<bf16> rows_{2 * num_blocks * block_size * kv_heads * head_dim};
};

/// The blocks of two sequences of one length in two pools, side by side.
std::vector<BlockPair> pairs(const Sequence& from, const Sequence& to) {
  std::vector<BlockPair> pairs;
  for (std::size_t i = 0; i < from.blocks().size(); ++i) pairs.push_back({from.blocks()[i], to.blocks()[i]});
  return pairs;
}

}  // namespace

int main() {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  Cache cache;
  cuda::PinnedKvPool<bf16> host_pool{layout_of(num_host_blocks)};
  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = block_size}};
  BlockAllocator host_blocks{{.num_blocks = num_host_blocks, .block_size = block_size}};

  StepPlan step;
  Sequence patient{blocks};
  if (!patient.append(70, step)) return 1;
  cache.run(step);
  const std::vector<bf16> before = cache.read(patient);

  Sequence urgent{blocks};
  std::printf("room for 100 tokens beside 70: %s\n", urgent.append(100, step) ? "yes" : "no");

  // [swap-out]
  Sequence parked{host_blocks};  // the same length in host memory; a plan that nobody computes only counts
  StepPlan moves;
  if (!parked.append(patient.size(), moves)) return 1;
  moves.commit();
  cuda::swap_blocks(pairs(patient, parked), cache.pool.layers(), host_pool.layers(), cache.stream);
  patient.truncate(0);  // its blocks may be written again: in the order of the stream, behind the copy
  // [swap-out]
  std::printf("room once it is swapped out: %s\n", urgent.append(100, step) ? "yes" : "no");
  cache.run(step);
  urgent.truncate(0);  // done

  // [swap-in]
  if (!patient.append(parked.size(), moves)) return 1;  // no: wait, and nothing has changed
  moves.commit();
  cuda::swap_blocks(pairs(parked, patient), host_pool.layers(), cache.pool.layers(), cache.stream);
  if (!patient.append(1, step)) return 1;  // goes on where it was
  // [swap-in]
  cache.run(step);

  const std::vector<bf16> after = cache.read(patient);
  int num_different = 0;
  const std::size_t old_elements = before.size() / 2, new_elements = after.size() / 2;
  for (std::size_t i = 0; i < old_elements; ++i)
    num_different += before[i].bits != after[i].bits || before[old_elements + i].bits != after[new_elements + i].bits;
  std::printf("resumed with %d tokens: %d of the old ones' %zu elements differ\n", patient.size(), num_different,
              before.size());
}
