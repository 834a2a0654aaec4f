// AttentionProblem::validate names what is wrong, what was expected and what was given.
#include "pagedkv/attention/problem.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <type_traits>

#include "pagedkv/core/error.hpp"
#include "support/problem_generator.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

static_assert(std::is_trivially_copyable_v<AttentionProblem<Space::device, bf16, bf16, float>>,
              "goes to a kernel by value");

namespace {

const ProblemShape shape{
    .seed = 1, .q_len = {3, 2}, .kv_len = {9, 20}, .kv_heads = 2, .group_size = 3, .head_dim = 8, .head_dim_v = 4};

// `spoil` makes one field of a good problem wrong.
template <class Spoil>
void check_refused(const char* text, Spoil&& spoil) {
  GeneratedProblem<float> generated(shape);
  auto problem = generated.problem();
  problem.validate();
  spoil(problem);
  CHECK_THROWS_WITH_AS(problem.validate(), doctest::Contains(text), InvalidArgument);
}

}  // namespace

TEST_CASE("a problem knows its sizes") {
  GeneratedProblem<float> generated(shape);
  const auto problem = generated.problem();
  CHECK(problem.num_tokens() == 5);
  CHECK(problem.q_heads() == 6);
  CHECK(problem.kv_heads() == 2);
  CHECK(problem.group_size() == 3);
  CHECK(problem.head_dim() == 8);
  CHECK(problem.head_dim_v() == 4);
  CHECK(problem.tables.num_seqs() == 2);
  CHECK(problem.tables.q_len(1) == 2);
}

TEST_CASE("shapes that disagree are refused by name") {
  check_refused("problem.q: head_dim like kv.k's, 8 expected, 7 given", [](auto& p) { p.q.extents[2] = 7; });
  check_refused("problem.q: q_heads a multiple of kv_heads 2 expected, 5 given", [](auto& p) { p.q.extents[1] = 5; });
  check_refused("problem.out: num_tokens like q's, 5 expected, 4 given", [](auto& p) { p.out.extents[0] = 4; });
  check_refused("problem.out: q_heads like q's, 6 expected, 4 given", [](auto& p) { p.out.extents[1] = 4; });
  check_refused("problem.out: head_dim_v like kv.v's, 4 expected, 8 given", [](auto& p) { p.out.extents[2] = 8; });
  check_refused("problem.lse: num_tokens like q's, 5 expected, 6 given", [](auto& p) { p.lse.extents[0] = 6; });
  check_refused("problem.lse: q_heads like q's, 6 expected, 1 given", [](auto& p) { p.lse.extents[1] = 1; });
  check_refused("kv.v: num_blocks like kv.k's, ", [](auto& p) { p.kv.v.extents[0] += 1; });
  check_refused("kv.v: kv_heads like kv.k's, 2 expected, 3 given", [](auto& p) { p.kv.v.extents[1] = 3; });
  check_refused("kv.v: block_size like kv.k's, 16 expected, 8 given", [](auto& p) { p.kv.v.extents[2] = 8; });
  check_refused("kv: block_size at least 1 expected, 0 given", [](auto& p) { p.kv.k.extents[2] = 0; });
}

TEST_CASE("pointers and strides that cannot be used are refused by name") {
  check_refused("problem.q: pointer not null expected", [](auto& p) { p.q.data = nullptr; });
  check_refused("problem.out: pointer not null expected", [](auto& p) { p.out.data = nullptr; });
  check_refused("kv: k and v pointers not null expected", [](auto& p) { p.kv.v.data = nullptr; });
  check_refused("problem.q: stride of head_dim 1 expected, 2 given", [](auto& p) { p.q.strides[2] = 2; });
  check_refused("problem.out: stride of head_dim_v 1 expected, 0 given", [](auto& p) { p.out.strides[2] = 0; });
  check_refused("kv.k: stride of head_dim 1 expected, 3 given", [](auto& p) { p.kv.k.strides[3] = 3; });
}

TEST_CASE("tables that cannot name what they claim are refused by name") {
  check_refused("problem.tables.block_ids: rows, at least 2 expected, 1 given",
                [](auto& p) { p.tables.block_ids.extents[0] = 1; });
  check_refused("problem.tables.query_begin: entries 3 expected, 2 given",
                [](auto& p) { p.tables.query_begin.extents[0] = 2; });
  check_refused("problem.tables.max_q_len 0 or more expected, -1 given", [](auto& p) { p.tables.max_q_len = -1; });
  check_refused("problem.tables.max_kv_len: at most what a row can name, 16 expected, 20 given",
                [](auto& p) { p.tables.block_ids.extents[1] = 1; });
}

TEST_CASE("a scale that is not a number is refused") {
  check_refused("problem.scale: a finite number expected",
                [](auto& p) { p.scale = std::numeric_limits<float>::quiet_NaN(); });
  check_refused("problem.scale: a finite number expected", [](auto& p) { p.scale = infinity; });
}
