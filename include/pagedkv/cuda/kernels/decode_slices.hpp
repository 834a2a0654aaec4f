// Who computes what in decode_sm80: the keys that a batch can see, laid end to end and cut into slices of equal length.
//
//   items     | sequence 0        | sequence 1 | sequence 2 ...                one tile of rows each
//   heads     | KV head 0 | 1 | 2 | 0 | 1 | 2  | ...
//   units     |.|.|.|.|.|.|.|.|.|.|.|.|.|.|.|.|...                              aligned runs of visible keys
//   slices    |--- CTA 0 ---|--- CTA 1 ---|--- CTA 2 ---| ...
//
// Stream-K's even division of a linear range (arXiv:2301.03598), for attention LeanAttention (arXiv:2405.10480). Pure
// functions of lengths: every CTA computes its own slice, so no host and no other kernel has to know the lengths.
#pragma once

#include <cstdint>
#include <limits>

#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/divisor.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// What the host states at launch; lengths are not among it.
struct DecodeCut {
  int num_items = 0;      // sequences times tiles of packed rows (upper bound, from max_q_len)
  Divisor tiles_per_seq;  // item = sequence * tiles_per_seq + tile
  Divisor group_size;     // packed row = query * group_size + head of the group
  Divisor block_size;
  // Sequences with more queries are no decode's: they have no rows here, and theirs in the output are not touched. The
  // bound that tiles_per_seq comes from.
  int max_q_len = std::numeric_limits<int>::max();
  bool chunks_in_blocks = true;  // is block_size a multiple of the 16 keys of a warp's step?
  int tile_rows = 8;             // packed rows of a tile
  int kv_heads = 1;
  int unit_shift = 6;       // a slice begins and ends at multiples of 2^unit_shift keys of its row
  int min_slice_units = 1;  // shorter slices cost more to merge than they save
  int max_slices = 1;       // CTAs of the grid
  int num_sms = 1;          // half of them keep memory busy
  int small_slice_units =
      0;  // one CTA an SM where slices are no longer: the other place is the next kernel's to get ready in
  std::int64_t max_pieces = 0;   // tiles of partials that there is room for
  bool unit_pieces = false;      // a partial is one unit, whoever computes it: bits do not depend on where slices end
  bool beside_previous = false;  // launched beside the kernel in front: see Launch

  friend constexpr bool operator==(const DecodeCut&, const DecodeCut&) = default;
};

/// The units that two ranges of keys touch, in order; never the same unit twice.
struct UnitList {
  int first = 0, num_first = 0;
  int second = 0, num_second = 0;

  PAGEDKV_HD constexpr int size() const { return num_first + num_second; }
  PAGEDKV_HD constexpr int operator[](int i) const { return i < num_first ? first + i : second + (i - num_first); }
};

PAGEDKV_HD constexpr UnitList units_of(const KeyRanges& seen, int unit_shift) {
  const auto end_of = [&](KeyRange range) { return ((range.end - 1) >> unit_shift) + 1; };
  UnitList units;
  if (!seen.first.empty()) {
    units.first = seen.first.begin >> unit_shift;
    units.num_first = end_of(seen.first) - units.first;
  }
  if (!seen.second.empty()) {
    units.second = max(seen.second.begin >> unit_shift, units.first + units.num_first);
    units.num_second = max(0, end_of(seen.second) - units.second);
  }
  return units;
}

/// What is read from memory about a sequence.
struct SequenceLengths {
  int query_begin = 0, query_end = 0, kv_len = 0;

  PAGEDKV_HD constexpr int q_len() const { return query_end - query_begin; }
};

/// A tile of packed rows of one sequence, and what it can see.
struct DecodeItem {
  int sequence = 0;
  int first_token = 0;              // of the sequence
  int row_begin = 0, num_rows = 0;  // packed
  int kv_len = 0, offset = 0;       // query i stands at position i + offset
  KeyRanges seen;                   // covers the visible keys of all rows, within [0, kv_len)
  UnitList units;                   // one without keys where nothing is visible: the output must be written

  PAGEDKV_HD constexpr bool sees(KeyRange keys) const { return seen.touches(keys); }
};

template <AttentionVariant V>
PAGEDKV_HD constexpr DecodeItem make_item(const DecodeCut& cut, const V& variant, int index,
                                          const SequenceLengths& lengths) {
  const int q_len = lengths.q_len() <= cut.max_q_len ? lengths.q_len() : 0, kv_len = lengths.kv_len;
  DecodeItem item;
  item.first_token = lengths.query_begin;
  item.sequence = cut.tiles_per_seq.quotient(index);
  item.row_begin = cut.tiles_per_seq.remainder(index) * cut.tile_rows;
  item.num_rows = max(0, min(cut.tile_rows, q_len * static_cast<int>(cut.group_size.divisor) - item.row_begin));
  item.kv_len = kv_len;
  item.offset = kv_len - q_len;
  if (item.num_rows == 0) return item;
  // Up to the sequence's last query, whatever the tile: so a tree of drafts, which no order of its queries bounds, is cut
  // like a line of them.
  const int earliest = cut.group_size.quotient(item.row_begin);
  const KeyRanges seen = seen_keys(variant, earliest + item.offset, kv_len - 1, kv_len);
  const KeyRange all{0, kv_len};
  item.seen = {intersect(seen.first, all), intersect(seen.second, all)};
  item.units = units_of(item.seen, cut.unit_shift);
  if (item.units.size() == 0) item.units.num_first = 1;
  return item;
}

/// `num_units` units in slices of the same size; the last one may be shorter.
struct Slices {
  std::int64_t num_units = 0;
  std::int64_t size = 1;
  int num_slices = 0;

  PAGEDKV_HD constexpr std::int64_t begin(int slice) const { return min(size * slice, num_units); }
  /// The slice that holds a unit.
  PAGEDKV_HD constexpr int owner(std::int64_t unit) const { return static_cast<int>(unit / size); }
};

/// Is one slice an SM enough for so many units?
PAGEDKV_HD constexpr bool is_small(const DecodeCut& cut, std::int64_t num_units) {
  return num_units <= std::int64_t{cut.num_sms} * cut.small_slice_units;
}

/// As even as can be, but round: from 32 units on, an even number. Rows of a batch often are round, too, and then slices
/// end where rows do, or cut all of them alike; a row that is not cut, or a slice with one piece, saves more than a few
/// slices without work cost.
/// `row_units`: units of a row, on average.
PAGEDKV_HD constexpr Slices make_slices(const DecodeCut& cut, int min_slice_units, std::int64_t row_units,
                                        std::int64_t num_units) {
  Slices slices{.num_units = num_units};
  if (num_units == 0) return slices;
  const int wanted = is_small(cut, num_units) ? min(cut.num_sms, cut.max_slices) : cut.max_slices;
  const std::int64_t even = ceil_div(num_units, std::int64_t{wanted});
  // While few CTAs have anything to do, it is better to have more of them than slices that are worth their merging; but
  // eight pieces take as long to merge as a unit to compute, so that a row is best cut into the root of its eighth.
  // Pieces that are units are merged whatever the slices are.
  std::int64_t least = min<std::int64_t>(min_slice_units, ceil_div(num_units, std::int64_t{max(1, cut.num_sms / 2)}));
  while (!cut.unit_pieces && 8 * least * least < row_units) ++least;
  slices.size = max(even, least);
  if (slices.size >= 32) slices.size = round_up<std::int64_t>(slices.size, 2);
  slices.num_slices = static_cast<int>(ceil_div(num_units, slices.size));
  return slices;
}

/// May slices end inside a row's keys, or do they hold whole rows, each counted as one unit? Only where pieces that would wait to be merged all find room.
PAGEDKV_HD constexpr bool may_cut_rows(const DecodeCut& cut, const Slices& slices) {
  const std::int64_t num_pieces = 2 * std::int64_t{slices.num_slices} + (cut.unit_pieces ? slices.num_units : 0);
  return num_pieces <= cut.max_pieces;
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
