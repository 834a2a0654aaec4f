// BlockHash: the same on every machine, different for whatever differs, for every key.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <set>
#include <string>
#include <vector>

#include "cache/tokens.hpp"
#include "pagedkv/cache/hash.hpp"

using namespace pagedkv;

TEST_CASE("the hash is the same on every machine") {
  // From a second implementation, in Python.
  CHECK(BlockHash{}(1, iota(23, -3), "extra bytes!") == 0xf0545abd724b0db1u);
}

TEST_CASE("a product of 64-bit numbers is exact") {
  for (const std::uint64_t a : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0xffffffff}, ~std::uint64_t{0}}) {
    for (const std::uint64_t b : {std::uint64_t{1}, std::uint64_t{0x100000001}, ~std::uint64_t{0}}) {
      const auto [low, high] = detail::multiply(a, b);
      CHECK(low == a * b);
      // a * (2^64 - 1) = (a << 64) - a
      if (b == ~std::uint64_t{0}) CHECK(high == (a == 0 ? 0 : a - 1));
      if (b == 1) CHECK(high == 0);
    }
  }
  CHECK(detail::multiply(0x123456789abcdef0u, 0xfedcba9876543210u).high == 0x121fa00ad77d7422u);
}

TEST_CASE("one bit of a token, of the parent or of the extra bytes changes about half of the bits") {
  const BlockHash hash;
  for (const int num_tokens : {1, 2, 15, 16, 17, 32, 40}) {
    Tokens tokens = iota(num_tokens, 1000);
    std::string extra = "some extra bytes";
    const std::uint64_t before = hash(7, tokens, extra);
    const auto changed = [&](std::uint64_t h) { return std::popcount(h ^ before); };
    int total = 0, count = 0, fewest = 64;
    const auto note = [&](int bits) {
      total += bits;
      ++count;
      fewest = std::min(fewest, bits);
    };
    for (int bit = 0; bit < 64; ++bit) note(changed(hash(7 ^ std::uint64_t{1} << bit, tokens, extra)));
    for (std::int32_t& token : tokens) {
      for (int bit = 0; bit < 32; ++bit) {
        token = static_cast<std::int32_t>(static_cast<std::uint32_t>(token) ^ 1u << bit);
        note(changed(hash(7, tokens, extra)));
        token = static_cast<std::int32_t>(static_cast<std::uint32_t>(token) ^ 1u << bit);
      }
    }
    for (char& c : extra) {
      c = static_cast<char>(c ^ 1);
      note(changed(hash(7, tokens, extra)));
      c = static_cast<char>(c ^ 1);
    }
    CHECK(fewest > 8);
    CHECK(total / count >= 30);
    CHECK(total / count <= 34);
  }
}

TEST_CASE("swapped tokens, swapped words and moved boundaries are told apart") {
  const BlockHash hash;
  std::set<std::uint64_t> seen;
  std::size_t count = 0;
  const auto add = [&](std::uint64_t h) {
    seen.insert(h);
    ++count;
  };
  for (std::size_t i = 0; i < 32; ++i) {
    for (std::size_t j = i + 1; j < 32; ++j) {
      Tokens tokens = iota(32);
      std::swap(tokens[i], tokens[j]);
      add(hash(0, tokens, {}));
    }
  }
  add(hash(0, iota(32), {}));
  add(hash(0, iota(31), {}));
  add(hash(0, {}, {}));
  add(hash(1, {}, {}));
  add(hash(0, {}, std::string(1, '\0')));
  add(hash(0, {}, std::string(2, '\0')));
  add(hash(0, {}, std::string(8, '\0')));
  CHECK(seen.size() == count);
}

TEST_CASE("another key is another hash") {
  std::set<std::uint64_t> seen;
  for (std::uint64_t key = 0; key < 1000; ++key) seen.insert(BlockHash{key}(0, iota(16), {}));
  CHECK(seen.size() == 1000);
}

TEST_CASE("blocks that differ little do not collide, nor crowd into few places of a table") {
  const BlockHash hash;
  constexpr int num_hashes = 1 << 16;
  std::set<std::uint64_t> seen;
  std::vector<int> load(1 << 12);
  Tokens tokens(16);
  for (int i = 0; i < num_hashes; ++i) {
    tokens[static_cast<std::size_t>(i % 16)] = i;
    const std::uint64_t h = hash(0, tokens, {});
    seen.insert(h);
    ++load[h % load.size()];
  }
  CHECK(seen.size() == num_hashes);
  CHECK(*std::max_element(load.begin(), load.end()) < 48);  // 16 on average
}
