// Each allocation of each call of random scenarios fails once, and blocks run out before each append: nothing changes.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>

#include "cache/allocation_failures.hpp"
#include "cache/cache_oracle.hpp"
#include "cache/counted_new.hpp"
#include "cache/operations.hpp"
#include "cache/oracle.hpp"

namespace {

using namespace pagedkv_test;

/// Short ones: what has been allocated once is there for later calls.
template <class Oracle>
void run_scenarios(unsigned count, bool has_cache) {
  AllocationFailures::is_on = true;
  AllocationFailures::num_failed = AllocationFailures::num_refused_for_blocks = 0;
  for (unsigned seed = 0; seed < count; ++seed) {
    const Scenario scenario = random_scenario(seed, 40, has_cache);
    if (const std::string failure = failure_of<Oracle>(scenario); !failure.empty()) {
      const Scenario smallest = shrink(scenario, failure_of<Oracle>);
      FAIL("seed " << seed << ", " << failure << "\nthe smallest that fails: " << failure_of<Oracle>(smallest) << "\n"
                   << as_code(smallest));
    }
  }
  AllocationFailures::is_on = false;
  CHECK(AllocationFailures::num_failed > 5 * static_cast<long>(count));
  CHECK(AllocationFailures::num_refused_for_blocks > static_cast<long>(count));
  MESSAGE(AllocationFailures::num_failed << " allocations failed, " << AllocationFailures::num_refused_for_blocks
                                         << " calls had too few blocks");
}

}  // namespace

TEST_CASE("a call on sequences that runs out of memory or of blocks changes nothing and can be repeated") {
  run_scenarios<CoreOracle>(1000, false);
}

TEST_CASE("so it is with a prefix cache") { run_scenarios<CacheOracle<>>(1000, true); }
