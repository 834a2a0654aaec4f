// Kernels launched ahead of the end of the one in front: in a long chain of them every decode sees the K, V and Q of its
// step.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "pagedkv/cuda/step.cuh"
#include "support/decode_entry.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/next_step.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int num_steps = 2000, head_dim = 64;

template <class T>
using Array = DeviceArrayView<T>;

/// Stands for the rest of a layer: makes the next step's q, k and v of the output of this one, any bit of which changes
/// them all. Starts its successors at once and takes its time: whoever does not wait for it reads what is not there yet.
__global__ void next_step_kernel(Array<const bf16> out, Array<bf16> q, Array<bf16> k, Array<bf16> v,
                                 Array<std::uint64_t> digest, std::uint64_t step) {
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  const std::uint64_t state = state_of(out, step);
  __nanosleep(static_cast<unsigned>(state % 4096));
  fill_by_state(q, state, 1u << 20, 6.f);
  fill_by_state(k, state, 2u << 20, 1.f);
  fill_by_state(v, state, 3u << 20, 1.f);
  if (threadIdx.x == 0) digest(static_cast<std::int64_t>(step)) = state;
}

ProblemShape batch(const std::vector<int>& kv_len, int kv_heads) {
  return {.seed = 71,
          .q_len = std::vector<int>(kv_len.size(), 1),
          .kv_len = kv_len,
          .kv_heads = kv_heads,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = 16,
          .shares_prefixes = false};
}

/// What every step's output was, from a chain of next_step, store_kv and decode, the newest key of each sequence being
/// written anew in each step.
std::vector<std::uint64_t> run_chain(const ProblemShape& shape, cuda::Launch mode) {
  GeneratedProblem<bf16> generated(shape);
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  Stream stream;
  const auto problem = device.problem();
  const std::int64_t num_rows = generated.shape.num_seqs(), row = generated.shape.kv_heads * head_dim;

  std::vector<Slot> slots;
  for (int s = 0; s < generated.shape.num_seqs(); ++s) {
    const int last = generated.kv_len[static_cast<std::size_t>(s)] - 1;
    const auto entry = static_cast<std::size_t>(s * generated.max_blocks_per_seq + last / 16);
    slots.push_back(Slot{generated.block_ids[entry]} * 16 + last % 16);
  }
  const auto device_slots = to_device(slots);
  const cuda::StepView step{
      .copies = {}, .slots = dense_view<Space::device>(static_cast<const Slot*>(device_slots.data()), {num_rows})};
  cuda::DeviceArray<bf16> k(static_cast<std::size_t>(num_rows * row)), v(static_cast<std::size_t>(num_rows * row));
  const auto rows_of = [&](bf16* data) {
    return dense_view<Space::device>(static_cast<const bf16*>(data), {num_rows, generated.shape.kv_heads, head_dim});
  };
  const auto digest = to_device(std::vector<std::uint64_t>(num_steps, 0));
  const auto flat = [](auto* data, std::int64_t count) { return dense_view<Space::device>(data, {count}); };
  const std::int64_t num_outputs = num_rows * generated.shape.q_heads() * head_dim;
  const auto layer = device.pool();

  device.clear_outputs();
  cuda::check(cudaDeviceSynchronize(), "chain");
  for (int i = 0; i < num_steps; ++i) {
    cuda::launch(next_step_kernel, {.grid = dim3(1), .threads = 256}, mode, stream, "next step",
                 flat(static_cast<const bf16*>(problem.out.data), num_outputs),
                 flat(const_cast<bf16*>(problem.q.data), num_outputs), flat(k.data(), num_rows * row),
                 flat(v.data(), num_rows * row), flat(digest.data(), num_steps), static_cast<std::uint64_t>(i));
    cuda::store_kv(step, layer, rows_of(k.data()), rows_of(v.data()), stream, mode);
    decode(problem, DeviceRule(Causal{}), workspace, stream, {.launch = mode});
  }
  std::vector<std::uint64_t> result;
  to_host(result, digest);
  return result;
}

}  // namespace

TEST_CASE("2,000 steps of store_kv and decode that overlap give the bits of the same steps one after another") {
  for (const ProblemShape& shape : {batch({200, 17, 33, 2000}, 2), batch({1500}, 8)}) {
    const std::vector<std::uint64_t> expected = run_chain(shape, cuda::Launch::after_previous);
    CHECK(expected[num_steps - 1] != expected[num_steps - 2]);
    const std::vector<std::uint64_t> overlapped = run_chain(shape, cuda::Launch::overlap_previous);
    std::size_t first_difference = 0;
    while (first_difference < expected.size() && overlapped[first_difference] == expected[first_difference])
      ++first_difference;
    CHECK_MESSAGE(first_difference == expected.size(), "first difference in step ", first_difference);
  }
}
