// PrefixScope: different scopes have different keys, whatever their fields hold.
#include "pagedkv/cache/prefix_scope.hpp"

#include <doctest/doctest.h>

#include <array>
#include <set>
#include <string>
#include <vector>

using namespace pagedkv;

TEST_CASE("a value in one field is not the same value in another field") {
  const std::set<std::string> keys{
      detail::scope_key({}),
      detail::scope_key({.salt = 'x'}),
      detail::scope_key({.model = "x"}),
      detail::scope_key({.adapter = "x"}),
      detail::scope_key({.model = "ab", .adapter = "c"}),
      detail::scope_key({.model = "a", .adapter = "bc"}),
      detail::scope_key({.model = std::string_view("a\0", 2)}),
      detail::scope_key({.model = "a"}),
  };
  CHECK(keys.size() == 8);
}

TEST_CASE("the key of a block knows which part of an extra it holds, and where") {
  constexpr int block_size = 4;
  const auto key = [](int begin, int end, const char* content, int block) {
    const std::array extras{PrefixExtra{begin, end, content}};
    return detail::extras_key(extras, block * block_size, block_size);
  };
  CHECK(key(4, 8, "image", 0).empty());
  CHECK(key(4, 8, "image", 2).empty());
  const std::set<std::string> keys{key(0, 4, "image", 0), key(1, 4, "image", 0), key(0, 3, "image", 0),
                                   key(0, 8, "image", 1), key(4, 8, "other", 1)};
  CHECK(keys.size() == 5);
  CHECK(key(4, 8, "image", 1) == key(0, 4, "image", 0));  // the position is the parent's business
}

TEST_CASE("a position inside an extra moves to its beginning") {
  const std::array extras{PrefixExtra{2, 5, "a"}, PrefixExtra{5, 6, "b"}, PrefixExtra{8, 20, "c"}};
  const std::vector<int> expected{0, 1, 2, 2, 2, 5, 6, 7, 8, 8, 8};
  for (int i = 0; i < 11; ++i) CHECK(detail::outside_extras(extras, i) == expected[static_cast<std::size_t>(i)]);
}

TEST_CASE("extras that overlap, are empty or out of order are refused") {
  const std::array overlapping{PrefixExtra{0, 3, "a"}, PrefixExtra{2, 5, "b"}};
  const std::array empty{PrefixExtra{1, 1, "a"}};
  const std::array negative{PrefixExtra{-1, 1, "a"}};
  CHECK_THROWS_AS(PrefixScope{.extras = overlapping}.validate(), InvalidArgument);
  CHECK_THROWS_AS(PrefixScope{.extras = empty}.validate(), InvalidArgument);
  CHECK_THROWS_AS(PrefixScope{.extras = negative}.validate(), InvalidArgument);
}
