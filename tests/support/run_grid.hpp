// run_grid(): a kernel's grid on emulated warps, one CTA after another. Include support/warp_emulator.hpp first.
#pragma once

#include <functional>

#include "support/warp_emulator.hpp"

namespace pagedkv_test {

inline void run_grid(Index grid, int threads, const std::function<void()>& body) {
  if (grid.y == 0) grid.y = 1;
  if (grid.z == 0) grid.z = 1;
  emulated_grid = grid;
  for (emulated_cta.z = 0; emulated_cta.z < grid.z; ++emulated_cta.z)
    for (emulated_cta.y = 0; emulated_cta.y < grid.y; ++emulated_cta.y)
      for (emulated_cta.x = 0; emulated_cta.x < grid.x; ++emulated_cta.x) emulator.run(threads, body);
  emulated_grid = {1};
  emulated_cta = {0};
}

}  // namespace pagedkv_test
