// Strided views: addresses, constness and the side of the bus.
#include "pagedkv/core/view.hpp"

#include <doctest/doctest.h>

#include <type_traits>
#include <vector>

using namespace pagedkv;

TEST_CASE("a dense view walks its array in row-major order") {
  std::vector<int> values(2 * 3 * 4);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  const auto view = dense_view(values.data(), {2, 3, 4});
  int next = 0;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) CHECK(view(i, j, k) == next++);
  CHECK(view.strides[0] == 12);
  CHECK(view.strides[1] == 4);
  CHECK(view.strides[2] == 1);
}

TEST_CASE("strides may leave gaps, permute axes and repeat an element") {
  int values[24] = {};
  for (int i = 0; i < 24; ++i) values[i] = i;
  const View<int, 2> every_second_column{values, {4, 3}, {6, 2}};
  CHECK(every_second_column(3, 2) == 22);
  const View<int, 2> transposed{values, {6, 4}, {1, 6}};
  CHECK(transposed(5, 3) == 23);
  const View<int, 2> repeated{values, {4, 6}, {0, 1}};
  CHECK(repeated.at(0, 5) == repeated.at(3, 5));
}

TEST_CASE("offsets pass 2^32 elements with 32-bit indices") {
  const View<char, 2> pool{nullptr, {1 << 20, 1 << 14}, {std::int64_t{1} << 14, 1}};
  std::int64_t offset = 0;
  const int block = (1 << 20) - 1, last = (1 << 14) - 1;
  const std::int64_t indices[] = {block, last};
  for (int d = 0; d < 2; ++d) offset += indices[d] * pool.strides[d];
  CHECK(reinterpret_cast<std::uintptr_t>(pool.at(block, last)) == static_cast<std::uintptr_t>(offset));
  CHECK(offset == (std::int64_t{1} << 34) - 1);
}

TEST_CASE("a default-made view is empty and a view of something is not") {
  int value = 0;
  CHECK(View<int, 3>{}.empty());
  CHECK_FALSE(dense_view(&value, {1}).empty());
}

TEST_CASE("a writable view may be read, not the other way round, and never on the other side") {
  using Writable = View<float, 2>;
  using Readable = View<const float, 2>;
  using OnDevice = View<float, 2, Space::device>;
  static_assert(std::is_convertible_v<Writable, Readable>);
  static_assert(!std::is_convertible_v<Readable, Writable>);
  static_assert(!std::is_convertible_v<Writable, OnDevice>);
  static_assert(!std::is_convertible_v<OnDevice, Readable>);
  float value = 3.f;
  const Readable readable = Writable{&value, {1, 1}, {5, 7}};
  CHECK(readable(0, 0) == 3.f);
  CHECK(readable.strides[1] == 7);
}

TEST_CASE("a view is plain data that a kernel can take by value") {
  static_assert(std::is_trivially_copyable_v<View<float, 4>>);
  static_assert(std::is_standard_layout_v<View<float, 4>>);
}
