// BlockTable: position -> slot; tables that share chunks are as good as tables of their own.
#include "pagedkv/cache/block_table.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <new>
#include <optional>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache/counted_new.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using pagedkv_test::num_allocations;

static_assert(std::random_access_iterator<BlockIds::Iterator>);
static_assert(!std::is_copy_constructible_v<BlockTable> && !std::is_copy_assignable_v<BlockTable>);
static_assert(std::is_nothrow_move_constructible_v<BlockTable> && std::is_nothrow_move_assignable_v<BlockTable>);

namespace {

void append(BlockTable& table, int num_new) {
  table.prepare(num_new, 0);
  table.append_new(num_new);
}

void truncate(BlockTable& table, int num_kept) {
  table.prepare(0, 1);
  table.truncate(num_kept);
}

std::vector<BlockId> ids_of(const BlockTable& table) { return {table.blocks().begin(), table.blocks().end()}; }

bool starts_with(const BlockTable& table, const std::vector<BlockId>& ids) {
  return table.blocks().size() >= ids.size() && std::equal(ids.begin(), ids.end(), table.blocks().begin());
}

/// A table, and the vector that it must look like.
struct Pair {
  BlockTable table;
  std::vector<BlockId> expected;
  int num_dropped = 0;
};

/// By chunks, which is fast, and a few entries by index.
bool looks_as_expected(const Pair& pair, pagedkv_test::Random& random) {
  const int size = pair.table.num_blocks();
  if (size != std::ssize(pair.expected)) return false;
  bool equal = true;
  int first = size == 0 ? 0 : random.between(0, size);
  for (const auto& [begin, end] : {std::pair{0, first}, std::pair{first, size}}) {
    auto next = pair.expected.begin() + begin;
    pair.table.for_each_chunk(begin, end, [&](std::span<const BlockId> chunk) {
      equal = equal && std::ranges::equal(chunk, std::span(next, chunk.size()));
      next += std::ssize(chunk);
    });
    equal = equal && next == pair.expected.begin() + end;
  }
  for (int i = 0; size > 0 && i < 20; ++i) {
    const int index = random.between(0, size - 1);
    equal = equal && pair.table[index] == pair.expected[static_cast<std::size_t>(index)];
  }
  return equal && (size == 0 || pair.table.back() == pair.expected.back());
}

/// Each block that a table names has an owner for at most each table that names it; no other block has one.
void check_owners(BlockAllocator& blocks, const std::vector<Pair>& pairs) {
  blocks.drain();
  blocks.check_invariants();
  std::vector<int> named(static_cast<std::size_t>(blocks.num_blocks()));
  int num_named = 0;
  for (const Pair& pair : pairs)
    for (const BlockId id : pair.expected)
      if (id != BlockId::none) num_named += ++named[static_cast<std::size_t>(to_index(id))] == 1;
  CHECK(blocks.num_used() == num_named);
  bool all = true;
  for (int i = 0; i < blocks.num_blocks(); ++i) {
    const int owners = blocks.ref_count(BlockId{i}), tables = named[static_cast<std::size_t>(i)];
    all = all && owners <= tables && (owners > 0) == (tables > 0);
  }
  CHECK(all);
}

}  // namespace

TEST_CASE("a position's slot is its block's id times block_size plus its offset") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 3}};
  std::array<BlockId, 8> all{};
  REQUIRE(blocks.allocate(all));
  {
    BlockTable table{blocks};
    table.prepare(2, 0);
    table.append_owned(std::array{all[7], all[2]});
    blocks.release(std::array{all[0], all[1], all[3], all[4], all[5], all[6]});
    CHECK(table.num_blocks() == 2);
    CHECK(table.slot(0) == 21);
    CHECK(table.slot(2) == 23);
    CHECK(table.slot(3) == 6);
    CHECK(table.slot(5) == 8);
  }
  CHECK(blocks.num_free() == 8);
}

TEST_CASE("slots beyond 2^31 do not overflow") {
  constexpr int block_size = std::numeric_limits<int>::max();
  BlockAllocator blocks{{.num_blocks = 8, .block_size = block_size}};
  std::array<BlockId, 7> below{};
  REQUIRE(blocks.allocate(below));
  BlockTable table{blocks};
  append(table, 1);
  CHECK(table.slot(block_size - 1) == 7LL * block_size + block_size - 1);
  blocks.release(below);
}

TEST_CASE("a block that a window dropped has dead slots") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 2}};
  BlockTable table{blocks};
  append(table, 2);
  table.prepare(0, 1);
  table.drop_front(1);
  CHECK(table[0] == BlockId::none);
  CHECK(table.slot(1) == dead_slot);
  CHECK(table.slot(2) == 2);
  CHECK(blocks.num_used() == 1);
}

TEST_CASE("positions outside the table are refused") {
  BlockAllocator blocks{{.num_blocks = 2, .block_size = 4}};
  BlockTable table{blocks};
  append(table, 1);
  CHECK_THROWS_AS(static_cast<void>(table.slot(-1)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(table.slot(4)), InvalidArgument);
  truncate(table, 0);
  CHECK_THROWS_AS(static_cast<void>(table.slot(0)), InvalidArgument);
}

TEST_CASE("the blocks of a table are a random-access range") {
  BlockAllocator blocks{{.num_blocks = 200, .block_size = 1}};
  BlockTable table{blocks};
  CHECK(table.blocks().empty());
  CHECK(table.blocks().begin() == table.blocks().end());
  append(table, 130);
  const BlockIds ids = table.blocks();
  CHECK(ids.size() == 130);
  CHECK(ids.front() == BlockId{0});
  CHECK(ids.back() == BlockId{129});
  CHECK(ids[64] == BlockId{64});
  auto it = ids.begin() + 3;
  CHECK(*it == BlockId{3});
  CHECK(it[100] == BlockId{103});
  CHECK(*it++ == BlockId{3});
  CHECK(*--it == BlockId{3});
  CHECK(ids.end() - it == 127);
  CHECK(it - 3 == ids.begin());
  CHECK(it < ids.end());
  CHECK(*(2 + it) == BlockId{5});
  CHECK(*std::lower_bound(ids.begin(), ids.end(), BlockId{77}) == BlockId{77});
}

TEST_CASE("tables of every height read, share and shrink alike") {
  // The sizes around 64, 64^2 and 64^3, where a tree gets one level more.
  const std::vector sizes{1, 2, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 4161, 262143, 262144, 262145};
  constexpr int num_blocks = 262145;
  BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = 1}};
  pagedkv_test::Random random{1};
  const auto expect = [&random](const BlockTable& table, const std::vector<BlockId>& ids) {
    Pair pair{table.share(), ids};
    CHECK(looks_as_expected(pair, random));
  };
  for (const int size : sizes) {
    CAPTURE(size);
    BlockTable table{blocks};
    if (size % 2 == 0) {
      append(table, size);
    } else {
      for (int i = 0; i < size; i += 997) append(table, min(997, size - i));
    }
    std::vector<BlockId> ids = ids_of(table);
    CHECK(std::unordered_set<BlockId>(ids.begin(), ids.end()).size() == static_cast<std::size_t>(size));
    expect(table, ids);
    for (auto kept = sizes.rbegin(); kept != sizes.rend(); ++kept) {
      if (*kept >= size) continue;
      BlockTable shorter = table.share();
      truncate(shorter, *kept);
      const std::vector head(ids.begin(), ids.begin() + *kept);
      expect(shorter, head);
      expect(table, ids);
      if (*kept % 3 == 0) {  // goes on with a shared past, through the heights
        append(shorter, min(70, num_blocks - size));
        CHECK(starts_with(shorter, head));
      }
    }
    blocks.drain();
    CHECK(blocks.num_used() == size);
    for (const int kept : {size / 2, size / 64, 0}) {  // shrinks in place
      truncate(table, kept);
      ids.resize(static_cast<std::size_t>(kept));
      expect(table, ids);
      blocks.drain();
      CHECK(blocks.num_used() == kept);
    }
    blocks.check_invariants();
  }
  CHECK(blocks.num_free() == num_blocks);
}

TEST_CASE("a share costs no block and no memory, whatever the length, and its first write one path") {
  constexpr int num_blocks = 300'000;
  BlockAllocator blocks{{.num_blocks = num_blocks + 8, .block_size = 1}};
  for (const int size : {1, 64, 4097, num_blocks}) {
    BlockTable table{blocks};
    append(table, size);
    table.prepare(0, 8);
    const int num_free = blocks.num_free();
    const long before = num_allocations;
    {
      BlockTable child = table.share(), grandchild = child.share();
      CHECK(num_allocations == before);
      CHECK(blocks.num_free() == num_free);
      grandchild.prepare(1, 0);
      grandchild.append_new(1);
      CHECK(num_allocations == before);
      CHECK(blocks.num_free() == num_free - 1);
      CHECK(blocks.ref_count(table[0]) == (size < 64 ? 2 : 1));  // the first chunk was copied or is shared
      CHECK(blocks.ref_count(table[size - 1]) == (size % 64 == 0 ? 1 : 2));
    }
    blocks.drain();
    CHECK(blocks.num_free() == num_free);
    CHECK(blocks.ref_count(table[size - 1]) == 1);
    truncate(table, 0);
    blocks.drain();
  }
}

TEST_CASE("the tail is shared until the other table is gone") {
  BlockAllocator blocks{{.num_blocks = 5000, .block_size = 1}};
  for (const int size : {3, 70, 4200}) {
    BlockTable table{blocks};
    append(table, size);
    CHECK_FALSE(table.shares_tail());
    std::optional<BlockTable> other = table.share();
    CHECK(table.shares_tail());
    CHECK(other->shares_tail());
    append(*other, 1);  // copies the path to its tail
    CHECK_FALSE(other->shares_tail());
    CHECK(table.shares_tail() == (size % 64 == 0));
    other.reset();
    blocks.drain();
    CHECK_FALSE(table.shares_tail());
  }
}

TEST_CASE("a moved table is the same table, and what it replaces gives its blocks back") {
  BlockAllocator blocks{{.num_blocks = 300, .block_size = 1}};
  BlockTable a{blocks}, b{blocks};
  append(a, 100);
  append(b, 150);
  const auto ids = ids_of(a);
  const auto id = a.id();
  b = std::move(a);
  CHECK(a.allocator() == nullptr);
  CHECK(a.num_blocks() == 0);
  CHECK(b.id() == id);
  CHECK(ids_of(b) == ids);
  CHECK(blocks.num_used() == 100);
  BlockTable c{std::move(b)};
  append(c, 1);
  CHECK(c.num_blocks() == 101);
  CHECK(starts_with(c, ids));
}

TEST_CASE("each change other than an append is an edit with its range, and no two tables have one number") {
  BlockAllocator blocks{{.num_blocks = 300, .block_size = 1}};
  BlockTable table{blocks};
  append(table, 100);
  append(table, 100);
  CHECK(table.num_edits() == 0);
  truncate(table, 150);
  CHECK(table.num_edits() == 1);
  CHECK(table.last_edit() == std::pair{150, 200});
  table.prepare(0, 1);
  table.drop_front(70);
  CHECK(table.num_edits() == 2);
  CHECK(table.last_edit() == std::pair{0, 70});
  std::array<BlockId, 1> one{};
  REQUIRE(blocks.allocate(one));
  table.prepare(0, 1);
  table.replace(120, one[0]);
  CHECK(table.num_edits() == 3);
  CHECK(table.last_edit() == std::pair{120, 121});
  truncate(table, 150);
  CHECK(table.num_edits() == 3);
  CHECK(table.share().id() != table.id());
  CHECK(table.num_edits() == 3);
  truncate(table, 0);
  CHECK(table.last_edit() == std::pair{0, 150});
}

TEST_CASE(
    "tables that share chunks look like vectors of their own through any operations, which need no more memory "
    "than was prepared") {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    CAPTURE(seed);
    pagedkv_test::Random random{seed};
    const int longest = random.pick({70, 300, 5000, 5000});
    BlockAllocator blocks{{.num_blocks = 6 * longest, .block_size = 1}};
    std::vector<Pair> pairs;
    pairs.reserve(6);
    for (int i = 0; i < 1500; ++i) {
      CAPTURE(i);
      if (pairs.empty() || (std::ssize(pairs) < 5 && random.one_in(12))) {
        if (pairs.empty() || random.one_in(3)) {
          pairs.push_back({BlockTable{blocks}, {}});
        } else {
          const Pair& parent = pairs[static_cast<std::size_t>(random.between(0, static_cast<int>(pairs.size()) - 1))];
          pairs.push_back({parent.table.share(), parent.expected, parent.num_dropped});
        }
      }
      const auto chosen = random.between(0, static_cast<int>(pairs.size()) - 1);
      Pair& pair = pairs[static_cast<std::size_t>(chosen)];
      auto& [table, expected, num_dropped] = pair;
      const int size = table.num_blocks();
      const int room = min(longest - size, blocks.num_available());
      const int operation = random.between(0, 11);
      long before = num_allocations;
      if (operation <= 4 && room > 0) {
        const int count = random.between(1, min(room, random.pick({1, 3, 64, 130, longest})));
        table.prepare(count, 0);
        before = num_allocations;
        table.append_new(count);
        CHECK(num_allocations == before);
        for (int k = size; k < size + count; ++k) {
          REQUIRE(blocks.ref_count(table[k]) == 1);  // nobody else's
          expected.push_back(table[k]);
        }
      } else if (operation == 5 && room > 0) {
        std::vector<BlockId> owned(static_cast<std::size_t>(random.between(1, min(room, 150))));
        REQUIRE(blocks.allocate(owned));
        table.prepare(static_cast<int>(owned.size()), 0);
        before = num_allocations;
        table.append_owned(owned);
        CHECK(num_allocations == before);
        expected.insert(expected.end(), owned.begin(), owned.end());
      } else if (operation <= 7 && size > num_dropped && blocks.num_available() > 0) {
        std::array<BlockId, 1> owned{};
        REQUIRE(blocks.allocate(owned));
        const int index = random.one_in(2) ? size - 1 : random.between(num_dropped, size - 1);
        table.prepare(0, 1);
        before = num_allocations;
        table.replace(index, owned[0]);
        CHECK(num_allocations == before);
        expected[static_cast<std::size_t>(index)] = owned[0];
      } else if (operation <= 9 && size > 0) {
        const int kept = random.one_in(5) ? 0 : max(num_dropped, size - random.between(0, random.pick({2, 70, size})));
        if (kept > 0) table.prepare(0, 1);
        before = num_allocations;
        table.truncate(kept);
        CHECK(num_allocations == before);
        expected.resize(static_cast<std::size_t>(kept));
        num_dropped = min(num_dropped, kept);
      } else if (operation == 10 && size > 0) {
        const int end = random.one_in(4) ? size : min(size, num_dropped + random.between(1, random.pick({2, 70, 700})));
        table.prepare(0, 1);
        before = num_allocations;
        table.drop_front(end);
        CHECK(num_allocations == before);
        std::fill(expected.begin(), expected.begin() + end, BlockId::none);
        num_dropped = end;
      } else if (operation == 11 && random.one_in(3)) {
        pairs.erase(pairs.begin() + chosen);
      }
      for (const Pair& each : pairs) REQUIRE(looks_as_expected(each, random));
      if (i % 50 == 0) check_owners(blocks, pairs);
    }
    check_owners(blocks, pairs);
    pairs.clear();
    blocks.drain();
    CHECK(blocks.num_free() == blocks.num_blocks());
    blocks.check_invariants();
  }
}
