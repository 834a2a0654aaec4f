// Batches of decode: rows without keys, lengths around the ends of tiles, one long sequence among short ones, from 1 to
// 65,536 sequences.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/decode_entry.cuh"
#include "support/device_problem.cuh"
#include "support/random.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

ProblemShape shape_of(std::vector<int> q_len, std::vector<int> kv_len, int block_size = 16) {
  return {.seed = 51,
          .q_len = std::move(q_len),
          .kv_len = std::move(kv_len),
          .kv_heads = 2,
          .group_size = 4,
          .head_dim = 64,
          .head_dim_v = 64,
          .block_size = block_size};
}

/// One query each.
ProblemShape shape_of(const std::vector<int>& kv_len, int block_size = 16) {
  return shape_of(std::vector<int>(kv_len.size(), 1), kv_len, block_size);
}

void matches_the_reference(const ProblemShape& shape) {
  static cuda::Workspace workspace({.head_dim_v = 64});
  GeneratedProblem<bf16> generated(shape);
  const Expected expected = expected_of(generated, Causal{});
  DeviceProblem device(generated);
  for (const bool batch_invariant : {false, true}) {
    device.clear_outputs();
    decode(device.problem(), DeviceRule(Causal{}), workspace, nullptr, {.batch_invariant = batch_invariant});
    device.fetch_outputs();
    const std::string difference = mismatch(generated, expected, decode_tolerance());
    CHECK_MESSAGE(difference.empty(), difference.substr(0, 400));
  }
}

}  // namespace

TEST_CASE("sequences without keys or without queries may stand anywhere in a batch, and be all of it") {
  for (const std::vector<int>& kv_len : std::vector<std::vector<int>>{
           {0, 100, 300}, {100, 0, 300}, {100, 300, 0}, {0, 0, 300}, {300, 0, 0}, {0, 300, 0}, {0, 0, 0}, {0}}) {
    matches_the_reference(shape_of(kv_len));
    matches_the_reference(shape_of(std::vector<int>(kv_len.size(), 3), kv_len));  // more queries than keys
    std::vector<int> no_queries;
    for (const int keys : kv_len) no_queries.push_back(keys == 0 ? 1 : 0);
    matches_the_reference(shape_of(no_queries, kv_len));
  }
}

TEST_CASE("lengths around multiples of 64 give the reference's results, alone and together") {
  std::vector<int> all;
  for (const int tiles : {1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 132}) {
    for (const int keys : {64 * tiles - 1, 64 * tiles, 64 * tiles + 1}) {
      matches_the_reference(shape_of({keys}));
      all.push_back(keys);
    }
  }
  matches_the_reference(shape_of(all));
}

TEST_CASE("one sequence of 65,535 to 65,537 keys gives the reference's results") {
  for (const int keys : {65'535, 65'536, 65'537}) {
    ProblemShape shape = shape_of({keys});
    shape.kv_heads = 1;
    matches_the_reference(shape);
  }
}

TEST_CASE("one long sequence among many short ones gives the reference's results, wherever it stands") {
  for (const int place : {0, 50, 99}) {
    Random random(static_cast<std::uint64_t>(place));
    std::vector<int> kv_len;
    for (int s = 0; s < 100; ++s) kv_len.push_back(s == place ? 30'000 : random.between(1, 100));
    matches_the_reference(shape_of(kv_len));
  }
}

TEST_CASE("batches of any size give the reference's results") {
  for (const int num_seqs : {1, 2, 5, 31, 32, 33, 132, 300, 1000, 1025, 5000}) {
    Random random(static_cast<std::uint64_t>(num_seqs));
    std::vector<int> q_len, kv_len;
    const int longest = num_seqs <= 300 ? 300 : 20;
    for (int s = 0; s < num_seqs; ++s) {
      kv_len.push_back(random.one_in(6) ? 0 : random.between(1, longest));
      q_len.push_back(random.one_in(8) ? 0 : random.one_in(8) ? random.between(2, 4) : 1);
    }
    matches_the_reference(shape_of(q_len, kv_len, 4));
  }
}

TEST_CASE("65,536 sequences, and more than a grid has CTAs in its smaller dimensions, give the reference's results") {
  for (const int num_seqs : {65'536, 70'000}) {
    std::vector<int> q_len, kv_len;
    for (int s = 0; s < num_seqs; ++s) {
      q_len.push_back(s % 5 == 0 ? 0 : 1);
      kv_len.push_back(s % 3);
    }
    ProblemShape shape = shape_of(q_len, kv_len, 2);
    shape.kv_heads = 1;
    shape.group_size = 2;
    matches_the_reference(shape);
  }
}
