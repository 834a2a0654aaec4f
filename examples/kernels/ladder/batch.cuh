// Batch: sequences to decode, in a paged cache on the GPU, with the reference's answer.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/ladder/work.cuh"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cpu/reference.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/storage/kv_layout.hpp"

namespace ladder {

using Problem = AttentionProblem<Space::device, bf16>;

/// Values in [-1, 1]: zeros draw less power and run faster than data do.
static __global__ void fill_kernel(bf16* data, std::int64_t size) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    const auto hash = static_cast<std::uint32_t>(i) * 2654435761u;
    data[i] = from_float<bf16>(static_cast<float>(hash >> 8) * 0x1p-23f - 1.f);
  }
}

class Batch {
 public:
  static constexpr int block_size = 16;

  /// `num_sets` caches of the same shape, the layers of one pool, each with its own keys and values; blocks lie
  /// anywhere.
  Batch(const std::vector<int>& kv_lens, int q_heads, int kv_heads, int num_sets)
      : num_seqs_(static_cast<int>(kv_lens.size())),
        q_heads_(q_heads),
        pool_({.num_layers = num_sets,
               .num_blocks = num_blocks(kv_lens),
               .kv_heads = kv_heads,
               .block_size = block_size,
               .head_dim = head_dim}),
        workspace_({.max_seqs = num_seqs_, .max_blocks_per_seq = max_blocks(kv_lens), .head_dim_v = head_dim}),
        tables_({.max_seqs = num_seqs_, .max_blocks_per_seq = max_blocks(kv_lens), .block_size = block_size}),
        q_(static_cast<std::size_t>(num_seqs_ * q_heads * head_dim)),
        device_q_(q_.size()),
        device_out_(q_.size()) {
    std::mt19937 generator(1);
    std::vector<BlockId> blocks(static_cast<std::size_t>(num_blocks(kv_lens)));
    for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = BlockId{static_cast<std::int32_t>(i)};
    std::ranges::shuffle(blocks, generator);
    std::span<const BlockId> rest = blocks;
    for (const int kv_len : kv_lens) {
      const auto count = static_cast<std::size_t>(ceil_div(kv_len, block_size));
      tables_.add(rest.first(count), kv_len, 1);
      rest = rest.subspan(count);
    }
    device_tables_ = workspace_.upload(tables_, nullptr);

    bf16* const elements = pool_.layers().first.k.data;
    fill_kernel<<<1024, 256>>>(elements, static_cast<std::int64_t>(pool_.size_bytes() / sizeof(bf16)));
    for (bf16& x : q_) x = from_float<bf16>(std::uniform_real_distribution(-6.f, 6.f)(generator));
    cuda::check(cudaMemcpy(device_q_.data(), q_.data(), device_q_.size_bytes(), cudaMemcpyDefault), "copy q");
    cuda::check(cudaDeviceSynchronize(), "fill");
  }

  int num_sets() const { return pool_.layout().num_layers; }
  cuda::Workspace& workspace() { return workspace_; }
  std::int64_t kv_bytes() const {
    const auto kv_len = tables_.view().kv_len;
    return std::accumulate(kv_len.data, kv_len.data + num_seqs_, std::int64_t{0}) * pool_.layout().kv_heads * head_dim *
           2 * static_cast<std::int64_t>(sizeof(bf16));
  }

  Problem problem(int set) {
    return {.q = dense_view<Space::device>(static_cast<const bf16*>(device_q_.data()), {num_seqs_, q_heads_, head_dim}),
            .kv = pool_.layer(set),
            .tables = device_tables_,
            .out = dense_view<Space::device>(device_out_.data(), {num_seqs_, q_heads_, head_dim}),
            .lse = {},
            .scale = scale};
  }

  /// What attention over set 0 means, [num_seqs, q_heads, head_dim]; computed on the host, one key after another.
  std::vector<float> reference() {
    KvLayout layout = pool_.layout();
    layout.num_layers = 1;
    std::vector<bf16> cache(static_cast<std::size_t>(layout.num_elements()));
    cuda::check(cudaMemcpy(cache.data(), pool_.layer(0).k.data, cache.size() * sizeof(bf16), cudaMemcpyDefault),
                "copy K and V");
    std::vector<float> out(q_.size());
    const AttentionProblem<Space::host, bf16, bf16, float> problem{
        .q = dense_view(static_cast<const bf16*>(q_.data()), {num_seqs_, q_heads_, head_dim}),
        .kv = layers_view(static_cast<const bf16*>(cache.data()), layout).layer(0),
        .tables = tables_.view(),
        .out = dense_view(out.data(), {num_seqs_, q_heads_, head_dim}),
        .lse = {},
        .scale = scale};
    cpu::attend_reference(problem, Causal{});
    return out;
  }

  /// The largest difference between what the last launch wrote and `expected`, as a part of the largest expected value.
  /// Infinity where something is NaN; leaves NaN behind, for the next launch to overwrite.
  float error(const std::vector<float>& expected) {
    std::vector<bf16> out(expected.size());
    cuda::check(cudaMemcpy(out.data(), device_out_.data(), device_out_.size_bytes(), cudaMemcpyDefault), "copy out");
    cuda::check(cudaMemset(device_out_.data(), 0xff, device_out_.size_bytes()), "clear out");
    float worst = 0.f, largest = 0.f;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const float difference = std::abs(to_float(out[i]) - expected[i]);
      worst = std::max(worst, std::isnan(difference) ? infinity : difference);
      largest = std::max(largest, std::abs(expected[i]));
    }
    return worst / largest;
  }

 private:
  static constexpr float scale = 0.08838834764f;  // 1 / sqrt(head_dim)

  static std::int64_t num_blocks(const std::vector<int>& kv_lens) {
    std::int64_t count = 0;
    for (const int kv_len : kv_lens) count += ceil_div(kv_len, block_size);
    return count;
  }
  static int max_blocks(const std::vector<int>& kv_lens) {
    return ceil_div(*std::ranges::max_element(kv_lens), block_size);
  }

  int num_seqs_, q_heads_;
  cuda::KvPool<bf16> pool_;
  cuda::Workspace workspace_;
  BatchTables tables_;
  TablesView<Space::device> device_tables_;
  std::vector<bf16> q_;  // [num_seqs, q_heads, head_dim]
  cuda::DeviceArray<bf16> device_q_, device_out_;
};

}  // namespace ladder
