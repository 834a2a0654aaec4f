// Which tiles of keys a tile of queries has to visit.
#pragma once

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// The start of the first tile [start, start + key_tile), with `start` a multiple of key_tile and at least `from` (a
/// multiple itself), that meets `seen`; keys.end or more if there is none. O(1): what no query sees costs nothing.
PAGEDKV_HD constexpr int next_key_tile(const KeyRanges& seen, KeyRange keys, int key_tile, int from) {
  const auto first_meeting = [&](KeyRange range) {
    const KeyRange rest = intersect(intersect(range, keys), {from, keys.end});
    return rest.empty() ? keys.end : rest.begin / key_tile * key_tile;
  };
  return min(first_meeting(seen.first), first_meeting(seen.second));
}

/// The same from the right: the start of the last such tile with `start` less than `before`, a multiple of key_tile or
/// INT_MAX; -1 if there is none. O(1).
PAGEDKV_HD constexpr int previous_key_tile(const KeyRanges& seen, KeyRange keys, int key_tile, int before) {
  const auto last_meeting = [&](KeyRange range) {
    const KeyRange rest = intersect(intersect(range, keys), {keys.begin, before});
    return rest.empty() ? -1 : (rest.end - 1) / key_tile * key_tile;
  };
  return max(last_meeting(seen.first), last_meeting(seen.second));
}

/// Where a walk from the right begins; -1 if no tile meets `seen`.
PAGEDKV_HD constexpr int last_key_tile(const KeyRanges& seen, KeyRange keys, int key_tile) {
  return previous_key_tile(seen, keys, key_tile, no_keys.begin);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
