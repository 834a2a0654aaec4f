// prefill under any rule, compiled once (prefill_entry.cu) for all tests that ask about something else; and its two
// kernels held against each other and against the reference.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "support/device_problem.cuh"
#include "support/problem_generator.hpp"
#include "support/runtime_rule.hpp"
#include "support/tolerance.hpp"

namespace pagedkv_test {

using DeviceRule = RuntimeRule<pagedkv::Space::device>;
using PrefillProblem = pagedkv::AttentionProblem<pagedkv::Space::device, pagedkv::bf16>;

/// head_dim 64 or 128, that of the problem. Causal keeps logits as they are, which kernels make use of; DeviceRule does
/// not say so even where it could.
void prefill(const PrefillProblem& problem, const pagedkv::Causal& rule, const pagedkv::cuda::Workspace& workspace,
             cudaStream_t stream = nullptr, const pagedkv::cuda::PrefillOptions& options = {});
void prefill(const PrefillProblem& problem, const DeviceRule& rule, const pagedkv::cuda::Workspace& workspace,
             cudaStream_t stream = nullptr, const pagedkv::cuda::PrefillOptions& options = {});

/// The same problem, stated as a batch of so many tiles that prefill_sm90 takes its wide ones, where the rule has them.
template <class Problem>
Problem stated_large(Problem problem) {
  problem.tables.max_q_len = 1 << 20;
  return problem;
}

/// The kernels that this GPU has and this program holds code for.
std::vector<pagedkv::cuda::PrefillKernel> prefill_kernels();

inline bool has_prefill_sm90() { return prefill_kernels().size() > 1; }

inline constexpr Tolerance prefill_tolerance = out_tolerance<pagedkv::bf16>(rounding_unit<pagedkv::bf16>());

/// What the reference costs, in products of a query and a key: a second has some 2 million of them.
template <class Generated>
std::int64_t num_products(const Generated& generated) {
  std::int64_t sum = 0;
  for (std::size_t s = 0; s < generated.shape.q_len.size(); ++s)
    sum += std::int64_t{generated.shape.q_len[s]} * generated.shape.kv_len[s] * generated.shape.q_heads();
  return sum;
}

/// What a kernel has left in `generated`, to hold another one against.
template <class Generated>
Expected results_of(const Generated& generated) {
  const auto margin = static_cast<std::ptrdiff_t>(generated.margin);
  Expected results;
  std::for_each(generated.out.begin() + margin, generated.out.end() - margin,
                [&](auto x) { results.out.push_back(pagedkv::to_float(x)); });
  results.lse.assign(generated.lse.begin() + margin, generated.lse.end() - margin);
  return results;
}

/// Two kernels may be off to either side.
constexpr Tolerance twice(Tolerance tolerance) { return {2 * tolerance.absolute, 2 * tolerance.relative}; }

/// Holds prefill_sm80 against the reference where that takes at most `max_products`, and prefill_sm90, where it can
/// take the problem, against the reference or else against prefill_sm80. `attend(problem, kernel)`; the first
/// difference, or "".
template <class T, class HostRule, class Attend>
std::string mismatch_of_kernels(GeneratedProblem<T>& generated, const HostRule& rule, std::int64_t max_products,
                                Attend&& attend, bool wants_lse = true) {
  using pagedkv::cuda::PrefillKernel;
  constexpr Tolerance tolerance = out_tolerance<T>(rounding_unit<T>());
  DeviceProblem device(generated);
  auto problem = device.problem();
  if (!wants_lse) problem.lse = {};
  const auto run = [&](PrefillKernel kernel) {
    device.clear_outputs();
    attend(problem, kernel);
    device.fetch_outputs();
  };
  run(PrefillKernel::sm80);
  std::string difference;
  Expected expected;
  const bool has_reference = wants_lse && num_products(generated) <= max_products;
  if (has_reference) {
    expected = expected_of(generated, rule);
    difference = mismatch(generated, expected, tolerance);
    if (!difference.empty()) return "prefill_sm80: " + difference;
  } else {
    expected = results_of(generated);
  }
  if (!has_prefill_sm90() || !pagedkv::cuda::prefill_sm90_support(problem, pagedkv::cuda::this_device())) return "";
  run(PrefillKernel::sm90);
  difference = has_reference ? mismatch(generated, expected, tolerance)
                             : mismatch(generated, expected, twice(tolerance), twice(lse_tolerance()));
  return difference.empty() ? "" : (has_reference ? "prefill_sm90: " : "prefill_sm90, not sm80: ") + difference;
}

/// The same for head_dim 64 and 128, under a rule or its twin on the device; Causal as its own type.
template <class HostRule, class Rule>
std::string mismatch_of_kernels(GeneratedProblem<pagedkv::bf16>& generated, const HostRule& host_rule, const Rule& rule,
                                const pagedkv::cuda::Workspace& workspace, std::int64_t max_products = 300'000,
                                bool wants_lse = true) {
  const auto attend = [&](const auto& problem, pagedkv::cuda::PrefillKernel kernel) {
    if constexpr (std::is_same_v<Rule, pagedkv::Causal>)
      prefill(problem, rule, workspace, nullptr, {.kernel = kernel});
    else
      prefill(problem, DeviceRule(rule), workspace, nullptr, {.kernel = kernel});
  };
  return mismatch_of_kernels(generated, host_rule, max_products, attend, wants_lse);
}

/// The same under the `which`-th of all rules and model chains, round and round; attend(problem, rule, kernel).
template <class T, class Attend>
std::string mismatch_of_kernels_under(std::uint64_t which, GeneratedProblem<T>& generated, std::int64_t max_products,
                                      Attend&& attend, bool wants_lse = true) {
  constexpr std::uint64_t num_rules = 13;
  const auto with_rule = [&](const auto& rules, auto&& f) {
    std::uint64_t i = 0;
    const auto visit = [&](const char* name, auto rule) {
      if (i++ == which % num_rules) f(name, rule);
    };
    rules.for_each(visit);
    rules.for_each_model_chain(visit);
    pagedkv::require(i == num_rules, "rules and chains", num_rules, i);
  };
  const DeviceProblem holder(generated);  // of what the rule on the device points to
  std::string difference;
  with_rule(rules_of(generated), [&](const char* name, const auto& host_rule) {
    with_rule(holder.rules(), [&](const char*, const auto& rule) {
      difference = mismatch_of_kernels(
          generated, host_rule, max_products,
          [&](const auto& problem, pagedkv::cuda::PrefillKernel kernel) { attend(problem, DeviceRule(rule), kernel); },
          wants_lse);
      if (!difference.empty()) difference = std::string(name) + ": " + difference;
    });
  });
  return difference;
}

}  // namespace pagedkv_test
