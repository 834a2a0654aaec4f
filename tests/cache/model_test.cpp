// Model-based test of the cache: random operations against the naive oracle; a failing trace is shrunk and printed as
// code.
#include <doctest/doctest.h>

#include <exception>
#include <string>

#include "cache/oracle.hpp"
#include "cache/trace.hpp"

namespace {

using pagedkv_test::Kind;
using pagedkv_test::Operation;
using pagedkv_test::Oracle;
using pagedkv_test::Trace;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr unsigned num_traces = 100;
#else
constexpr unsigned num_traces = 1000;
#endif
constexpr int operations_per_trace = 1000;

template <class Cache>
std::string run(const Trace& trace) {
  Oracle<Cache> oracle{trace.num_blocks, trace.block_size};
  for (std::size_t i = 0; i < trace.operations.size(); ++i) {
    try {
      oracle.run(trace.operations[i]);
    } catch (const std::exception& error) {
      return "operation " + std::to_string(i) + ": " + error.what();
    }
  }
  return {};
}

template <class Cache>
void run_traces(unsigned count) {
  for (unsigned seed = 0; seed < count; ++seed) {
    const Trace trace = pagedkv_test::random_trace(seed, operations_per_trace);
    if (const std::string failure = run<Cache>(trace); !failure.empty()) {
      const Trace smallest = pagedkv_test::shrink(trace, run<Cache>);
      FAIL("seed " << seed << ", " << failure << "\nsmallest trace that fails: " << run<Cache>(smallest) << "\n"
                   << pagedkv_test::as_code(smallest));
    }
  }
}

struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t>, std::string_view) const { return 42; }
};

}  // namespace

TEST_CASE("a million random operations agree with lists of tokens") { run_traces<pagedkv::PrefixCache>(num_traces); }

TEST_CASE("hits are right even if all hashes collide") {
  run_traces<pagedkv::BasicPrefixCache<pagedkv::LruEviction, ConstantHash>>(num_traces / 20);
}

TEST_CASE("the same calls give the same ids, copies and eviction order") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Trace trace = pagedkv_test::random_trace(seed, operations_per_trace);
    Oracle<> one{trace.num_blocks, trace.block_size};
    Oracle<> other{trace.num_blocks, trace.block_size};
    for (const Operation& operation : trace.operations) {
      one.run(operation);
      other.run(operation);
      REQUIRE(one.state_hash() == other.state_hash());
    }
  }
}

TEST_CASE("a failing trace shrinks to the operations that matter") {
  const auto fails = [](const Trace& trace) {
    int num_forks = 0;
    for (const Operation& operation : trace.operations) {
      num_forks += operation.kind == Kind::fork;
      if (num_forks >= 2 && operation.kind == Kind::clear) return std::string("cleared after two forks");
    }
    return std::string();
  };
  const Trace smallest = pagedkv_test::shrink(pagedkv_test::random_trace(1, operations_per_trace), fails);
  REQUIRE(smallest.operations.size() == 3);
  CHECK(smallest.operations[2].kind == Kind::clear);
}
