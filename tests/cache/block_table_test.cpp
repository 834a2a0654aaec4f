// BlockTable: position -> slot.
#include "pagedkv/cache/block_table.hpp"

#include <doctest/doctest.h>

#include <array>

using namespace pagedkv;

TEST_CASE("a position's slot is its block's id times block_size plus its offset") {
  BlockTable table{3};
  table.append(std::array{BlockId{7}, BlockId{2}});
  CHECK(table.num_blocks() == 2);
  CHECK(table.slot(0) == 21);
  CHECK(table.slot(2) == 23);
  CHECK(table.slot(3) == 6);
  CHECK(table.slot(5) == 8);
}

TEST_CASE("slots beyond 2^31 do not overflow") {
  BlockTable table{256};
  table.append(std::array{BlockId{2'000'000'000}});
  CHECK(table.slot(255) == 2'000'000'000LL * 256 + 255);
}

TEST_CASE("a block that a window dropped has dead slots") {
  BlockTable table{2};
  table.append(std::array{BlockId{0}, BlockId{1}});
  table.replace(0, BlockId::none);
  CHECK(table.slot(1) == dead_slot);
  CHECK(table.slot(2) == 2);
}

TEST_CASE("positions outside the table are refused") {
  BlockTable table{4};
  table.append(std::array{BlockId{5}});
  CHECK_THROWS_AS(static_cast<void>(table.slot(-1)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(table.slot(4)), InvalidArgument);
  CHECK_THROWS_AS(table.replace(1, BlockId{6}), InvalidArgument);
  CHECK_THROWS_AS(table.replace(-1, BlockId{6}), InvalidArgument);
  CHECK_THROWS_AS(table.truncate(2), InvalidArgument);
  CHECK_THROWS_AS(table.truncate(-1), InvalidArgument);
  table.truncate(0);
  CHECK_THROWS_AS(static_cast<void>(table.slot(0)), InvalidArgument);
  CHECK_THROWS_AS(BlockTable{0}, InvalidArgument);
}
