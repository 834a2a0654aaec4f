// Walking over tiles of keys visits each tile that a query can see, in order, once, and no other; from either end.
#include "pagedkv/cuda/tile/key_tiles.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "pagedkv/attention/variant.hpp"

namespace {

using pagedkv::KeyRange;
using pagedkv::KeyRanges;

std::vector<int> walk(const KeyRanges& seen, KeyRange keys, int key_tile) {
  std::vector<int> starts;
  for (int start = pagedkv::cuda::next_key_tile(seen, keys, key_tile, keys.begin); start < keys.end;
       start = pagedkv::cuda::next_key_tile(seen, keys, key_tile, start + key_tile))
    starts.push_back(start);
  return starts;
}

std::vector<int> walk_back(const KeyRanges& seen, KeyRange keys, int key_tile) {
  std::vector<int> starts;
  for (int start = pagedkv::cuda::last_key_tile(seen, keys, key_tile); start >= 0;
       start = pagedkv::cuda::previous_key_tile(seen, keys, key_tile, start))
    starts.push_back(start);
  std::ranges::reverse(starts);
  return starts;
}

std::vector<int> touched(const KeyRanges& seen, KeyRange keys, int key_tile) {
  std::vector<int> starts;
  for (int start = keys.begin; start < keys.end; start += key_tile)
    if (seen.touches(intersect(keys, {start, start + key_tile}))) starts.push_back(start);
  return starts;
}

}  // namespace

TEST_CASE("both walks visit exactly the tiles that hold a key in one of the two ranges") {
  constexpr int key_tile = 4;
  for (int num_keys = 0; num_keys <= 17; ++num_keys)
    for (int a = -2; a <= 18; ++a)
      for (int b = -2; b <= 18; ++b)
        for (int c = b; c <= 18; ++c)
          for (int d = -2; d <= 19; ++d) {
            const KeyRanges seen{{a, b}, {c, d}};
            const std::vector<int> expected = touched(seen, {0, num_keys}, key_tile);
            REQUIRE(walk(seen, {0, num_keys}, key_tile) == expected);
            REQUIRE(walk_back(seen, {0, num_keys}, key_tile) == expected);
          }
}

TEST_CASE("the tile before a place is the last one that begins before it, whether that place was visited or not") {
  constexpr int key_tile = 4;
  const KeyRange keys{4, 19};
  for (int a = -2; a <= 20; ++a)
    for (int b = a; b <= 20; ++b)
      for (int c = b; c <= 20; ++c)
        for (int d = c; d <= 20; ++d) {
          const KeyRanges seen{{a, b}, {c, d}};
          const std::vector<int> tiles = touched(seen, keys, key_tile);
          for (int before = -key_tile; before <= 24; before += key_tile) {
            const auto next = std::ranges::lower_bound(tiles, before);
            const int expected = next == tiles.begin() ? -1 : *(next - 1);
            REQUIRE(pagedkv::cuda::previous_key_tile(seen, keys, key_tile, before) == expected);
          }
        }
}

TEST_CASE("both walks stay within the keys of a split") {
  CHECK(walk({{0, 100}}, {16, 40}, 8) == std::vector{16, 24, 32});
  CHECK(walk({{0, 20}}, {16, 40}, 8) == std::vector{16});
  CHECK(walk({{0, 2}, {90, 100}}, {16, 40}, 8).empty());
  CHECK(walk({{0, 2}}, {16, 40}, 8).empty());
  CHECK(walk_back({{0, 100}}, {16, 40}, 8) == std::vector{16, 24, 32});
  CHECK(walk_back({{0, 20}}, {16, 40}, 8) == std::vector{16});
  CHECK(walk_back({{0, 2}, {90, 100}}, {16, 40}, 8).empty());
  CHECK(walk_back({{0, 2}}, {16, 40}, 8).empty());
}
