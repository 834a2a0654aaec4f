// How far a result may be from the reference, said once for all types and back ends; and the comparison.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cpu/reference.hpp"
#include "support/problem_generator.hpp"

namespace pagedkv_test {

/// Half a unit in the last place, relative.
template <class T>
constexpr double rounding_unit() {
  if constexpr (std::is_same_v<T, pagedkv::bf16>)
    return 0x1p-8;
  else if constexpr (std::is_same_v<T, pagedkv::f16>)
    return 0x1p-11;
  else
    return 0x1p-24;
}

/// |got - expected| <= absolute + relative * |expected|
struct Tolerance {
  double absolute, relative;
};

/// For outputs stored as O, values in [-1, 1] and logits up to `largest_logit`: a relative error of 2^-20 in a logit (a
/// float sum of some hundred products, and exp) bends every weight by that much of it. `weight_unit` is the rounding of
/// weights where a kernel multiplies them in a short type: rounding_unit<KV>() for mma kernels, else 0.
template <class O>
constexpr Tolerance out_tolerance(double weight_unit = 0, double largest_logit = 16) {
  return {.absolute = 0x1p-20 * largest_logit + 2 * weight_unit + 0x1p-25, .relative = rounding_unit<O>()};
}

/// lse is float in every back end.
constexpr Tolerance lse_tolerance(double largest_logit = 16) { return {0x1p-20 * largest_logit, 0x1p-22}; }

/// Equal, both the same infinity, or within the tolerance; NaN never.
inline bool is_close(double got, double expected, Tolerance tolerance) {
  if (got == expected) return true;
  return std::abs(got - expected) <= tolerance.absolute + tolerance.relative * std::abs(expected) &&
         std::isfinite(expected);
}

/// The reference's answer in float.
struct Expected {
  std::vector<float> out;  // [num_tokens, q_heads, head_dim_v]
  std::vector<float> lse;  // [num_tokens, q_heads]
};

template <class Q, class KV, class O, class V>
Expected expected_of(GeneratedProblem<Q, KV, O>& generated, const V& variant) {
  const auto problem = generated.problem();
  const std::int64_t tokens = problem.num_tokens(), heads = problem.q_heads(), dim = problem.head_dim_v();
  Expected expected{.out = std::vector<float>(static_cast<std::size_t>(tokens * heads * dim)),
                    .lse = std::vector<float>(static_cast<std::size_t>(tokens * heads))};
  const pagedkv::AttentionProblem<pagedkv::Space::host, Q, KV, float> in_float{
      .q = problem.q,
      .kv = problem.kv,
      .tables = problem.tables,
      .out = pagedkv::dense_view(expected.out.data(), {tokens, heads, dim}),
      .lse = pagedkv::dense_view(expected.lse.data(), {tokens, heads}),
      .scale = problem.scale};
  pagedkv::cpu::attend_reference(in_float, variant);
  return expected;
}

/// The first difference between `generated`'s outputs and the reference, in words; empty if there is none and no canary
/// has been overwritten.
template <class Q, class KV, class O>
std::string mismatch(const GeneratedProblem<Q, KV, O>& generated, const Expected& expected, Tolerance out_tolerance,
                     Tolerance lse_tolerance = pagedkv_test::lse_tolerance()) {
  const auto differ = [&](const char* name, std::size_t row, std::size_t column, double got, double wanted) {
    const std::size_t heads = static_cast<std::size_t>(generated.shape.q_heads());
    return std::string(name) + " token " + std::to_string(row / heads) + " head " + std::to_string(row % heads) +
           " element " + std::to_string(column) + ": " + std::to_string(wanted) + " expected, " + std::to_string(got) +
           " got; " + generated.shape.describe();
  };
  const std::size_t dim = static_cast<std::size_t>(generated.shape.head_dim_v);
  const std::size_t rows =
      static_cast<std::size_t>(generated.query_begin.back()) * static_cast<std::size_t>(generated.shape.q_heads());
  for (std::size_t row = 0; row < rows; ++row) {
    const double lse = generated.lse[generated.margin + row];
    if (!is_close(lse, expected.lse[row], lse_tolerance)) return differ("lse", row, 0, lse, expected.lse[row]);
    for (std::size_t d = 0; d < dim; ++d) {
      const double got = pagedkv::to_float(generated.out[generated.margin + row * dim + d]);
      const double wanted = expected.out[row * dim + d];
      if (!is_close(got, wanted, out_tolerance)) return differ("out", row, d, got, wanted);
    }
  }
  return generated.canaries_intact() ? "" : "a canary was overwritten; " + generated.shape.describe();
}

}  // namespace pagedkv_test
