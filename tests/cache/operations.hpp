// Random operations for the model-based tests: as data, so that failing ones can be shrunk and printed as code.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace pagedkv_test {

// clang-format off
enum class Kind : unsigned char {
  append, reserve, accept, fork, adopt, truncate, release_before, drop, move, remap,  // on sequences
  execute, commit,                                                                    // on plans
  lend, hold, guard, retire, set_aside, drain, misuse,                                // on the allocator
  admit, announce, publish, forbid, pin, unpin, advance, reset, clear,                // on the prefix cache
};
// clang-format on
inline constexpr std::array kind_names = {
    "append",   "reserve", "accept", "fork", "adopt", "truncate", "release_before", "drop",  "move",   "remap",
    "execute",  "commit",  "lend",   "hold", "guard", "retire",   "set_aside",      "drain", "misuse", "admit",
    "announce", "publish", "forbid", "pin",  "unpin", "advance",  "reset",          "clear"};
inline constexpr std::size_t num_kinds = kind_names.size();
inline constexpr std::size_t num_core_kinds = static_cast<std::size_t>(Kind::admit);
static_assert(num_kinds == static_cast<std::size_t>(Kind::clear) + 1);

/// The numbers are taken modulo whatever is there when the operation runs, so every part of a scenario is a scenario.
struct Operation {
  Kind kind;
  unsigned sequence;
  unsigned other;   // a second sequence, or the plan
  unsigned amount;  // tokens, position
  unsigned seed;    // of the tokens, and of choices
};

struct Scenario {
  int num_blocks;
  int block_size;
  std::vector<Operation> operations;
};

/// Most have few blocks, for scarcity finds most; some have tables of several chunks, a few so long ones that they are
/// not walked at once when they die.
inline Scenario random_scenario(unsigned seed, int num_operations, bool has_cache) {
  std::mt19937 random{seed};
  const auto below = [&random](unsigned bound) { return static_cast<unsigned>(random() % bound); };
  Scenario scenario{
      .num_blocks = 4 + static_cast<int>(below(37)), .block_size = 1 + static_cast<int>(below(16)), .operations = {}};
  if (below(3) == 0) scenario.num_blocks = 4 + static_cast<int>(below(9));
  if (below(3) == 0) scenario.block_size = 1 + static_cast<int>(below(4));
  if (seed % 32 == 31) {
    scenario.num_blocks = seed % 64 == 63 ? 10'000 : 200 + static_cast<int>(below(200));
    scenario.block_size = 1;
    num_operations /= scenario.num_blocks >= 10'000 ? 10 : scenario.num_blocks / 40;
  }
  constexpr std::array<int, num_kinds> weights = {30, 7, 8, 12, 2, 10, 3, 8,  2, 2, 2, 14, 5, 2,
                                                  5,  4, 3, 1,  5, 16, 2, 14, 1, 3, 2, 2,  1, 1};
  std::discrete_distribution<int> pick(weights.begin(), weights.begin() + (has_cache ? num_kinds : num_core_kinds));
  for (int i = 0; i < num_operations; ++i)
    scenario.operations.push_back(
        {static_cast<Kind>(pick(random)), below(64), below(64), below(1 << 16), below(1 << 16)});
  return scenario;
}

/// Why a scenario fails, with the number of operations run; empty if it passes.
using Runner = std::function<std::string(const Scenario&)>;

/// Delta debugging: leaves out ever smaller runs of operations as long as the scenario keeps failing.
inline Scenario shrink(Scenario scenario, const Runner& run) {
  for (std::size_t length = scenario.operations.size() / 2; length >= 1;) {
    bool smaller = false;
    for (std::size_t begin = 0; begin < scenario.operations.size();) {
      Scenario candidate = scenario;
      const auto first = candidate.operations.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto count = std::min(length, scenario.operations.size() - begin);
      candidate.operations.erase(first, first + static_cast<std::ptrdiff_t>(count));
      if (run(candidate).empty()) {
        begin += length;
      } else {
        scenario = std::move(candidate);
        smaller = true;
      }
    }
    if (!smaller || length > 1) length /= 2;
  }
  return scenario;
}

inline std::string as_code(const Scenario& scenario) {
  std::ostringstream out;
  out << "Scenario{.num_blocks = " << scenario.num_blocks << ", .block_size = " << scenario.block_size
      << ", .operations = {\n";
  for (const Operation& op : scenario.operations)
    out << "  {Kind::" << kind_names[static_cast<std::size_t>(op.kind)] << ", " << op.sequence << ", " << op.other
        << ", " << op.amount << ", " << op.seed << "},\n";
  out << "}};\n";
  return out.str();
}

}  // namespace pagedkv_test
