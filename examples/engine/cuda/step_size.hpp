// padded_step: the few sizes of steps that only decode, so that a graph for each serves them all.
#pragma once

#include <algorithm>
#include <vector>

#include "pagedkv/core/math.hpp"

namespace engine {

/// The size to which `num_rows` rows, at most `max_rows`, are padded: steps of 8 to 64, of 16 to 256 and of 32 beyond,
/// and max_rows at the end. Eight rows cost what one does or less: the weights are read either way, and for a single
/// row cuBLAS chooses slower kernels (on an H200, 12 microseconds instead of 5 for 1024 x 2048 weights).
inline int padded_step(int num_rows, int max_rows) {
  return std::min(pagedkv::round_up(num_rows, num_rows <= 64 ? 8 : num_rows <= 256 ? 16 : 32), max_rows);
}

/// All of them, ascending.
inline std::vector<int> padded_steps(int max_rows) {
  std::vector<int> sizes;
  for (int num_rows = 1; num_rows <= max_rows; num_rows = sizes.back() + 1)
    sizes.push_back(padded_step(num_rows, max_rows));
  return sizes;
}

}  // namespace engine
