// Mixed batches of which a kernel serves a part: what the rows of the others must look like.
#pragma once

#include <algorithm>
#include <cstddef>

#include "pagedkv/core/dtype.hpp"
#include "support/problem_generator.hpp"
#include "support/tolerance.hpp"

namespace pagedkv_test {

/// From now on the rows of `sequence` are expected as clear_outputs() leaves them.
template <class Q, class KV, class O>
void expect_untouched(Expected& expected, const GeneratedProblem<Q, KV, O>& generated, int sequence) {
  const auto s = static_cast<std::size_t>(sequence);
  const std::ptrdiff_t begin = generated.query_begin[s], end = generated.query_begin[s + 1];
  const std::ptrdiff_t heads = generated.shape.q_heads(), columns = heads * generated.shape.head_dim_v;
  std::fill(expected.out.begin() + begin * columns, expected.out.begin() + end * columns,
            pagedkv::to_float(pagedkv::from_float<O>(-12345.f)));
  std::fill(expected.lse.begin() + begin * heads, expected.lse.begin() + end * heads, -12345.f);
}

}  // namespace pagedkv_test
