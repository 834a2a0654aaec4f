// Where decode finds its keys: any block size, any order of the pool, blocks that are gone, tables that hold anything.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_bits.cuh"
#include "support/device_problem.cuh"
#include "support/drop_blocks.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape several_lengths(int head_dim) {
  return {.seed = 31,
          .q_len = {1, 2, 1, 1, 1, 3},
          .kv_len = {500, 257, 255, 16, 1, 100},
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = head_dim,
          .head_dim_v = head_dim,
          .shares_prefixes = false};
}

}  // namespace

TEST_CASE("every block size and order of the pool gives the same bits, which are the reference's results") {
  for (const int head_dim : {64, 128}) {
    cuda::Workspace workspace({.head_dim_v = head_dim});
    std::optional<Expected> expected;
    std::optional<Outputs<bf16>> first;
    for (const PoolOrder order : {PoolOrder::hnd, PoolOrder::nhd, PoolOrder::interleaved}) {
      for (const int block_size : {1, 2, 3, 7, 8, 16, 19, 32, 64, 100, 128, 256, 1024}) {
        ProblemShape shape = several_lengths(head_dim);
        shape.order = order;
        shape.block_size = block_size;
        GeneratedProblem<bf16> generated(shape);
        DeviceProblem device(generated);
        const Outputs<bf16> bits =
            bits_of(generated, device, [&](const auto& problem) { decode(problem, DeviceRule(Causal{}), workspace); });
        if (!expected) expected = expected_of(generated, Causal{});
        if (!first) first = bits;
        const std::string difference = mismatch(generated, *expected, decode_tolerance());
        CHECK_MESSAGE(difference.empty(), difference);
        CHECK_MESSAGE(bits == *first, shape.describe());
      }
    }
  }
}

TEST_CASE("blocks behind a window may be gone, and their bytes may hold anything") {
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const int block_size : {1, 4, 16, 64}) {
    for (const bool leave_ids : {false, true}) {
      for (const SlidingWindow window : {SlidingWindow{.window = 70, .sink_tokens = 5}, SlidingWindow{.window = 33}}) {
        ProblemShape shape = several_lengths(64);
        shape.block_size = block_size;
        shape.q_len[0] = 3;
        GeneratedProblem<bf16> generated(shape);
        const Expected expected = expected_of(generated, window);
        drop_blocks(generated, window.sink_tokens, 500 - 3 - window.window + 1, leave_ids);
        DeviceProblem device(generated);
        device.clear_outputs();
        decode(device.problem(), DeviceRule(window), workspace);
        device.fetch_outputs();
        const std::string difference = mismatch(generated, expected, decode_tolerance());
        CHECK_MESSAGE(difference.empty(), difference);
      }
    }
  }
}

TEST_CASE("what two windows in a chain have dropped may be gone") {
  const auto windows = chain(SlidingWindow{.window = 120, .sink_tokens = 40}, SlidingWindow{.window = 50});
  cuda::Workspace workspace({.head_dim_v = 64});
  for (const bool leave_ids : {false, true}) {
    GeneratedProblem<bf16> generated(several_lengths(64));
    const Expected expected = expected_of(generated, windows);
    drop_blocks(generated, 0, 500 - 50, leave_ids);
    DeviceProblem device(generated);
    device.clear_outputs();
    cuda::decode<64>(device.problem(), windows, workspace, nullptr);
    device.fetch_outputs();
    const std::string difference = mismatch(generated, expected, decode_tolerance());
    CHECK_MESSAGE(difference.empty(), difference);
  }
}

TEST_CASE("one block may stand for many, in one sequence and in several") {
  ProblemShape shape = several_lengths(64);
  shape.q_len = {1, 1, 1};
  shape.kv_len = {333, 16, 320};
  GeneratedProblem<bf16> generated(shape);
  const auto width = static_cast<std::size_t>(generated.max_blocks_per_seq);
  for (std::size_t block = 0; block < 21; ++block) {
    if (block < 20) generated.block_ids[2 * width + block] = generated.block_ids[width];
    if (block % 3 == 0) generated.block_ids[block] = generated.block_ids[width];
  }
  const Expected expected = expected_of(generated, Causal{});
  cuda::Workspace workspace({.head_dim_v = 64});
  DeviceProblem device(generated);
  device.clear_outputs();
  decode(device.problem(), DeviceRule(Causal{}), workspace);
  device.fetch_outputs();
  const std::string difference = mismatch(generated, expected, decode_tolerance());
  CHECK_MESSAGE(difference.empty(), difference);
}
