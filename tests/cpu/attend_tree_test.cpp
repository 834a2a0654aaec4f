// Trees of drafts on the CPU: a linear tree is Causal to the bit, a draft that sees nothing has an empty row, and every
// path through a tree gets what it would get as a sequence of its own.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/tolerance.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr cpu::AttendOptions small_tiles{.query_tile = 4, .key_tile = 8, .split_keys = 16};

GeneratedProblem<float> trees(std::uint64_t seed) {
  return GeneratedProblem<float>({.seed = seed,
                                  .q_len = {7, 0, 64, 1, 5},
                                  .kv_len = {90, 20, 64, 33, 5},
                                  .kv_heads = 2,
                                  .group_size = 2,
                                  .block_size = 7});
}

}  // namespace

TEST_CASE("a tree without branches is causal attention, bit for bit") {
  GeneratedProblem<float> generated = trees(1);
  for (int s = 0; s < generated.shape.num_seqs(); ++s) {
    std::uint64_t seen = 0;
    for (int token = generated.query_begin[static_cast<std::size_t>(s)];
         token < generated.query_begin[static_cast<std::size_t>(s) + 1]; ++token)
      generated.tree[static_cast<std::size_t>(token)] = seen = seen << 1 | 1;
  }
  cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
  const auto out = generated.out, lse = generated.lse;
  generated.clear_outputs();
  cpu::attend(generated.problem(), rules_of(generated).tree, cpu::InlineExecutor{}, small_tiles);
  CHECK(generated.out == out);
  CHECK(generated.lse == lse);
}

TEST_CASE("a draft without bits and without keys before its tree has an empty row") {
  GeneratedProblem<float> generated = trees(2);
  std::ranges::fill(generated.tree, 0u);
  cpu::attend(generated.problem(), rules_of(generated).tree, cpu::InlineExecutor{}, small_tiles);
  const auto problem = generated.problem();
  for (const int token : {7, 70, 72, 76}) {  // first and last of the third and the last sequence
    CHECK(problem.lse(token, 1) == -infinity);
    CHECK(problem.out(token, 1, 0) == 0.f);
  }
  CHECK(std::isfinite(problem.lse(0, 0)));   // 83 keys lie before this tree
  CHECK(std::isfinite(problem.lse(71, 0)));  // and 32 before this one
}

TEST_CASE("each path through a tree gets what it would get as a sequence of its own") {
  GeneratedProblem<float> generated({.seed = 3, .q_len = {6}, .kv_len = {26}, .block_size = 4});
  generated.tree = {0b000001, 0b000011, 0b000101, 0b001101, 0b010011, 0b100000};
  cpu::attend(generated.problem(), rules_of(generated).tree);
  const auto whole = generated.problem();
  const std::vector<std::vector<int>> paths{{0}, {0, 1}, {0, 2}, {0, 2, 3}, {0, 1, 4}, {5}};
  for (std::size_t leaf = 0; leaf < paths.size(); ++leaf) {
    const auto depth = static_cast<int>(paths[leaf].size());
    GeneratedProblem<float> path({.seed = 4, .q_len = {1}, .kv_len = {20 + depth}, .block_size = 5});
    const auto kv = path.kv_view<Space::host>(path.pool.data());
    for (int key = 0; key < 20 + depth; ++key) {
      const int from = key < 20 ? key : 20 + paths[leaf][static_cast<std::size_t>(key - 20)];
      const int from_block = whole.tables.block_ids(0, from / 4),
                block = path.block_ids[static_cast<std::size_t>(key / 5)];
      std::copy_n(whole.kv.k.at(from_block, 0, from % 4, 0), 16, kv.k.at(block, 0, key % 5, 0));
      std::copy_n(whole.kv.v.at(from_block, 0, from % 4, 0), 16, kv.v.at(block, 0, key % 5, 0));
    }
    std::copy_n(whole.q.at(static_cast<int>(leaf), 0, 0), 16, path.q.begin());
    const Expected expected = expected_of(path, Causal{});
    CHECK(is_close(whole.lse(static_cast<int>(leaf), 0), expected.lse[0], lse_tolerance()));
    for (int d = 0; d < 16; ++d)
      CHECK(is_close(whole.out(static_cast<int>(leaf), 0, d), expected.out[static_cast<std::size_t>(d)],
                     out_tolerance<float>()));
  }
}
