// PrefixTree: entries are found by parent, tokens and extra bytes, all of them, and go with their last block.
#include "pagedkv/cache/prefix_tree.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "support/assert.hpp"

using namespace pagedkv;
using detail::EntryId;

namespace {

struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t>, std::string_view) const { return 1; }
};

constexpr std::array<std::int32_t, 2> ab{1, 2}, ac{1, 3};

// The block, after room for it has been made.
template <class Tree>
BlockId prepared(Tree& tree, int block) {
  tree.prepare(BlockId{block});
  return BlockId{block};
}

}  // namespace

TEST_CASE_TEMPLATE("parent, tokens and extra bytes decide, not the hash", Hash, BlockHash, ConstantHash) {
  detail::PrefixTree<Hash> tree{2, {}};
  const EntryId root = tree.insert(EntryId::none, {}, "scope");
  const EntryId first = tree.insert(root, ab, "");
  tree.attach(first, prepared(tree, 0));
  const EntryId second = tree.insert(first, ab, "");
  tree.attach(second, prepared(tree, 1));
  const EntryId sibling = tree.insert(root, ab, "image");
  tree.attach(sibling, prepared(tree, 2));
  CHECK(tree.find(EntryId::none, {}, "scope") == root);
  CHECK(tree.find(EntryId::none, {}, "other") == EntryId::none);
  CHECK(tree.find(root, ab, "") == first);
  CHECK(tree.find(first, ab, "") == second);
  CHECK(tree.find(second, ab, "") == EntryId::none);
  CHECK(tree.find(root, ab, "image") == sibling);
  CHECK(tree.find(root, ac, "") == EntryId::none);
  tree.check_invariants();
}

TEST_CASE("the oldest copy is canonical; when it goes, the next one takes its place") {
  detail::PrefixTree<BlockHash> tree{2, {}};
  const EntryId entry = tree.insert(tree.insert(EntryId::none, {}, ""), ab, "");
  for (const int block : {5, 3, 4}) tree.attach(entry, prepared(tree, block));
  CHECK(tree.canonical(entry) == BlockId{5});
  CHECK(tree.has_duplicates(entry));
  tree.detach(BlockId{5});
  CHECK(tree.canonical(entry) == BlockId{3});
  tree.detach(BlockId{4});
  CHECK_FALSE(tree.has_duplicates(entry));
  CHECK(tree.entry_of(BlockId{4}) == EntryId::none);
  tree.detach(BlockId{3});
  CHECK(tree.num_entries() == 0);
}

TEST_CASE("an entry with continuations keeps its last block") {
  detail::PrefixTree<BlockHash> tree{2, {}};
  const EntryId first = tree.insert(tree.insert(EntryId::none, {}, ""), ab, "");
  tree.attach(first, prepared(tree, 0));
  tree.attach(tree.insert(first, ac, ""), prepared(tree, 1));
  CHECK_THROWS_AS(tree.detach(BlockId{0}), pagedkv_test::AssertionFailed);
}

TEST_CASE("a thousand siblings are found, and removed in any order") {
  detail::PrefixTree<BlockHash> tree{1, {}};
  const EntryId root = tree.insert(EntryId::none, {}, "");
  for (int i = 0; i < 1000; ++i) tree.attach(tree.insert(root, std::array{i}, ""), prepared(tree, i));
  tree.check_invariants();
  for (int i = 0; i < 1000; ++i) {
    const int block = i * 379 % 1000;
    REQUIRE(tree.canonical(tree.find(root, std::array{block}, "")) == BlockId{block});
    tree.detach(BlockId{block});
  }
  CHECK(tree.num_entries() == 0);
}
