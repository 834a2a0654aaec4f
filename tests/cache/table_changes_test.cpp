// TableChanges: a copy of a flat table that applies the changes is the table; rows follow their sequences exactly.
#include "pagedkv/cache/table_changes.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cache/sequences.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "support/random.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

std::vector<std::int32_t> entries_of(const BatchTables& tables) {
  const auto* const data = tables.view().block_ids.data;
  return {data, data + std::ptrdiff_t{tables.max_seqs()} * tables.max_blocks_per_seq()};
}

std::vector<std::int64_t> changed_since(const BatchTables& tables, const TableVersion& seen) {
  const auto changed = tables.changes().since(seen);
  REQUIRE(changed);
  return {changed->begin(), changed->end()};
}

/// A copy elsewhere, as a device has one.
class Follower {
 public:
  /// Returns how many entries it took over.
  std::size_t catch_up(const BatchTables& tables) {
    const auto now = entries_of(tables);
    const auto changed = tables.changes().since(seen_);
    if (changed) {
      for (const std::int64_t entry : *changed)
        entries_[static_cast<std::size_t>(entry)] = now[static_cast<std::size_t>(entry)];
    } else {
      entries_ = now;
    }
    seen_ = tables.changes().version();
    REQUIRE(entries_ == now);
    return changed ? changed->size() : now.size();
  }

 private:
  std::vector<std::int32_t> entries_;
  TableVersion seen_;
};

}  // namespace

TEST_CASE("a copy that has seen nothing or another table learns nothing") {
  TableChanges changes{1000}, others{1000};
  CHECK_FALSE(changes.since({}));
  CHECK_FALSE(changes.since(others.version()));
  const TableVersion start = changes.version();
  REQUIRE(changes.since(start));
  CHECK(changes.since(start)->empty());
}

TEST_CASE("changes are listed in order from any version, for as many copies as there are") {
  TableChanges changes{1000};
  std::vector<TableVersion> versions;
  for (std::size_t entry = 0; entry < 5; ++entry) {
    versions.push_back(changes.version());
    changes.add(10 * entry);
  }
  for (std::size_t i = 0; i < 5; ++i) {
    const auto since = changes.since(versions[i]);
    REQUIRE(since);
    REQUIRE(since->size() == 5 - i);
    CHECK(since->front() == static_cast<std::int64_t>(10 * i));
    CHECK(since->back() == 40);
  }
}

TEST_CASE("a log that is full forgets the older half, and says so to whom it concerns") {
  TableChanges changes{64};  // a log of 64 changes
  const TableVersion start = changes.version();
  for (std::size_t i = 0; i < 40; ++i) changes.add(i);
  const TableVersion middle = changes.version();
  for (std::size_t i = 40; i < 64; ++i) changes.add(i);
  REQUIRE(changes.since(start));
  CHECK(changes.since(start)->size() == 64);
  changes.add(7);
  CHECK_FALSE(changes.since(start));
  const auto since = changes.since(middle);
  REQUIRE(since);
  REQUIRE(since->size() == 25);
  CHECK(since->front() == 40);
  CHECK(since->back() == 7);
  for (std::size_t i = 0; i < 1000; ++i) changes.add(i % 64);
  CHECK_FALSE(changes.since(middle));
  CHECK(changes.since(changes.version())->empty());
}

TEST_CASE("a restarted table, a copied one and one that was assigned to are other tables") {
  TableChanges changes{64};
  changes.add(1);
  const TableVersion before = changes.version();
  const TableChanges copy = changes;
  CHECK_FALSE(copy.since(before));
  TableChanges assigned{64};
  const TableVersion was = assigned.version();
  assigned = changes;
  CHECK_FALSE(assigned.since(before));
  CHECK_FALSE(assigned.since(was));
  CHECK(changes.since(before));
  changes.restart();
  CHECK_FALSE(changes.since(before));
  CHECK(changes.since(changes.version())->empty());
}

TEST_CASE("a row that follows its sequence writes what changed and nothing else") {
  BlockAllocator blocks{{.num_blocks = 600, .block_size = 2}};
  constexpr int columns = 5000;  // so that the log holds them all
  BatchTables tables{{.max_seqs = 2, .max_blocks_per_seq = columns, .block_size = 2}};
  Sequence s = committed(blocks, 301), other = committed(blocks, 7);
  tables.add(other, 1);
  const int row = tables.add(s, 1);
  const auto entry = [row](int index) { return std::int64_t{columns * row + index}; };
  TableVersion seen = tables.changes().version();
  const auto changed = [&](const Sequence& sequence) {
    tables.update(row, sequence, 1);
    const auto entries = changed_since(tables, seen);
    seen = tables.changes().version();
    return entries;
  };
  StepPlan step;
  CHECK(changed(s).empty());
  REQUIRE(s.append(1, step));
  CHECK(changed(s).empty());
  REQUIRE(s.append(1, step));
  CHECK(changed(s) == std::vector{entry(151)});
  step.commit();
  s.truncate(300);
  CHECK(changed(s) == std::vector{entry(150), entry(151)});
  s.release_before(5);
  CHECK(changed(s) == std::vector{entry(0), entry(1)});
  REQUIRE(s.append(1, step));
  step.commit();
  changed(s);
  {
    const Sequence fork = s.fork();
    REQUIRE(s.append(1, step));  // copies the tail
    REQUIRE(step.copies().size() == 1);
    CHECK(changed(s) == std::vector{entry(150)});
    step.commit();
  }
  CHECK(changed(s).empty());
  tables.remove(row);
  CHECK(changed_since(tables, seen).size() == 149);  // two of the 151 were none already
}

TEST_CASE("a row that is given to another sequence holds that one's blocks") {
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 1}};
  BatchTables tables{{.max_seqs = 1, .max_blocks_per_seq = 16, .block_size = 1}};
  Sequence a = committed(blocks, 5), b = committed(blocks, 9);
  tables.add(a, 1);
  tables.update(0, b, 1);
  CHECK(tables.view().block_ids(0, 0) == to_index(b.blocks()[0]));
  CHECK(tables.view().block_ids(0, 8) == to_index(b.blocks()[8]));
  a = std::move(b);
  Sequence fork = a.fork();
  StepPlan step;
  REQUIRE(fork.append(1, step));
  tables.update(0, fork, 1);
  CHECK(tables.view().block_ids(0, 9) == to_index(fork.blocks()[9]));
  tables.update(0, a, 1);
  CHECK(tables.view().block_ids(0, 9) == -1);
  step.commit();
  const std::array given{BlockId{60}, BlockId{61}};
  tables.clear();
  tables.add(given, 2, 1);
  tables.remove(0);
  tables.add(a, 1);
  CHECK(tables.view().block_ids(0, 1) == to_index(a.blocks()[1]));
}

TEST_CASE("a row does not take a table of another allocator for the one it knows, even at the same address") {
  std::optional<BlockAllocator> blocks;
  BlockAllocator others{{.num_blocks = 64, .block_size = 1}};
  BatchTables tables{{.max_seqs = 1, .max_blocks_per_seq = 16, .block_size = 1}};
  blocks.emplace(BlockAllocatorOptions{.num_blocks = 64, .block_size = 1});
  {
    const Sequence s = committed(*blocks, 4);
    tables.add(s, 1);
  }
  const auto distance = take(others, 10);
  {
    const Sequence s = committed(others, 4);
    tables.update(0, s, 1);
    CHECK(tables.view().block_ids(0, 0) == 10);
  }
  others.release(distance);
  {
    const Sequence s = committed(*blocks, 4);
    tables.update(0, s, 1);
    CHECK(tables.view().block_ids(0, 0) == to_index(s.blocks()[0]));
  }
  blocks.emplace(BlockAllocatorOptions{.num_blocks = 64, .block_size = 1});
  const auto first = take(*blocks, 20);
  {
    const Sequence s = committed(*blocks, 4);
    tables.update(0, s, 1);
    CHECK(tables.view().block_ids(0, 0) == 20);
  }
  blocks->release(first);
}

TEST_CASE("a batch that is assigned to is made anew by its followers, into the same memory") {
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 1}};
  BatchTables tables{{.max_seqs = 4, .max_blocks_per_seq = 16, .block_size = 1}};
  const Sequence s = committed(blocks, 5);
  tables.add(s, 1);
  const TableVersion seen = tables.changes().version();
  const auto* const memory = tables.view().block_ids.data;
  tables.assign(tables.to_padded());
  CHECK_FALSE(tables.changes().since(seen));
  const TableVersion second = tables.changes().version();
  tables.assign(tables.to_ragged());
  CHECK_FALSE(tables.changes().since(second));
  CHECK(tables.view().block_ids.data == memory);
  tables.update(0, s, 1);
  CHECK(tables.view().block_ids(0, 4) == to_index(s.blocks()[4]));
}

TEST_CASE("rows that follow sequences are the rows written from scratch, and followers of the table are the table") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    const int block_size = random.pick({1, 2, 3});
    constexpr int columns = 150, rows = 6;
    BlockAllocator blocks{{.num_blocks = rows * columns + 20, .block_size = block_size}};
    const BatchTablesOptions options{.max_seqs = rows, .max_blocks_per_seq = columns, .block_size = block_size};
    BatchTables tables{options};
    std::map<int, Sequence> running;  // by row
    Follower eager, lazy;
    StepPlan step;
    for (int i = 0; i < 400; ++i) {
      CAPTURE(i);
      for (int changes = random.between(1, 4); changes > 0; --changes) {
        if (std::ssize(running) < rows && random.one_in(5)) {
          Sequence s{blocks};
          if (!running.empty() && random.one_in(2)) s = running.begin()->second.fork();
          const int row = tables.add(s, 0);
          running.emplace(row, std::move(s));
        }
        if (running.empty()) continue;
        auto chosen = running.begin();
        std::advance(chosen, random.between(0, static_cast<int>(running.size()) - 1));
        Sequence& s = chosen->second;
        const int room = columns * block_size - s.size();
        switch (random.between(0, 7)) {
          case 0:
          case 1:
          case 2:
            static_cast<void>(s.append(min(room, random.pick({1, 1, 2, 7, 100})), step));
            break;
          case 3:
            if (s.size() > 0 && random.one_in(2)) {
              const int end = s.size() - random.between(0, min(s.size(), 6));
              if (end == 0 || s.table()[(end - 1) / block_size] != BlockId::none) s.truncate(end);
            }
            break;
          case 4:
            if (random.one_in(3)) s.release_before(random.between(0, s.num_committed()));
            break;
          case 5:
            s = s.fork();
            break;
          case 6:
            if (random.one_in(4)) {
              tables.remove(chosen->first);
              running.erase(chosen);
            }
            break;
          default:
            step.commit();
        }
      }
      for (const auto& [row, s] : running) {
        if (random.one_in(2)) continue;
        const auto before = entries_of(tables);
        const TableVersion version = tables.changes().version();
        tables.update(row, s, min(s.size(), 1));
        const auto after = entries_of(tables);
        std::set<std::int64_t> different;
        for (std::size_t entry = 0; entry < after.size(); ++entry)
          if (before[entry] != after[entry]) different.insert(static_cast<std::int64_t>(entry));
        if (const auto changed = tables.changes().since(version)) {
          REQUIRE(changed->size() == different.size());
          REQUIRE(std::set(changed->begin(), changed->end()) == different);
        }
      }
      eager.catch_up(tables);
      if (random.one_in(9)) lazy.catch_up(tables);
      for (const auto& [row, s] : running) {
        if (random.one_in(2)) continue;
        tables.update(row, s, min(s.size(), 1));
        BatchTables scratch{options};
        scratch.add(s, min(s.size(), 1));
        const auto* const entries = &tables.view().block_ids(row, 0);
        REQUIRE(std::equal(entries, entries + columns, &scratch.view().block_ids(0, 0)));
        REQUIRE(tables.kv_len(row) == s.size());
      }
    }
    step.commit();
  }
}
