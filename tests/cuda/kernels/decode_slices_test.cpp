// Slices of a batch's keys: they lie end to end, know their owners, and are long enough for the rings that run ahead.
#include "pagedkv/cuda/kernels/decode_slices.hpp"

#include <doctest/doctest.h>

#include <cstdint>

using namespace pagedkv;
using namespace pagedkv::cuda;

namespace {

// Calls f(cut, slices) for grids, shortest slices and shares of all kinds, over few and many units.
template <class F>
void for_each_cut(F&& f) {
  for (const int num_ctas : {1, 2, 10, 264}) {
    for (const int slices_per_cta : {1, 2, 5}) {
      for (const int min_dealt_units : {1, 3, 6}) {
        for (const int large_share : {50, 70, 90}) {
          DecodeCut cut;
          cut.num_ctas = num_ctas;
          cut.max_slices = num_ctas * slices_per_cta;
          cut.min_dealt_units = min_dealt_units;
          cut.large_share = large_share;
          for (std::int64_t num_units = 1; num_units < 12'000; num_units += num_units < 100 ? 1 : 371)
            f(cut, make_slices(cut, cut.max_slices, num_units));
        }
      }
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

TEST_CASE("where CTAs take several slices, none is shorter than what a ring of stages holds") {
  int num_dealt = 0;
  for_each_cut([&](const DecodeCut& cut, const Slices& slices) {
    if (slices.num_large == 0) return;
    ++num_dealt;
    CHECK(slices.large >= cut.min_dealt_units);
    CHECK(slices.small >= cut.min_dealt_units);
    CHECK(slices.num_large == cut.num_ctas);
    CHECK(slices.num_slices >= 2 * cut.num_ctas);  // two for each CTA before it has to ask
    CHECK(slices.num_slices <= cut.max_slices);
  });
  CHECK(num_dealt > 100);
}

TEST_CASE("without further slices there is one for each CTA, or one for each unit where these are fewer") {
  for_each_cut([](const DecodeCut& cut, const Slices& slices) {
    if (cut.max_slices == cut.num_ctas) CHECK(slices.num_slices == min<std::int64_t>(slices.num_units, cut.num_ctas));
  });
}
