// Attention over a paged cache on the GPU: the same pool, step and problem as on the CPU, with device memory behind them.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/reference.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/storage/kv_pool.hpp"

using namespace pagedkv;

namespace {

constexpr int q_heads = 8, kv_heads = 2, head_dim = 64;
constexpr KvLayout layout{.num_blocks = 64, .kv_heads = kv_heads, .block_size = 16, .head_dim = head_dim};

std::vector<bf16> random_rows(int num_rows, int heads) {
  static std::mt19937 generator{7};
  std::vector<bf16> values(static_cast<std::size_t>(num_rows * heads * head_dim));
  for (bf16& value : values) value = from_float<bf16>(static_cast<float>(generator() % 2001) / 1000.f - 1.f);
  return values;
}

// What an application does with its own tensors: device memory and a copy.
cuda::DeviceArray<bf16> to_device(const std::vector<bf16>& values) {
  cuda::DeviceArray<bf16> array{values.size()};
  cuda::check(cudaMemcpy(array.data(), values.data(), values.size() * sizeof(bf16), cudaMemcpyDefault),
              "copy to the GPU");
  return array;
}

}  // namespace

int main() {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 16}};
  Sequence prompt{blocks}, decoding{blocks};
  StepPlan step;
  if (!prompt.append(37, step) || !decoding.append(200, step)) return 1;
  const std::vector<bf16> k = random_rows(step.num_rows(), kv_heads), v = random_rows(step.num_rows(), kv_heads);
  const std::vector<bf16> q = random_rows(38, q_heads);
  const auto device_k = to_device(k), device_v = to_device(v), device_q = to_device(q);
  const cuda::DeviceArray<bf16> device_out{q.size()};

  // [gpu]
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "create a stream");
  cuda::KvPool<bf16> pool{layout};
  cuda::Workspace workspace{{.max_seqs = 8, .max_blocks_per_seq = 64}};  // the only scratch memory; never grows

  const cuda::StepView on_device = workspace.upload(step, stream);
  cuda::copy_blocks(on_device, pool, stream);  // once a step, all layers
  cuda::store_kv(on_device, pool.layer(0),
                 dense_view<Space::device>(device_k.data(), {step.num_rows(), kv_heads, head_dim}),
                 dense_view<Space::device>(device_v.data(), {step.num_rows(), kv_heads, head_dim}), stream);

  BatchTables tables{{.max_seqs = 8, .max_blocks_per_seq = 64, .block_size = 16}};
  tables.add(prompt, 37);   // prefill
  tables.add(decoding, 1);  // decode, in the same call
  const AttentionProblem<Space::device, bf16> problem{
      .q = dense_view<Space::device>(device_q.data(), {tables.num_tokens(), q_heads, head_dim}),
      .kv = pool.layer(0),
      .tables = workspace.upload(tables, stream),
      .out = dense_view<Space::device>(device_out.data(), {tables.num_tokens(), q_heads, head_dim}),
      .lse = {},
      .scale = 1 / std::sqrt(float{head_dim})};
  cuda::attend<head_dim>(problem, Causal{}, workspace, stream);
  // [gpu]

  KvPool<bf16> host_pool{layout};
  cpu::store_kv(step, host_pool.layer(0), dense_view(k.data(), {step.num_rows(), kv_heads, head_dim}),
                dense_view(v.data(), {step.num_rows(), kv_heads, head_dim}));
  step.commit();
  std::vector<float> reference(q.size());
  const AttentionProblem<Space::host, bf16, bf16, float> same_problem{
      .q = dense_view(q.data(), {tables.num_tokens(), q_heads, head_dim}),
      .kv = host_pool.layer(0),
      .tables = tables.view(),
      .out = dense_view(reference.data(), {tables.num_tokens(), q_heads, head_dim}),
      .lse = {},
      .scale = problem.scale};
  cpu::attend_reference(same_problem, Causal{});

  std::vector<bf16> out(q.size());
  cuda::check(cudaMemcpyAsync(out.data(), device_out.data(), out.size() * sizeof(bf16), cudaMemcpyDefault, stream),
              "copy back");
  cuda::check(cudaStreamSynchronize(stream), "wait");
  cuda::check(cudaStreamDestroy(stream), "destroy the stream");
  float worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i) worst = std::max(worst, std::abs(to_float(out[i]) - reference[i]));
  std::printf("%d query rows on the GPU: %s\n", tables.num_tokens(),
              worst < 1e-2f ? "agree with the reference" : "ARE WRONG");
}
