// The integer and floating arithmetic that host and device share.
#include "pagedkv/core/math.hpp"

#include <doctest/doctest.h>

TEST_CASE("ceil_div counts a started group as a whole one") {
  CHECK(pagedkv::ceil_div(0, 16) == 0);
  CHECK(pagedkv::ceil_div(1, 16) == 1);
  CHECK(pagedkv::ceil_div(16, 16) == 1);
  CHECK(pagedkv::ceil_div(17, 16) == 2);
}
