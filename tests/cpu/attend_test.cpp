// cpu::attend against the reference over random problems: every rule, every type of K and V.
#include "pagedkv/cpu/attend.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "support/any_rule.hpp"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/tolerance.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

// Small tiles and splits, so that short sequences have many of both.
cpu::AttendOptions random_options(std::uint64_t seed) {
  Random random(seed);
  return {.query_tile = random.pick({1, 3, 16}),
          .key_tile = random.pick({1, 8, 64}),
          .split_keys = random.pick({16, 64, 1024})};
}

template <class Q, class KV, class O>
void check_problems(std::uint64_t first_seed, std::uint64_t num_problems) {
  const ShapeLimits short_sequences{.max_kv_len = 90, .max_q_len = 8};
  for (std::uint64_t seed = first_seed; seed < first_seed + num_problems; ++seed) {
    GeneratedProblem<Q, KV, O> generated(random_shape(seed, short_sequences));
    const Rules<Space::host> rules = rules_of(generated);
    rules.for_each([&](const std::string& name, const auto& rule) {
      CAPTURE(name);
      generated.clear_outputs();
      cpu::attend(generated.problem(), rule, cpu::InlineExecutor{}, random_options(seed));
      CHECK(mismatch(generated, expected_of(generated, AnyRule(rule)), out_tolerance<O>()) == "");
    });
  }
}

}  // namespace

TEST_CASE("attend agrees with the reference for every rule, in float") { check_problems<float, float, float>(1, 400); }

TEST_CASE("attend agrees with the reference for every rule, in bf16") { check_problems<bf16, bf16, bf16>(1001, 300); }

TEST_CASE("attend agrees with the reference for every rule, in f16 with float queries") {
  check_problems<float, f16, f16>(2001, 300);
}
