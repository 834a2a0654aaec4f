// Prefills launched ahead of the end of the kernel in front, which writes their queries: in a long chain each sees
// those of its step.
#include <doctest/doctest.h>

#include <cstdint>

#include "cuda_graph.cuh"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/ptx/grid_dependency.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"
#include "support/watchdog.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr int num_steps = 1000, head_dim = 128;

template <class T>
using Array = View<T, 1, Space::device>;

/// Stands for the rest of a layer: makes each element of the next queries of the output's in its place, so that one
/// wrong bit changes its row in every later step. Starts its successors at once and takes its time: whoever does not
/// wait for it reads what is not there yet.
__global__ void next_queries_kernel(Array<const bf16> out, Array<bf16> q, unsigned step) {
  ptx::launch_dependents();
  ptx::wait_for_previous_kernel();
  __nanosleep(step % 8 * 500);
  for (std::int64_t i = threadIdx.x; i < q.extents[0]; i += blockDim.x) {
    const unsigned mixed = (out(i).bits + step) * 2654435761u;
    q(i) = from_float<bf16>(static_cast<float>(mixed >> 8) * 0x1p-22f - 2.f);
  }
}

/// What a chain of next_queries and prefill leaves behind.
Outputs<bf16> run_chain(int block_size, bool is_wide, int steps, cuda::Launch mode) {
  GeneratedProblem<bf16> generated({.seed = 71,
                                    .q_len = {70, 1, 0, 129},
                                    .kv_len = {200, 17, 33, 600},
                                    .kv_heads = 2,
                                    .group_size = 4,
                                    .head_dim = head_dim,
                                    .head_dim_v = head_dim,
                                    .block_size = block_size});
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = head_dim});
  Stream stream;
  return bits_of(generated, device, [&](const auto& exact) {
    const auto problem = is_wide ? stated_large(exact) : exact;
    const Watchdog watchdog("a chain of kernels");
    const std::int64_t count = std::int64_t{problem.num_tokens()} * problem.q_heads() * head_dim;
    cuda::check(cudaDeviceSynchronize(), "chain");
    for (int i = 0; i < steps; ++i) {
      cuda::launch(next_queries_kernel, {.grid = dim3(1), .threads = 1024}, mode, stream, "next queries",
                   dense_view<Space::device>(static_cast<const bf16*>(problem.out.data), {count}),
                   dense_view<Space::device>(const_cast<bf16*>(problem.q.data), {count}), static_cast<unsigned>(i));
      prefill(problem, Causal{}, workspace, stream, {.launch = mode});
    }
    stream.wait();
  });
}

}  // namespace

TEST_CASE("1,000 prefills that overlap the kernels around them give the bits of the same steps one after another") {
  const auto check = [](int block_size, bool is_wide) {
    const Outputs<bf16> expected = run_chain(block_size, is_wide, num_steps, cuda::Launch::after_previous);
    CHECK(run_chain(block_size, is_wide, num_steps, cuda::Launch::overlap_previous) == expected);
    CHECK_FALSE(run_chain(block_size, is_wide, num_steps - 1, cuda::Launch::after_previous) == expected);
  };
  check(16, false);
  check(16, true);
  check(7, false);  // TMA does not lift blocks of 7: these are prefill_sm80's
}
