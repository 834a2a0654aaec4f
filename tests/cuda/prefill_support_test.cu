// Which problems are prefill_sm90's, and the reason why another is prefill_sm80's: named by prefill_sm90_support and
// explain, and thrown where prefill_sm90 is asked for by name.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/attend.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

// As on an H200, whatever GPU the test runs on.
constexpr cuda::DeviceInfo hopper{.arch = 90, .num_sms = 132, .shared_bytes_per_cta = 227 * 1024};

ProblemShape prompt(int block_size = 16, int head_dim = 64) {
  return {.seed = 5,
          .q_len = {70, 20},
          .kv_len = {90, 20},
          .kv_heads = 2,
          .group_size = 2,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .block_size = block_size};
}

template <class Problem>
std::string reason_of(const Problem& problem, const cuda::DeviceInfo& device = hopper) {
  const cuda::Support support = cuda::prefill_sm90_support(problem, device);
  return support ? "" : support.reason;
}

std::string reason_of(const ProblemShape& shape) {
  GeneratedProblem<bf16> generated(shape);
  DeviceProblem device(generated);
  return reason_of(device.problem());
}

/// prefill_sm90 is refused with this reason, and prefill_sm80 takes its place.
void is_sm80s(GeneratedProblem<bf16>& generated, DeviceProblem<bf16, bf16, bf16>& device, const PrefillProblem& problem,
              const std::string& reason) {
  using cuda::PrefillKernel;
  cuda::Workspace workspace({.head_dim_v = 64});
  CHECK(reason_of(problem) == reason);
  if (workspace.device().arch == 90) {
    const std::string text = cuda::explain(problem, workspace);
    CHECK_MESSAGE(text.find("not prefill_sm90: " + reason) != std::string::npos, text);
    CHECK_THROWS_WITH_AS(prefill(problem, Causal{}, workspace, nullptr, {.kernel = PrefillKernel::sm90}),
                         doctest::Contains(reason.c_str()), InvalidArgument);
  }
  const auto bits = [&](PrefillKernel kernel) {
    device.clear_outputs();
    prefill(problem, Causal{}, workspace, nullptr, {.kernel = kernel});
    device.fetch_outputs();
    return Outputs<bf16>{generated.out, generated.lse};
  };
  CHECK(bits(PrefillKernel::best) == bits(PrefillKernel::sm80));
}

void is_sm80s(const ProblemShape& shape, const std::string& reason) {
  GeneratedProblem<bf16> generated(shape);
  DeviceProblem device(generated);
  is_sm80s(generated, device, device.problem(), reason);
}

}  // namespace

TEST_CASE("prefill_sm90 takes blocks of any multiple of 8") {
  for (const int block_size : {8, 16, 24, 32, 40, 64, 128, 256, 1024}) CHECK(reason_of(prompt(block_size)) == "");
  for (const int block_size : {1, 2, 4, 7, 12, 19, 100})
    is_sm80s(prompt(block_size), "a box has 8 to 256 rows, a multiple of 8");
}

TEST_CASE("prefill_sm90 takes the head sizes that it has tiles of") {
  for (const int head_dim : {64, 96, 128, 192, 256}) CHECK(reason_of(prompt(16, head_dim)) == "");
  for (const int head_dim : {16, 32, 48, 80, 112, 160, 240})
    CHECK(reason_of(prompt(16, head_dim)) == "head_dim must be 64, 96, 128, 192 or 256");
  ProblemShape other = prompt(16, 192);
  other.head_dim_v = 128;
  CHECK(reason_of(other) == "");
  other.head_dim_v = 80;
  CHECK(reason_of(other) == "head_dim_v must be 64, 96, 128, 192 or 256");
}

TEST_CASE("prefill_sm90 takes 16-bit types, on Hopper alone") {
  GeneratedProblem<f16> half(prompt());
  CHECK(reason_of(DeviceProblem(half).problem()) == "");
  GeneratedProblem<bf16, bf16, float> wide_out(prompt());
  CHECK(reason_of(DeviceProblem(wide_out).problem()) == "q, K, V and out must all be bf16 or all be f16");
  for (const int arch : {80, 86, 89, 100, 120}) {
    cuda::DeviceInfo device = hopper;
    device.arch = arch;
    CHECK(reason_of(DeviceProblem(half).problem(), device) == "needs compute capability 9.0");
  }
  GeneratedProblem<f16> wide(prompt(16, 128));
  cuda::DeviceInfo small = hopper;
  small.shared_bytes_per_cta = 99 * 1024;
  CHECK(reason_of(DeviceProblem(wide).problem(), small) == "query and key tiles do not fit in shared memory");
}

TEST_CASE("a scale that is not positive is prefill_sm80's") {
  GeneratedProblem<bf16> generated(prompt());
  DeviceProblem device(generated);
  for (const float scale : {0.f, -0.f, -0.125f}) {
    auto problem = device.problem();
    problem.scale = generated.scale = scale;
    is_sm80s(generated, device, problem, "scale must be positive");
    const std::string difference = mismatch(generated, expected_of(generated, Causal{}), prefill_tolerance);
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("rows of out that do not start at multiples of 16 bytes are prefill_sm80's") {
  GeneratedProblem<bf16> generated(prompt());
  DeviceProblem device(generated);
  auto problem = device.problem();
  problem.out.data += 2;
  is_sm80s(generated, device, problem, "rows of out must start at multiples of 16 bytes");
  problem = device.problem();
  problem.out.extents[0] = problem.q.extents[0] = problem.lse.extents[0] = 20;  // one sequence, room for gaps
  problem.out.strides[0] += 4;
  CHECK(reason_of(problem) == "rows of out must start at multiples of 16 bytes");
}

TEST_CASE("what neither kernel can read is refused by prefill_sm90 too") {
  GeneratedProblem<bf16> generated(prompt());
  DeviceProblem device(generated);
  auto problem = device.problem();
  problem.q.strides[0] += 4;
  CHECK(reason_of(problem) == "rows of q must start at multiples of 16 bytes");
  problem = device.problem();
  problem.kv.k.data += 4;
  CHECK(reason_of(problem) == "K and V must start at a multiple of 16 bytes");
  problem = device.problem();
  problem.kv.v.strides[2] += 4;
  CHECK(reason_of(problem) == "strides must be multiples of 16 bytes");
}

TEST_CASE("the two kernels are named by explain") {
  GeneratedProblem<bf16> generated(prompt());
  DeviceProblem device(generated);
  cuda::Workspace workspace({.head_dim_v = 64});
  const std::string text = cuda::explain(device.problem(), workspace);
  const std::string name = workspace.device().arch == 90 ? "prefill_sm90 on sm_90" : "prefill_sm80 on sm_";
  CHECK_MESSAGE(text.find(name) == 0, text);
}
