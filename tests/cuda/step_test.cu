// copy_blocks and store_kv on the GPU leave the same bytes in the pool as on the CPU; uploads never overtake each other.
#include <doctest/doctest.h>

#include <cstdint>
#include <optional>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/cuda/step.cuh"
#include "support/two_pools.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Prompts, forks that write into shared tails, a truncated row: every kind of entry a StepPlan has.
template <class T, class X>
void steps_leave_the_same_bytes(const KvLayout& layout) {
  BlockAllocator blocks({.num_blocks = static_cast<std::int32_t>(layout.num_blocks), .block_size = layout.block_size});
  TwoPools<T> pools(layout);
  cuda::Workspace workspace({.max_seqs = 4, .max_blocks_per_seq = 8, .max_tokens = 64, .max_copies = 8});
  StepPlan step;
  const auto execute = [&](std::uint64_t seed) {
    const cuda::StepView view = workspace.upload(step, nullptr);
    cpu::copy_blocks(step, pools.host);
    cuda::copy_blocks(view, pools.device, nullptr);
    for (int layer = 0; layer < layout.num_layers; ++layer) {
      const Rows<X> k(step.num_rows(), layout.kv_heads, layout.head_dim, seed);
      const Rows<X> v(step.num_rows(), layout.kv_heads, layout.value_dim(), seed + 1);
      cpu::store_kv(step, pools.host.layer(layer), k.on_host(), v.on_host());
      cuda::store_kv(view, pools.device.layer(layer), k.on_device(), v.on_device(), nullptr);
    }
    step.commit();
    REQUIRE(pools.equal());
  };

  Sequence prompt(blocks);
  REQUIRE(prompt.append(3 * layout.block_size / 2 + 1, step));
  execute(10);
  Sequence left = prompt.fork(), right = prompt.fork();
  REQUIRE(left.append(2, step));
  REQUIRE(right.append(3, step));
  REQUIRE(prompt.append(1, step));
  left.truncate(left.size() - 1);
  execute(20);
}

}  // namespace

TEST_CASE("a step leaves the same bytes on the GPU as on the CPU, in both orders and whatever the alignment") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_layers = 3, .num_blocks = 12, .kv_heads = 2, .block_size = 16, .head_dim = 64, .order = order};
    steps_leave_the_same_bytes<bf16, bf16>(layout);
    steps_leave_the_same_bytes<bf16, float>(layout);
    steps_leave_the_same_bytes<float, float>(layout);
    layout.head_dim_v = 33;  // no 16-byte pieces
    layout.block_size = 5;
    steps_leave_the_same_bytes<f16, float>(layout);
  }
}

TEST_CASE("uploads that follow each other without waiting all arrive as they were given") {
  const KvLayout layout{.num_blocks = 64, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  BlockAllocator blocks({.num_blocks = 64, .block_size = 4});
  TwoPools<float> pools(layout);
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1, .max_tokens = 8, .max_copies = 1});
  const Rows<float> rows(64, 1, 8, 3);
  Sequence sequence(blocks);
  StepPlan step;
  for (int i = 0; i < 64; ++i) {
    REQUIRE(sequence.append(1, step));
    const auto row = [&](auto view) {
      view.data = view.at(i, 0, 0);
      view.extents[0] = 1;
      return view;
    };
    cpu::store_kv(step, pools.host.layer(0), row(rows.on_host()), row(rows.on_host()));
    const cuda::StepView view = workspace.upload(step, nullptr);
    cuda::store_kv(view, pools.device.layer(0), row(rows.on_device()), row(rows.on_device()), nullptr);
    step.commit();
  }
  CHECK(pools.equal());
}

TEST_CASE("a captured step stores and copies whatever the last upload holds, also less than was captured") {
  const KvLayout layout{.num_blocks = 12, .kv_heads = 2, .block_size = 4, .head_dim = 8};
  BlockAllocator blocks({.num_blocks = 12, .block_size = 4});
  TwoPools<float> pools(layout);
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1, .max_tokens = 8, .max_copies = 2});
  const Rows<float> rows(8, 2, 8, 3);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  StepPlan none;
  CHECK_THROWS_AS(static_cast<void>(workspace.upload(none, stream)), InvalidArgument);
  cuda::copy_blocks(workspace.step(8), pools.device, stream);
  cuda::store_kv(workspace.step(8), pools.device.layer(0), rows.on_device(), rows.on_device(), stream);
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");

  Sequence first(blocks);
  std::optional<Sequence> fork;
  for (const int num_rows : {6, 3, 0, 8}) {
    StepPlan step;
    if (num_rows > 0) REQUIRE(first.append(num_rows, step));
    cpu::copy_blocks(step, pools.host);
    auto host_rows = rows.on_host();
    host_rows.extents[0] = num_rows;
    cpu::store_kv(step, pools.host.layer(0), host_rows, host_rows);
    static_cast<void>(workspace.upload(step, stream));
    cuda::check(cudaGraphLaunch(executable, stream), "replay");
    step.commit();
    if (!fork) fork = first.fork();  // the next append copies the tail
    CHECK(pools.equal());
  }
  static_cast<void>(cudaGraphExecDestroy(executable));
  static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaStreamDestroy(stream));
}

TEST_CASE("a step larger than the workspace, or rows that do not fit the cache, are refused by name") {
  const KvLayout layout{.num_blocks = 8, .kv_heads = 2, .block_size = 4, .head_dim = 8};
  BlockAllocator blocks({.num_blocks = 8, .block_size = 4});
  cuda::KvPool<float> pool(layout);
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1, .max_tokens = 3, .max_copies = 1});
  Sequence sequence(blocks);
  StepPlan step;
  REQUIRE(sequence.append(3, step));
  const cuda::StepView view = workspace.upload(step, nullptr);
  const Rows<float> fits(3, 2, 8, 1), too_many(4, 2, 8, 1), too_narrow(3, 2, 7, 1);
  CHECK_THROWS_AS(cuda::store_kv(view, pool.layer(0), too_many.on_device(), too_many.on_device(), nullptr),
                  InvalidArgument);
  CHECK_THROWS_AS(cuda::store_kv(view, pool.layer(0), fits.on_device(), too_narrow.on_device(), nullptr),
                  InvalidArgument);
  REQUIRE(sequence.append(1, step));
  CHECK_THROWS_WITH_AS(static_cast<void>(workspace.upload(step, nullptr)),
                       doctest::Contains("rows of a step, at most 3 expected, 4 given"), InvalidArgument);
  step.commit();
}
