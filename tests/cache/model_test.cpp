// Model-based test of the cache: random operations against the naive oracle; what fails is shrunk and printed as code.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "cache/cache_oracle.hpp"
#include "cache/operations.hpp"
#include "cache/oracle.hpp"
#include "pagedkv/cache/eviction_lfu.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"

namespace {

using namespace pagedkv_test;

constexpr int operations_per_scenario = 1000;

/// PAGEDKV_MODEL_OPERATIONS=10000000: a night's worth.
long num_operations() {
  if (const char* text = std::getenv("PAGEDKV_MODEL_OPERATIONS")) return std::atol(text);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 100'000;
#else
  return 1'000'000;
#endif
}

/// A share of all operations, in percent.
template <class Oracle>
void run_scenarios(int percent) {
  constexpr bool has_cache = !std::is_same_v<Oracle, CoreOracle>;
  long left = num_operations() * percent / 100;
  for (unsigned seed = 0; left > 0; ++seed) {
    const Scenario scenario = random_scenario(seed, operations_per_scenario, has_cache);
    left -= std::ssize(scenario.operations);
    if (const std::string failure = failure_of<Oracle>(scenario); !failure.empty()) {
      const Scenario smallest = shrink(scenario, failure_of<Oracle>);
      FAIL("seed " << seed << ", " << failure << "\nthe smallest that fails: " << failure_of<Oracle>(smallest) << "\n"
                   << as_code(smallest));
    }
  }
}

struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t>, std::string_view) const { return 42; }
};

struct HashOf8Bits {
  std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return pagedkv::BlockHash{}(parent, tokens, extra) & 0xff;
  }
};

template <class Eviction, class Hash = pagedkv::BlockHash>
using Cached = CacheOracle<pagedkv::BasicPrefixCache<Eviction, Hash>>;

}  // namespace

TEST_CASE("sequences, plans and the allocator agree with lists of tokens") { run_scenarios<CoreOracle>(25); }

TEST_CASE("a prefix cache agrees with lists of tokens") { run_scenarios<Cached<pagedkv::LruEviction>>(30); }

TEST_CASE("so it does when the least frequently used go first") { run_scenarios<Cached<pagedkv::LfuEviction>>(10); }

TEST_CASE("so it does when S3-FIFO chooses") { run_scenarios<Cached<pagedkv::S3FifoEviction>>(10); }

TEST_CASE("so it does when priorities and deadlines choose") { run_scenarios<Cached<pagedkv::PriorityEviction>>(10); }

TEST_CASE("hits are right even if all hashes collide") { run_scenarios<Cached<pagedkv::LruEviction, ConstantHash>>(8); }

TEST_CASE("hits are right with a hash of 8 bits") { run_scenarios<Cached<pagedkv::LruEviction, HashOf8Bits>>(7); }

TEST_CASE("the same calls give the same ids, copies and eviction order") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Scenario scenario = random_scenario(seed, operations_per_scenario, true);
    CacheOracle<> one{scenario.num_blocks, scenario.block_size};
    CacheOracle<> other{scenario.num_blocks, scenario.block_size};
    for (const Operation& operation : scenario.operations) {
      one.run(operation);
      other.run(operation);
      REQUIRE(one.state_hash() == other.state_hash());
    }
  }
}

TEST_CASE("what fails shrinks to the operations that matter") {
  const auto fails = [](const Scenario& scenario) {
    int num_forks = 0;
    for (const Operation& operation : scenario.operations) {
      num_forks += operation.kind == Kind::fork;
      if (num_forks >= 2 && operation.kind == Kind::clear) return std::string("cleared after two forks");
    }
    return std::string();
  };
  const Scenario smallest = shrink(random_scenario(1, operations_per_scenario, true), fails);
  REQUIRE(smallest.operations.size() == 3);
  CHECK(smallest.operations[2].kind == Kind::clear);
}
