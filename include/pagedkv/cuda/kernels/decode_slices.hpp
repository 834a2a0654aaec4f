// Who computes what in decode_sm80: the keys that a batch can see, laid end to end and cut into slices of equal length.
//
//   items     | sequence 0        | sequence 1 | sequence 2 ...                one tile of rows each
//   heads     | KV head 0 | 1 | 2 | 0 | 1 | 2  | ...
//   units     |.|.|.|.|.|.|.|.|.|.|.|.|.|.|.|.|...                              aligned runs of unit_keys visible keys
//   slices    |--- CTA 0 ---|--- CTA 1 ---|--- CTA 2 ---| ...
//
// Stream-K's even division of a linear range (arXiv:2301.03598), for attention LeanAttention (arXiv:2405.10480). Pure
// functions of lengths: every CTA computes its own slice, so no host and no other kernel has to know the lengths.
#pragma once

#include <cstdint>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// What the host states at launch; lengths are not among it.
struct DecodeCut {
  int num_seqs = 0;
  int tiles_per_seq = 1;  // of packed rows: upper bound, from max_q_len
  int tile_rows = 8;      // packed rows of a tile: query * group_size + head of the group
  int kv_heads = 1, group_size = 1;
  int unit_keys = 64;           // a slice begins and ends at multiples of so many keys of its row
  bool unit_pieces = false;     // a partial is one unit, whoever computes it: bits do not depend on where slices end
  int min_slice_units = 1;      // shorter slices cost more to merge than they save
  int max_slices = 1;           // CTAs of the grid
  std::int64_t max_pieces = 0;  // tiles of partials that there is room for

  PAGEDKV_HD constexpr std::int64_t num_items() const { return std::int64_t{num_seqs} * tiles_per_seq; }

  friend constexpr bool operator==(const DecodeCut&, const DecodeCut&) = default;
};

/// The units that two ranges of keys touch, in order; never the same unit twice.
struct UnitList {
  int first = 0, num_first = 0;
  int second = 0, num_second = 0;

  PAGEDKV_HD constexpr int size() const { return num_first + num_second; }
  PAGEDKV_HD constexpr int operator[](int i) const { return i < num_first ? first + i : second + (i - num_first); }
};

PAGEDKV_HD constexpr UnitList units_of(const KeyRanges& seen, int unit_keys) {
  UnitList units;
  if (!seen.first.empty()) {
    units.first = seen.first.begin / unit_keys;
    units.num_first = ceil_div(seen.first.end, unit_keys) - units.first;
  }
  if (!seen.second.empty()) {
    units.second = max(seen.second.begin / unit_keys, units.first + units.num_first);
    units.num_second = max(0, ceil_div(seen.second.end, unit_keys) - units.second);
  }
  return units;
}

/// A tile of packed rows of one sequence, and what it can see.
struct DecodeItem {
  int sequence = 0;
  int row_begin = 0, num_rows = 0;  // packed
  int kv_len = 0, offset = 0;       // query i stands at position i + offset
  KeyRanges seen;                   // covers the visible keys of all rows, within [0, kv_len)
  UnitList units;                   // one without keys where nothing is visible: the output must be written

  PAGEDKV_HD constexpr bool sees(KeyRange keys) const { return seen.touches(keys); }
};

template <AttentionVariant V>
PAGEDKV_HD constexpr DecodeItem make_item(const DecodeCut& cut, const V& variant, std::int64_t index, int q_len,
                                          int kv_len) {
  DecodeItem item;
  item.sequence = static_cast<int>(index / cut.tiles_per_seq);
  item.row_begin = static_cast<int>(index % cut.tiles_per_seq) * cut.tile_rows;
  item.num_rows = max(0, min(cut.tile_rows, q_len * cut.group_size - item.row_begin));
  item.kv_len = kv_len;
  item.offset = kv_len - q_len;
  if (item.num_rows == 0) return item;
  const int earliest = item.row_begin / cut.group_size;
  const int latest = (item.row_begin + item.num_rows - 1) / cut.group_size;
  const KeyRanges seen = seen_keys(variant, earliest + item.offset, latest + item.offset, kv_len);
  const KeyRange all{0, kv_len};
  item.seen = {intersect(seen.first, all), intersect(seen.second, all)};
  item.units = units_of(item.seen, cut.unit_keys);
  if (item.units.size() == 0) item.units.num_first = 1;
  return item;
}

/// `num_units` units in slices that differ by one unit at most.
struct Slices {
  std::int64_t num_units = 0;
  int num_slices = 0;

  PAGEDKV_HD constexpr std::int64_t begin(int slice) const { return num_units * slice / num_slices; }
  /// The slice that holds a unit.
  PAGEDKV_HD constexpr int owner(std::int64_t unit) const {
    return static_cast<int>(((unit + 1) * num_slices - 1) / num_units);
  }
};

PAGEDKV_HD constexpr Slices make_slices(const DecodeCut& cut, std::int64_t num_units) {
  const std::int64_t wanted = ceil_div(num_units, std::int64_t{cut.min_slice_units});
  return {num_units, static_cast<int>(min<std::int64_t>(wanted, cut.max_slices))};
}

/// May slices end inside a row's keys? Only where all pieces that would wait to be merged find room.
PAGEDKV_HD constexpr bool may_cut_rows(const DecodeCut& cut, const Slices& slices) {
  const std::int64_t num_pieces = slices.num_slices + (cut.unit_pieces ? slices.num_units : slices.num_slices);
  return num_pieces <= cut.max_pieces;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
