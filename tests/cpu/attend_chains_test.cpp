// cpu::attend against the reference for every chain of two rules.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "pagedkv/cpu/attend.hpp"
#include "support/any_rule.hpp"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/tolerance.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

TEST_CASE("attend agrees with the reference for every chain of two rules") {
  const ShapeLimits small{.max_seqs = 3, .max_kv_len = 90, .max_q_len = 10, .max_group_size = 4};
  for (int round = 0; round < 60; ++round) {
    GeneratedProblem<float> generated(random_shape(static_cast<std::uint64_t>(5000 + round), small));
    Rules<Space::host> rules = rules_of(generated);
    rules.window = 1 + round / 2;
    rules.for_each_chain([&](const std::string& first, const std::string& second, const auto& chained) {
      const AnyRule rule(chained);
      CAPTURE(first);
      CAPTURE(second);
      generated.clear_outputs();
      cpu::attend(generated.problem(), rule, cpu::InlineExecutor{}, {.query_tile = 4, .key_tile = 8, .split_keys = 32});
      CHECK(mismatch(generated, expected_of(generated, rule), out_tolerance<float>()) == "");
    });
  }
}
