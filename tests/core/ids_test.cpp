// Ids are names, not numbers.
#include "pagedkv/core/ids.hpp"

#include <doctest/doctest.h>

#include <type_traits>

#include "pagedkv/core/config.hpp"

using namespace pagedkv;

TEST_CASE("a block's id and an integer do not become each other by accident") {
  static_assert(!std::is_convertible_v<BlockId, int>);
  static_assert(!std::is_convertible_v<int, BlockId>);
  static_assert(sizeof(BlockId) == 4);
}

TEST_CASE("to_index is the way out, and none is the only negative id") {
  static_assert(to_index(BlockId{7}) == 7);
  static_assert(to_index(BlockId::none) == -1);
  static_assert(BlockId{-1} == BlockId::none);
}

TEST_CASE("a slot counts beyond 32 bits and a dead slot is negative") {
  static_assert(sizeof(Slot) == 8);
  static_assert(dead_slot < 0);
}

TEST_CASE("the version is made of three numbers") {
  static_assert(PAGEDKV_VERSION_MAJOR >= 0 && PAGEDKV_VERSION_MINOR >= 0 && PAGEDKV_VERSION_PATCH >= 0);
}
