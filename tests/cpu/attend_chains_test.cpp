// cpu::attend against the reference for every chain of two rules.
#include <doctest/doctest.h>

#include <array>
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
  std::array<float, 12> slopes{}, sinks{};
  for (std::size_t head = 0; head < slopes.size(); ++head) {
    slopes[head] = 0.4f / static_cast<float>(head + 1);
    sinks[head] = static_cast<float>(head) - 5.f;
  }
  std::uint64_t seed = 5000;
  for (int round = 0; round < 30; ++round) {
    const Rules<Space::host> rules{.slopes = slopes.data(), .sinks = sinks.data(), .window = 1 + round};
    rules.for_each_chain([&](const std::string& first, const std::string& second, const auto& chained) {
      const AnyRule rule(chained);
      GeneratedProblem<float> generated(random_shape(++seed, small));
      CAPTURE(first);
      CAPTURE(second);
      cpu::attend(generated.problem(), rule, cpu::InlineExecutor{}, {.query_tile = 4, .key_tile = 8, .split_keys = 32});
      CHECK(mismatch(generated, expected_of(generated, rule), out_tolerance<float>()) == "");
    });
  }
}
