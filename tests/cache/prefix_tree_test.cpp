// PrefixTree: entries are found by parent, tokens and extra bytes, all of them, and go with their last block.
#include "pagedkv/cache/prefix_tree.hpp"

#include <doctest/doctest.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "cache/tokens.hpp"
#include "support/assert.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using detail::EntryId;

namespace {

struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t>, std::string_view) const { return 1; }
};

struct ByteHash {
  std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return BlockHash{}(parent, tokens, extra) & 0xff;
  }
};

constexpr std::array<std::int32_t, 2> ab{1, 2}, ac{1, 3};

/// A tree that makes room and hashes by itself.
template <class Hash>
struct Tree : detail::PrefixTree<Hash> {
  using detail::PrefixTree<Hash>::PrefixTree;

  std::uint64_t hash(EntryId parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return this->hash_of(parent == EntryId::none ? this->root_seed() : this->hash_of(parent), tokens, extra);
  }
  EntryId get(EntryId parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return this->find(parent, hash(parent, tokens, extra), tokens, extra);
  }
  EntryId add(EntryId parent, std::span<const std::int32_t> tokens, std::string extra) {
    this->prepare(1, 1);
    const std::uint64_t h = hash(parent, tokens, extra);
    return this->insert(parent, h, tokens, std::move(extra));
  }
};

}  // namespace

TEST_CASE_TEMPLATE("parent, tokens and extra bytes decide, not the hash", Hash, BlockHash, ByteHash, ConstantHash) {
  Tree<Hash> tree{8, 2, Hash{}};
  const EntryId root = tree.add(EntryId::none, {}, "scope");
  const EntryId first = tree.add(root, ab, "");
  tree.attach(first, BlockId{0});
  const EntryId second = tree.add(first, ab, "");
  tree.attach(second, BlockId{1});
  const EntryId sibling = tree.add(root, ab, "image");
  tree.attach(sibling, BlockId{2});
  CHECK(tree.find_root("scope") == root);
  CHECK(tree.find_root("other") == EntryId::none);
  CHECK(tree.get(root, ab, "") == first);
  CHECK(tree.get(first, ab, "") == second);
  CHECK(tree.get(second, ab, "") == EntryId::none);
  CHECK(tree.get(root, ab, "image") == sibling);
  CHECK(tree.get(root, ac, "") == EntryId::none);
  tree.check_invariants();
}

TEST_CASE("the oldest copy is canonical; when it goes, another one takes its place") {
  Tree<BlockHash> tree{8, 2, BlockHash{}};
  const EntryId entry = tree.add(tree.add(EntryId::none, {}, ""), ab, "");
  for (const int block : {5, 3, 4}) tree.attach(entry, BlockId{block});
  CHECK(tree.canonical(entry) == BlockId{5});
  CHECK(tree.has_duplicates(entry));
  tree.check_invariants();
  CHECK_FALSE(tree.detach(BlockId{5}));
  CHECK(tree.canonical(entry) == BlockId{4});
  CHECK_FALSE(tree.detach(BlockId{3}));
  CHECK_FALSE(tree.has_duplicates(entry));
  CHECK(tree.detach(BlockId{4}));
  CHECK(tree.num_entries() == 0);
}

TEST_CASE("an entry with continuations keeps its last block") {
  Tree<BlockHash> tree{8, 2, BlockHash{}};
  const EntryId first = tree.add(tree.add(EntryId::none, {}, ""), ab, "");
  tree.attach(first, BlockId{0});
  tree.attach(tree.add(first, ac, ""), BlockId{1});
  CHECK_THROWS_AS(tree.detach(BlockId{0}), pagedkv_test::AssertionFailed);
}

TEST_CASE_TEMPLATE("after a new epoch nothing is found, and what was there goes with its blocks", Hash, BlockHash,
                   ConstantHash) {
  Tree<Hash> tree{8, 2, Hash{}};
  const EntryId old_root = tree.add(EntryId::none, {}, "scope");
  const EntryId old = tree.add(old_root, ab, "");
  tree.attach(old, BlockId{0});
  tree.start_epoch();
  CHECK(tree.find_root("scope") == EntryId::none);
  CHECK_FALSE(tree.is_current(old));
  const EntryId root = tree.add(EntryId::none, {}, "scope");
  CHECK(tree.get(root, ab, "") == EntryId::none);
  const EntryId entry = tree.add(root, ab, "");
  tree.attach(entry, BlockId{1});
  tree.check_invariants();
  CHECK(tree.detach(BlockId{0}));
  CHECK(tree.num_entries() == 2);
  CHECK(tree.find_root("scope") == root);
  CHECK(tree.get(root, ab, "") == entry);
}

TEST_CASE("an id that is used again has another generation") {
  Tree<BlockHash> tree{8, 2, BlockHash{}};
  const EntryId root = tree.add(EntryId::none, {}, "");
  tree.attach(tree.add(root, ac, ""), BlockId{7});
  const EntryId entry = tree.add(root, ab, "");
  tree.attach(entry, BlockId{0});
  const std::uint32_t generation = tree.generation(entry);
  tree.detach(BlockId{0});
  const EntryId again = tree.add(root, ab, "");
  tree.attach(again, BlockId{0});
  CHECK(again == entry);
  CHECK(tree.generation(again) != generation);
}

TEST_CASE_TEMPLATE("a prompt is matched as far as its blocks go", Hash, BlockHash, ByteHash, ConstantHash) {
  constexpr int num_blocks = 200;
  Tree<Hash> tree{num_blocks, 2, Hash{}};
  const Tokens tokens = iota(2 * num_blocks);
  const EntryId root = tree.add(EntryId::none, {}, "");
  EntryId last = root;
  for (int i = 0; i < num_blocks; ++i) {
    last = tree.add(last, std::span(tokens).subspan(2 * static_cast<std::size_t>(i), 2), "");
    tree.attach(last, BlockId{i});
  }
  for (const int count : {0, 1, 2, 63, 64, 65, 128, 199, 200}) {
    for (const bool diverges : {false, true}) {
      Tokens prompt = iota(2 * count + (diverges ? 4 : 1));
      if (diverges) prompt[2 * static_cast<std::size_t>(count) + 1] = -1;
      std::vector<EntryId> hits;
      tree.match(root, prompt, hits);
      REQUIRE(std::ssize(hits) == count);
      for (int i = 0; i < count; ++i) REQUIRE(tree.canonical(hits[static_cast<std::size_t>(i)]) == BlockId{i});
    }
  }
}

TEST_CASE_TEMPLATE("entries that come and go in any order are found exactly while they are there", Hash, BlockHash,
                   ByteHash, ConstantHash) {
  constexpr int num_blocks = 300;
  Tree<Hash> tree{num_blocks, 1, Hash{}};
  const EntryId root = tree.add(EntryId::none, {}, "");
  tree.attach(tree.add(root, std::array{-1}, ""), BlockId{num_blocks - 1});  // keeps the root
  pagedkv_test::Random random{7};
  std::map<int, EntryId> there;
  for (int step = 0; step < 5000; ++step) {
    const int key = random.between(0, num_blocks - 2);
    const std::string extra(static_cast<std::size_t>(key % 3 == 0 ? 20 : 0), 'x');
    const auto found = there.find(key);
    REQUIRE(tree.get(root, std::array{key}, extra) == (found == there.end() ? EntryId::none : found->second));
    if (found == there.end()) {
      const EntryId entry = tree.add(root, std::array{key}, extra);
      tree.attach(entry, BlockId{key});
      there.emplace(key, entry);
    } else {
      tree.detach(BlockId{key});
      there.erase(found);
    }
    if (step % 500 == 0) tree.check_invariants();
  }
}

TEST_CASE("the state hash knows tokens, order and copies, but no ids of entries") {
  const auto build = [](std::initializer_list<int> order, std::initializer_list<int> detours) {
    Tree<BlockHash> tree{16, 1, BlockHash{}};
    const EntryId root = tree.add(EntryId::none, {}, "scope");
    tree.attach(tree.add(root, std::array{99}, ""), BlockId{15});
    for (const int i : detours) tree.attach(tree.add(root, std::array{50 + i}, ""), BlockId{i});
    for (const int i : detours) tree.detach(BlockId{i});
    for (const int i : order) tree.attach(tree.add(root, std::array{i}, ""), BlockId{i});
    return tree.state_hash();
  };
  CHECK(build({1, 2, 3}, {}) == build({1, 2, 3}, {4, 5, 6}));
  CHECK(build({1, 2, 3}, {}) != build({1, 3, 2}, {}));
  CHECK(build({1, 2, 3}, {}) != build({1, 2}, {}));
}
