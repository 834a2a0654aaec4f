// Kernels reach blocks that lie more than 2^32 elements into the pool: offsets are 64-bit.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"
#include "support/prefill_entry.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// A generated problem whose few blocks are spread over more than 2^32 elements of device memory.
class FarProblem {
 public:
  FarProblem() : generated_(shape()), near_(generated_) {
    // The highest block in use, of two in the first sequence and one in the second, lies just behind 2^32.
    const std::int64_t width = generated_.max_blocks_per_seq;
    const auto id = [&](std::int64_t row, std::int64_t i) {
      return generated_.block_ids[static_cast<std::size_t>(row * width + i)];
    };
    const std::int64_t last = std::max({id(0, 0), id(0, 1), id(1, 0)});
    const std::int64_t block_elements = near_.problem().kv.k.strides[0];
    stride_ = round_up((std::int64_t{1} << 32) / last, std::int64_t{64}) + block_elements;  // rows stay aligned
    const auto pool_elements = static_cast<std::size_t>(stride_ * (last + 1));

    std::size_t free_bytes = 0, total_bytes = 0;
    cuda::check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
    if (free_bytes < pool_elements * sizeof(bf16) + (std::size_t{1} << 30)) return;
    pool_ = std::make_unique<cuda::DeviceArray<bf16>>(pool_elements);

    const auto near = near_.problem().kv;
    const auto spread = [&](bf16* to, const bf16* from, std::int64_t block) {  // by hand: View::at is under test
      cuda::check(cudaMemcpy(to + block * stride_, from + block * block_elements,
                             static_cast<std::size_t>(block_elements) * sizeof(bf16), cudaMemcpyDeviceToDevice),
                  "spread");
    };
    for (std::int64_t block = 0; block <= last; ++block) {
      spread(pool_->data(), near.k.data, block);
      spread(pool_->data() + stride_ - block_elements, near.v.data, block);
    }
  }

  bool fits() const { return pool_ != nullptr; }

  /// Runs attend(problem) on the spread pool; the first difference from the reference.
  template <class Attend>
  std::string mismatch_of(Tolerance tolerance, Attend&& attend) {
    const Expected expected = expected_of(generated_, Causal{});
    auto problem = near_.problem();
    problem.kv.v.data = pool_->data() + stride_ - problem.kv.k.strides[0];
    problem.kv.k.data = pool_->data();
    problem.kv.k.strides[0] = problem.kv.v.strides[0] = stride_;
    near_.clear_outputs();
    attend(problem);
    near_.fetch_outputs();
    return mismatch(generated_, expected, tolerance);
  }

 private:
  static ProblemShape shape() {
    return {.seed = 9,
            .q_len = {1, 13},
            .kv_len = {30, 13},
            .kv_heads = 2,
            .group_size = 3,
            .head_dim = 64,
            .head_dim_v = 64,
            .block_size = 16};
  }

  GeneratedProblem<bf16> generated_;
  DeviceProblem<bf16, bf16, bf16> near_;
  std::int64_t stride_ = 0;
  std::unique_ptr<cuda::DeviceArray<bf16>> pool_;
};

}  // namespace

TEST_CASE("decode and prefill reach blocks that lie more than 2^32 elements into the pool") {
  FarProblem far;
  if (!far.fits()) {
    MESSAGE("skipped: 12 GB of device memory are not free");
    return;
  }
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const bool batch_invariant : {false, true}) {
    const std::string by_decode = far.mismatch_of(decode_tolerance(), [&](const auto& problem) {
      decode(problem, DeviceRule(Causal{}), workspace, nullptr, {.batch_invariant = batch_invariant});
    });
    CHECK_MESSAGE(by_decode.empty(), by_decode);
  }
  const std::string by_prefill = far.mismatch_of(out_tolerance<bf16>(rounding_unit<bf16>()), [&](const auto& problem) {
    prefill(problem, DeviceRule(Causal{}), workspace);
  });
  CHECK_MESSAGE(by_prefill.empty(), by_prefill);
}
