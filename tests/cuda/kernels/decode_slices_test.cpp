// Slices of a batch's keys: they lie end to end, know their owners, and are as even as round sizes can be.
#include "pagedkv/cuda/kernels/decode_slices.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>

#include "pagedkv/attention/variants.hpp"

using namespace pagedkv;
using namespace pagedkv::cuda;

namespace {

// Calls f(cut, slices) for grids and shortest slices of all kinds, over few and many units.
template <class F>
void for_each_cut(F&& f) {
  for (const int max_slices : {1, 2, 10, 264}) {
    for (const int min_slice_units : {1, 4}) {
      DecodeCut cut;
      cut.max_slices = max_slices;
      cut.num_sms = ceil_div(max_slices, 2);
      cut.small_slice_units = 16;
      cut.min_slice_units = min_slice_units;
      for (std::int64_t num_units = 1; num_units < 120'000; num_units += num_units < 3000 ? 1 : 371)
        f(cut, make_slices(cut, min_slice_units, 1, num_units));
    }
  }
}

}  // namespace

TEST_CASE("slices lie end to end, none is empty, and each unit's owner is the slice that holds it") {
  for_each_cut([](const DecodeCut&, const Slices& slices) {
    bool sound = slices.begin(0) == 0 && slices.begin(slices.num_slices) == slices.num_units;
    for (int slice = 0; slice < slices.num_slices; ++slice) {
      const std::int64_t begin = slices.begin(slice), end = slices.begin(slice + 1);
      sound &= begin < end && slices.owner(begin) == slice && slices.owner(end - 1) == slice;
    }
    CHECK(sound);
  });
}

TEST_CASE("there are no more slices than CTAs, and the longest is at most a unit above the share of its CTA or SM") {
  for_each_cut([](const DecodeCut& cut, const Slices& slices) {
    CHECK(slices.num_slices <= cut.max_slices);
    const bool is_small = slices.num_units <= 16 * cut.num_sms;
    const std::int64_t even = ceil_div(slices.num_units, std::int64_t{is_small ? cut.num_sms : cut.max_slices});
    CHECK(slices.size >= even);
    if (even >= cut.min_slice_units) CHECK(slices.size <= even + (even >= 32 ? 1 : 0));
  });
}

TEST_CASE("slices of a batch of equal round rows end where rows end, or cut all of them alike") {
  DecodeCut cut;
  cut.max_slices = 264;
  cut.num_sms = 132;
  cut.small_slice_units = 16;
  cut.min_slice_units = 4;
  for (const auto& [num_rows, row_units] : {std::pair{64, 64}, {256, 16}, {1024, 16}, {8, 256}, {64, 16}, {8, 16}}) {
    const Slices slices = make_slices(cut, cut.min_slice_units, row_units, std::int64_t{num_rows} * row_units);
    CAPTURE(num_rows);
    CHECK((row_units % slices.size == 0 || slices.size % row_units == 0));
  }
}

TEST_CASE("slices are shorter than is worth their merging only while too few CTAs have anything to do") {
  for_each_cut([](const DecodeCut& cut, const Slices& slices) {
    if (slices.size < cut.min_slice_units) CHECK(slices.num_units <= slices.size * max(1, cut.num_sms / 2));
  });
}

TEST_CASE("a long row alone is not cut into more pieces than can be merged while a slice is computed") {
  DecodeCut cut;
  cut.max_slices = 264;
  cut.num_sms = 132;
  cut.small_slice_units = 16;
  cut.min_slice_units = 4;
  for (const int row_units : {16, 64, 256, 1024, 4096}) {
    const Slices slices = make_slices(cut, cut.min_slice_units, row_units, row_units);
    CAPTURE(row_units);
    CHECK(8 * slices.size * slices.size >= row_units);
    CHECK(8 * (slices.size - 2) * (slices.size - 2) <= max(row_units, 8 * 15 * 15));  // nor into many fewer
  }
}

TEST_CASE("pieces that are units are merged whoever computes them: a long row alone is cut for every CTA") {
  DecodeCut cut;
  cut.max_slices = 264;
  cut.num_sms = 132;
  cut.small_slice_units = 4;
  cut.unit_pieces = true;
  for (const auto& [row_units, num_slices] : {std::pair{16, 16}, {64, 64}, {264, 132}, {1056, 264}}) {
    CAPTURE(row_units);
    CHECK(make_slices(cut, 1, row_units, row_units).num_slices == num_slices);
  }
}

TEST_CASE("a small batch is cut alike whether a CTA an SM is started or more") {
  DecodeCut large;
  large.max_slices = 264;
  large.num_sms = 132;
  large.small_slice_units = 16;
  DecodeCut small = large;
  small.max_slices = 132;
  for (std::int64_t num_units = 0; is_small(large, num_units); ++num_units) {
    const Slices some = make_slices(small, 4, 64, num_units), more = make_slices(large, 4, 64, num_units);
    REQUIRE(some.size == more.size);
    REQUIRE(some.num_slices == more.num_slices);
  }
  CHECK(make_slices(small, 4, 64, 132 * 16 + 1).num_slices < make_slices(large, 4, 64, 132 * 16 + 1).num_slices);
}

TEST_CASE("each packed row of a sequence lies in one item, and those of a sequence of too many queries in none") {
  for (const int group_size : {1, 4, 5}) {
    for (const int max_q_len : {0, 1, 8, 15}) {
      DecodeCut cut;
      const int tiles_per_seq = ceil_div(max(1, max_q_len) * group_size, cut.tile_rows);
      cut.tiles_per_seq = Divisor(tiles_per_seq);
      cut.group_size = Divisor(group_size);
      cut.max_q_len = max_q_len;
      cut.num_items = 3 * tiles_per_seq;
      for (int q_len = 0; q_len < 40; ++q_len) {
        const SequenceLengths lengths{.query_begin = 7, .query_end = 7 + q_len, .kv_len = 300};
        int num_rows = 0;
        bool sound = true;
        for (int index = 0; index < cut.num_items; ++index) {
          const DecodeItem item = make_item(cut, Causal{}, index, lengths);
          if (item.sequence == 1) {
            sound &= item.num_rows == 0 || item.row_begin == num_rows;
            num_rows += item.num_rows;
          }
          sound &= (item.units.size() > 0) == (item.num_rows > 0);
        }
        CAPTURE(q_len);
        CAPTURE(max_q_len);
        CHECK(sound);
        CHECK(num_rows == (q_len <= max_q_len ? q_len * group_size : 0));
      }
    }
  }
}
