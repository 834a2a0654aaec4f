// The kernels inside somebody else's engine: its tensors, its block tables, its stream; not a byte is copied or moved.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/reference.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/foreign_tables.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/workspace.cuh"

using pagedkv::bf16;

namespace {

constexpr int q_heads = 8, kv_heads = 2, head_dim = 64, block_size = 16, num_blocks = 40, num_seqs = 3, max_blocks = 8;

// [theirs]
/// What an engine hands to its attention layer, say from PyTorch tensors: raw device pointers.
struct DecodeStep {
  const bf16 *q, *k, *v;             // [num_seqs, heads, head_dim]: one new token each
  bf16* kv_cache;                    // [num_blocks, 2, block_size, kv_heads, head_dim]
  const std::int32_t* block_tables;  // [num_seqs, max_blocks], whatever behind a sequence's last block
  const std::int32_t* context_lens;  // [num_seqs], the new token included
  const std::int32_t* query_begin;   // 0, 1, .. num_seqs: made once
  const std::int64_t* slot_mapping;  // [num_seqs]: block * block_size + offset of the new token
  bf16* out;                         // like q
};
// [theirs]

// [views]
/// K and V as pagedkv sees them: the axes in its order, their strides. In host memory it is the same function.
template <pagedkv::Space S>
pagedkv::KvView<bf16, S> view_of(bf16* kv_cache) {
  constexpr std::int64_t slot = kv_heads * head_dim, block = 2 * block_size * slot;
  const auto half = [&](bf16* data) {
    return pagedkv::View<bf16, 4, S>{
        .data = data, .extents = {num_blocks, kv_heads, block_size, head_dim}, .strides = {block, head_dim, slot, 1}};
  };
  return {.k = half(kv_cache), .v = half(kv_cache + block_size * slot)};
}

template <class T, std::size_t Rank>
auto on_device(T* data, const std::int64_t (&extents)[Rank]) {
  return pagedkv::dense_view<pagedkv::Space::device>(data, extents);
}

/// The attention layer. Nothing waits or allocates, and it may be captured in a graph.
void attend(const DecodeStep& step, pagedkv::cuda::Workspace& workspace, cudaStream_t stream) {
  const pagedkv::KvView<bf16, pagedkv::Space::device> kv = view_of<pagedkv::Space::device>(step.kv_cache);
  pagedkv::cuda::store_kv({.copies = {}, .slots = on_device(step.slot_mapping, {num_seqs})}, kv,
                          on_device(step.k, {num_seqs, kv_heads, head_dim}),
                          on_device(step.v, {num_seqs, kv_heads, head_dim}), stream);
  const auto tables = pagedkv::cuda::view_tables({.block_tables = on_device(step.block_tables, {num_seqs, max_blocks}),
                                                  .context_lens = on_device(step.context_lens, {num_seqs}),
                                                  .query_begin = on_device(step.query_begin, {num_seqs + 1})},
                                                 {.max_q_len = 1, .max_kv_len = max_blocks * block_size});
  const pagedkv::AttentionProblem<pagedkv::Space::device, bf16> problem{
      .q = on_device(step.q, {num_seqs, q_heads, head_dim}),
      .kv = kv,
      .tables = tables,
      .out = on_device(step.out, {num_seqs, q_heads, head_dim}),
      .lse = {},
      .scale = 1 / std::sqrt(float{head_dim})};
  pagedkv::cuda::decode<head_dim>(problem, pagedkv::Causal{}, workspace, stream);
}
// [views]

/// The engine around it: tensors that live on the host and, each time it is asked, on the GPU.
template <class T>
struct Tensor {
  std::vector<T> host;
  pagedkv::cuda::DeviceArray<T> device{host.size()};

  T* upload() const {
    pagedkv::cuda::check(cudaMemcpy(device.data(), host.data(), device.size_bytes(), cudaMemcpyDefault), "upload");
    return device.data();
  }
};

Tensor<bf16> random_tensor(std::size_t size) {
  static std::mt19937 generator{7};
  std::vector<bf16> values(size);
  for (bf16& x : values) x = pagedkv::from_float<bf16>(static_cast<float>(generator() % 2001) / 1000.f - 1.f);
  return {std::move(values)};
}

}  // namespace

int main() {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  const Tensor<bf16> q = random_tensor(num_seqs * q_heads * head_dim),
                     k = random_tensor(num_seqs * kv_heads * head_dim),
                     v = random_tensor(num_seqs * kv_heads * head_dim), out = random_tensor(q.host.size());
  Tensor<bf16> kv_cache = random_tensor(std::size_t{2} * num_blocks * block_size * kv_heads * head_dim);
  const Tensor<std::int32_t> lens{{1, 37, 100}}, query_begin{{0, 1, 2, 3}};
  Tensor<std::int32_t> tables{std::vector<std::int32_t>(num_seqs * max_blocks, -1)};
  Tensor<std::int64_t> slots{std::vector<std::int64_t>(num_seqs)};
  for (int s = 0, block = 11; s < num_seqs; ++s) {
    for (int i = 0; i * block_size < lens.host[s]; ++i)
      tables.host[s * max_blocks + i] = block = (block + 17) % num_blocks;
    slots.host[s] = std::int64_t{block} * block_size + (lens.host[s] - 1) % block_size;
  }

  pagedkv::cuda::Workspace workspace{{.max_seqs = num_seqs, .max_blocks_per_seq = max_blocks}};
  attend({.q = q.upload(),
          .k = k.upload(),
          .v = v.upload(),
          .kv_cache = kv_cache.upload(),
          .block_tables = tables.upload(),
          .context_lens = lens.upload(),
          .query_begin = query_begin.upload(),
          .slot_mapping = slots.upload(),
          .out = out.device.data()},
         workspace, nullptr);
  std::vector<bf16> attended(out.host.size());
  pagedkv::cuda::check(cudaMemcpy(attended.data(), out.device.data(), out.device.size_bytes(), cudaMemcpyDefault),
                       "out");

  // The same step in host memory, by the definition of attention.
  const auto kv = view_of<pagedkv::Space::host>(kv_cache.host.data());
  for (int s = 0; s < num_seqs; ++s)
    for (int head = 0; head < kv_heads; ++head)
      for (int d = 0; d < head_dim; ++d) {
        const std::int64_t from = (std::int64_t{s} * kv_heads + head) * head_dim + d;
        kv.k(slots.host[s] / block_size, head, slots.host[s] % block_size, d) = k.host[from];
        kv.v(slots.host[s] / block_size, head, slots.host[s] % block_size, d) = v.host[from];
      }
  std::vector<float> expected(q.host.size());
  const pagedkv::AttentionProblem<pagedkv::Space::host, bf16, bf16, float> same_problem{
      .q = pagedkv::dense_view(q.host.data(), {num_seqs, q_heads, head_dim}),
      .kv = kv,
      .tables = {.block_ids = pagedkv::dense_view(tables.host.data(), {num_seqs, max_blocks}),
                 .kv_len = pagedkv::dense_view(lens.host.data(), {num_seqs}),
                 .query_begin = pagedkv::dense_view(query_begin.host.data(), {num_seqs + 1}),
                 .max_q_len = 1,
                 .max_kv_len = max_blocks * block_size},
      .out = pagedkv::dense_view(expected.data(), {num_seqs, q_heads, head_dim}),
      .lse = {},
      .scale = 1 / std::sqrt(float{head_dim})};
  pagedkv::cpu::attend_reference(same_problem, pagedkv::Causal{});
  float worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i)
    worst = std::max(worst, std::abs(pagedkv::to_float(attended[i]) - expected[i]));
  std::printf("%d sequences of another engine: %s\n", num_seqs,
              worst < 1e-2f ? "agree with the reference" : "ARE WRONG");
}
