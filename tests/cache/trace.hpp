// A random trace for the model-based test: operations as data, so that a failing trace can be shrunk and printed as
// code.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace pagedkv_test {

enum class Kind { append, fork, truncate, release_before, drop, admit, publish, execute, commit, clear };
inline constexpr std::array kind_names = {"append", "fork",    "truncate", "release_before", "drop",
                                          "admit",  "publish", "execute",  "commit",         "clear"};

/// The numbers are taken modulo whatever is there when the operation runs, so every part of a trace is a valid trace.
struct Operation {
  Kind kind;
  unsigned sequence;
  unsigned other;   // a second sequence, or the plan
  unsigned amount;  // tokens, position
  unsigned seed;    // of the tokens, and of choices
};

struct Trace {
  int num_blocks;
  int block_size;
  std::vector<Operation> operations;
};

inline Trace random_trace(unsigned seed, int num_operations) {
  std::mt19937 random{seed};
  const auto below = [&random](unsigned bound) { return static_cast<unsigned>(random() % bound); };
  Trace trace{
      .num_blocks = 4 + static_cast<int>(below(61)), .block_size = 1 + static_cast<int>(below(16)), .operations = {}};
  if (below(3) == 0) trace.num_blocks = 4 + static_cast<int>(below(9));  // scarcity finds most
  if (below(3) == 0) trace.block_size = 1 + static_cast<int>(below(4));
  constexpr std::array weights = {30, 14, 9, 3, 8, 14, 12, 3, 12, 1};  // by Kind
  std::discrete_distribution<int> pick(weights.begin(), weights.end());
  for (int i = 0; i < num_operations; ++i)
    trace.operations.push_back({static_cast<Kind>(pick(random)), below(64), below(64), below(1 << 16), below(1 << 16)});
  return trace;
}

/// Why the trace fails, with the number of operations run; empty if it passes.
using Runner = std::function<std::string(const Trace&)>;

/// Delta debugging: leaves out ever smaller runs of operations as long as the trace keeps failing.
inline Trace shrink(Trace trace, const Runner& run) {
  for (std::size_t length = trace.operations.size() / 2; length >= 1;) {
    bool smaller = false;
    for (std::size_t begin = 0; begin < trace.operations.size();) {
      Trace candidate = trace;
      const auto first = candidate.operations.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto count = std::min(length, trace.operations.size() - begin);
      candidate.operations.erase(first, first + static_cast<std::ptrdiff_t>(count));
      if (run(candidate).empty()) {
        begin += length;
      } else {
        trace = std::move(candidate);
        smaller = true;
      }
    }
    if (!smaller || length > 1) length /= 2;
  }
  return trace;
}

inline std::string as_code(const Trace& trace) {
  std::ostringstream out;
  out << "Trace{.num_blocks = " << trace.num_blocks << ", .block_size = " << trace.block_size << ", .operations = {\n";
  for (const Operation& op : trace.operations)
    out << "  {Kind::" << kind_names[static_cast<std::size_t>(op.kind)] << ", " << op.sequence << ", " << op.other
        << ", " << op.amount << ", " << op.seed << "},\n";
  out << "}};\n";
  return out.str();
}

}  // namespace pagedkv_test
