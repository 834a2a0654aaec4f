// Rules of attention of your own: plain structs, one source for CPU and GPU, alone or chained with others.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/storage/kv_pool.hpp"

using namespace pagedkv;

namespace {

constexpr int q_heads = 8, kv_heads = 2, head_dim = 64, block_size = 16;

// [two-rules]
struct
    LocalAndStrided {  // the newest keys, and every stride-th of the older ones at a discount (after arXiv:1904.10509)
  int local, stride;
  float discount;
  PAGEDKV_HD float logit(float x, Position p) const { return p.query - p.key < local ? x : x - discount; }
  PAGEDKV_HD bool visible(Position p) const { return p.query - p.key < local || p.key % stride == 0; }
  PAGEDKV_HD KeyRanges keys(int /*query*/, int num_keys) const { return {{0, num_keys}}; }
};

template <Space S>  // a rule with data of its own says on which side of the bus they lie
struct SameDocument {
  static constexpr Space space = S;
  const int* begin;  // of the document that a position belongs to, [positions]
  PAGEDKV_HD float logit(float x, Position) const { return x; }
  PAGEDKV_HD bool visible(Position p) const { return p.key >= begin[p.query]; }
  PAGEDKV_HD KeyRanges keys(int /*query*/, int num_keys) const { return {{0, num_keys}}; }
};

static_assert(AttentionVariant<LocalAndStrided> && VariantFor<SameDocument<Space::device>, Space::device>);
// [two-rules]

template <class T>
cuda::DeviceArray<T> to_device(const std::vector<T>& elements) {
  cuda::DeviceArray<T> copy(elements.size());
  cuda::check(cudaMemcpy(copy.data(), elements.data(), copy.size_bytes(), cudaMemcpyDefault), "copy to the GPU");
  return copy;
}

std::vector<bf16> random_values(int count) {
  static std::mt19937 generator{7};
  std::vector<bf16> values(static_cast<std::size_t>(count));
  for (bf16& value : values) value = from_float<bf16>(static_cast<float>(generator() % 2001) / 1000.f - 1.f);
  return values;
}

/// One batch on both sides: what `on_cpu(problem)` and `on_gpu(problem)` write is compared.
template <class OnCpu, class OnGpu>
void compare(const char* name, const BatchTables& tables, KvPool<bf16>& pool, cuda::KvPool<bf16>& device_pool,
             OnCpu&& on_cpu, OnGpu&& on_gpu) {
  const std::int64_t num_tokens = tables.num_tokens();
  const std::vector<bf16> q = random_values(tables.num_tokens() * q_heads * head_dim);
  std::vector<float> expected(q.size());
  const AttentionProblem<Space::host, bf16, bf16, float> problem{
      .q = dense_view(q.data(), {num_tokens, q_heads, head_dim}),
      .kv = pool.layer(0),
      .tables = tables.view(),
      .out = dense_view(expected.data(), {num_tokens, q_heads, head_dim}),
      .lse = {},
      .scale = 1 / std::sqrt(float{head_dim})};
  on_cpu(problem);

  cuda::Workspace workspace{{.max_seqs = tables.max_seqs(), .max_blocks_per_seq = tables.max_blocks_per_seq()}};
  const auto device_q = to_device(q);
  const cuda::DeviceArray<bf16> device_out{q.size()};
  on_gpu(
      AttentionProblem<Space::device, bf16>{
          .q = dense_view<Space::device>(device_q.data(), {num_tokens, q_heads, head_dim}),
          .kv = device_pool.layer(0),
          .tables = workspace.upload(tables, nullptr),
          .out = dense_view<Space::device>(device_out.data(), {num_tokens, q_heads, head_dim}),
          .lse = {},
          .scale = problem.scale},
      workspace);

  std::vector<bf16> out(q.size());
  cuda::check(cudaMemcpy(out.data(), device_out.data(), device_out.size_bytes(), cudaMemcpyDefault), "copy back");
  bool agree = true;
  for (std::size_t i = 0; i < out.size(); ++i) agree &= std::abs(to_float(out[i]) - expected[i]) < 1e-2f;  // NaN is not
  std::printf("%s: %s\n", name, agree ? "GPU and CPU agree" : "GPU AND CPU DIFFER");
}

}  // namespace

int main() {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  const KvLayout layout{.num_blocks = 64, .kv_heads = kv_heads, .block_size = block_size, .head_dim = head_dim};
  BlockAllocator blocks{{.num_blocks = 64, .block_size = block_size}};
  KvPool<bf16> pool{layout};
  cuda::KvPool<bf16> device_pool{layout};
  Sequence prompt{blocks}, decoding{blocks};
  StepPlan step;
  if (!prompt.append(150, step) || !decoding.append(333, step)) return 1;
  const auto k = random_values(step.num_rows() * kv_heads * head_dim),
             v = random_values(step.num_rows() * kv_heads * head_dim);
  cpu::store_kv(step, pool.layer(0), dense_view(k.data(), {step.num_rows(), kv_heads, head_dim}),
                dense_view(v.data(), {step.num_rows(), kv_heads, head_dim}));
  step.commit();
  cuda::check(
      cudaMemcpy(device_pool.layer(0).k.data, pool.layer(0).k.data, device_pool.size_bytes(), cudaMemcpyDefault),
      "copy the pool");

  // [decode-alone]
  BatchTables newest{{.max_seqs = 2, .max_blocks_per_seq = 32, .block_size = block_size}};
  newest.add(prompt, 1);
  newest.add(decoding, 1);
  const LocalAndStrided sparse{.local = 20, .stride = 7, .discount = .5f};
  compare(
      "decode, a rule alone", newest, pool, device_pool, [&](const auto& problem) { cpu::attend(problem, sparse); },
      [&](const auto& problem, auto& workspace) { cuda::decode<head_dim>(problem, sparse, workspace, nullptr); });
  // [decode-alone]

  // [prefill-chained]
  BatchTables whole{{.max_seqs = 1, .max_blocks_per_seq = 32, .block_size = block_size}};
  whole.add(prompt, 150);  // three documents packed into one prompt
  std::vector<int> begin(150);
  for (int i = 0; i < 150; ++i) begin[static_cast<std::size_t>(i)] = i < 40 ? 0 : i < 101 ? 40 : 101;
  const auto device_begin = to_device(begin);
  compare(
      "prefill, a chain of three", whole, pool, device_pool,
      [&](const auto& problem) {
        cpu::attend(problem, chain(Causal{}, sparse, SameDocument<Space::host>{begin.data()}));
      },
      [&](const auto& problem, auto& workspace) {
        const SameDocument<Space::device> same_document{device_begin.data()};
        cuda::prefill<head_dim>(problem, chain(Causal{}, sparse, same_document), workspace, nullptr);
      });
  // [prefill-chained]
}
