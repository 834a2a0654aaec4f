// BatchTables: rows of block ids and lengths, and the same batch in the two dialects in use elsewhere.
#include "pagedkv/cache/batch_tables.hpp"

#include <doctest/doctest.h>

#include <array>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "cache/sequences.hpp"
#include "pagedkv/cache/step_plan.hpp"

using namespace pagedkv;
using pagedkv_test::committed;

namespace {

constexpr BatchTablesOptions small{.max_seqs = 3, .max_blocks_per_seq = 4, .block_size = 2};

std::vector<int> row_of(const TablesView<Space::host>& view, int row) {
  std::vector<int> ids;
  for (int i = 0; i < view.block_ids.extents[1]; ++i) ids.push_back(view.block_ids(row, i));
  return ids;
}

}  // namespace

TEST_CASE("a sequence's blocks are its row, the rest of the row is invalid") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence a = committed(blocks, 5), b = committed(blocks, 2);
  BatchTables tables{small};
  CHECK(tables.add(a, 5) == 0);
  CHECK(tables.add(b, 1) == 1);
  const auto view = tables.view();
  CHECK(view.num_seqs() == 2);
  CHECK(row_of(view, 0) == std::vector{0, 1, 2, -1});
  CHECK(row_of(view, 1) == std::vector{3, -1, -1, -1});
  CHECK(view.kv_len(0) == 5);
  CHECK(view.kv_len(1) == 2);
  CHECK(view.q_len(0) == 5);
  CHECK(view.q_len(1) == 1);
  CHECK(view.max_kv_len == 5);
  CHECK(view.max_q_len == 5);
  CHECK(tables.num_tokens() == 6);
}

TEST_CASE("a shorter sequence in the row of a longer one leaves nothing of it behind") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence s = committed(blocks, 8);
  BatchTables tables{small};
  tables.add(s, 8);
  s.truncate(3);
  tables.update(0, s, 1);
  CHECK(row_of(tables.view(), 0) == std::vector{0, 1, -1, -1});
  tables.clear();
  tables.add(s, 0);
  CHECK(row_of(tables.view(), 0) == std::vector{0, 1, -1, -1});
  CHECK(tables.num_tokens() == 0);
}

TEST_CASE("a sequence keeps its row while others come and go") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence a = committed(blocks, 2), b = committed(blocks, 3), c = committed(blocks, 4);
  BatchTables tables{small};
  tables.add(a, 2);
  tables.add(b, 1);
  tables.add(c, 4);
  tables.remove(1);
  CHECK(tables.num_seqs() == 3);
  CHECK(tables.kv_len(1) == 0);
  CHECK(tables.q_len(1) == 0);
  CHECK(tables.view().query_begin(2) == 2);
  CHECK(tables.q_len(2) == 4);
  CHECK(tables.add(b, 2) == 1);
  CHECK(tables.view().query_begin(2) == 4);
  CHECK(tables.num_tokens() == 8);
  tables.update(0, a, 1);
  CHECK(tables.view().query_begin(3) == 7);
}

TEST_CASE("the view for a captured graph has all rows, stays where it is, and its unused rows are empty") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence a = committed(blocks, 3);
  BatchTables tables{small};
  tables.add(a, 1);
  const auto view = tables.capacity_view(4, 8);
  CHECK(view.num_seqs() == 3);
  CHECK(view.max_q_len == 4);
  CHECK(view.max_kv_len == 8);
  CHECK(view.kv_len(1) == 0);
  CHECK(view.q_len(2) == 0);
  CHECK(view.query_begin(3) == 1);
  tables.add(a, 2);
  CHECK(tables.capacity_view(4, 8).block_ids.data == view.block_ids.data);
  CHECK(view.kv_len(1) == 3);
  CHECK_THROWS_AS(static_cast<void>(tables.capacity_view(1, 8)), InvalidArgument);
  CHECK_THROWS_AS(static_cast<void>(tables.capacity_view(4, 2)), InvalidArgument);
}

TEST_CASE("a table is wide enough for the longest sequence, and one token more is refused") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  BatchTables tables{small};
  const Sequence longest = committed(blocks, 8);
  tables.add(longest, 8);
  CHECK(row_of(tables.view(), 0) == std::vector{0, 1, 2, 3});
  const Sequence longer = committed(blocks, 1);
  std::vector<BlockId> five(longest.blocks().begin(), longest.blocks().end());
  five.push_back(longer.blocks()[0]);
  CHECK_THROWS_AS(tables.add(five, 9, 1), InvalidArgument);
  CHECK(tables.num_seqs() == 1);
}

TEST_CASE("rows that do not fit or do not make sense are refused before any change") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}}, others{{.num_blocks = 8, .block_size = 4}};
  const Sequence a = committed(blocks, 2), foreign = committed(others, 2);
  BatchTables tables{small};
  CHECK_THROWS_AS(tables.add(a, 3), InvalidArgument);
  CHECK_THROWS_AS(tables.add(a, -1), InvalidArgument);
  CHECK_THROWS_AS(tables.add(foreign, 1), InvalidArgument);
  CHECK_THROWS_AS(tables.add(std::vector<BlockId>{a.blocks().begin(), a.blocks().end()}, 3, 1), InvalidArgument);
  CHECK_THROWS_AS(tables.update(0, a, 1), InvalidArgument);
  CHECK_THROWS_AS(tables.remove(0), InvalidArgument);
  CHECK(tables.num_seqs() == 0);
  for (int i = 0; i < 3; ++i) tables.add(a, 1);
  CHECK_THROWS_AS(tables.add(a, 1), InvalidArgument);
  CHECK(tables.num_tokens() == 3);
  CHECK_THROWS_AS((BatchTables{{.max_seqs = 0, .max_blocks_per_seq = 1, .block_size = 1}}), InvalidArgument);
}

TEST_CASE("a sequence that was moved from has no row, and nothing changes") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  Sequence a = committed(blocks, 2);
  BatchTables tables{small};
  tables.add(a, 1);
  const Sequence b = std::move(a);
  CHECK_THROWS_AS(tables.add(a, 0), InvalidArgument);
  CHECK_THROWS_AS(tables.update(0, a, 0), InvalidArgument);
  CHECK(tables.num_seqs() == 1);
  CHECK(tables.kv_len(0) == 2);
  tables.update(0, b, 2);
  CHECK(tables.q_len(0) == 2);
}

TEST_CASE("lengths whose sums pass 2^31 are refused before any change") {
  constexpr int most = std::numeric_limits<int>::max();
  BatchTables tables{{.max_seqs = 2, .max_blocks_per_seq = 3, .block_size = most}};
  const std::array ids{BlockId{0}};
  tables.add(ids, most, most);
  CHECK_THROWS_AS(tables.add(ids, 1, 1), InvalidArgument);
  CHECK(tables.num_seqs() == 1);
  CHECK(tables.num_tokens() == most);
  const RaggedTables three_blocks{
      .q_begin = {0, 1}, .kv_begin = {0, 3}, .kv_block_ids = {0, 1, 2}, .last_block_len = {5}};
  CHECK_THROWS_AS(tables.assign(three_blocks), InvalidArgument);
  CHECK(tables.kv_len(0) == most);
}

TEST_CASE("vLLM's dialect: padded tables, context lengths, the slot of each query") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence a = committed(blocks, 5), b = committed(blocks, 2);
  BatchTables tables{small};
  tables.add(a, 2);
  tables.add(b, 1);
  const PaddedTables padded = tables.to_padded();
  CHECK(padded.block_tables == std::vector{0, 1, 2, -1, 3, -1, -1, -1});
  CHECK(padded.context_lens == std::vector{5, 2});
  CHECK(padded.query_begin == std::vector{0, 2, 3});
  CHECK(padded.slot_mapping == std::vector<Slot>{3, 4, 7});
}

TEST_CASE("FlashInfer's dialect: ids one behind the other, offsets, rows of the last block") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 2}};
  const Sequence a = committed(blocks, 5), empty{blocks}, b = committed(blocks, 2);
  BatchTables tables{small};
  tables.add(a, 2);
  tables.add(empty, 0);
  tables.add(b, 1);
  const RaggedTables ragged = tables.to_ragged();
  CHECK(ragged.q_begin == std::vector{0, 2, 2, 3});
  CHECK(ragged.kv_begin == std::vector{0, 3, 3, 4});
  CHECK(ragged.kv_block_ids == std::vector{0, 1, 2, 3});
  CHECK(ragged.last_block_len == std::vector{1, 0, 2});
}

TEST_CASE("any batch comes back from either dialect as it was") {
  std::mt19937 random{3};
  for (int round = 0; round < 200; ++round) {
    const int block_size = 1 + static_cast<int>(random() % 7);
    BlockAllocator blocks{{.num_blocks = 64, .block_size = block_size}};
    const BatchTablesOptions options{.max_seqs = 6, .max_blocks_per_seq = 9, .block_size = block_size};
    BatchTables tables{options}, from_padded{options}, from_ragged{options};
    std::vector<Sequence> sequences;
    for (int i = static_cast<int>(random() % 7); i > 0; --i) {
      sequences.push_back(committed(blocks, static_cast<int>(random() % (9 * static_cast<unsigned>(block_size) + 1))));
      tables.add(sequences.back(), static_cast<int>(random() % static_cast<unsigned>(sequences.back().size() + 1)));
    }
    from_padded.assign(tables.to_padded());
    from_ragged.assign(tables.to_ragged());
    for (const BatchTables* other : {&from_padded, &from_ragged}) {
      REQUIRE(other->num_seqs() == tables.num_seqs());
      for (int row = 0; row < tables.num_seqs(); ++row) {
        REQUIRE(row_of(other->view(), row) == row_of(tables.view(), row));
        REQUIRE(other->kv_len(row) == tables.kv_len(row));
        REQUIRE(other->q_len(row) == tables.q_len(row));
      }
    }
  }
}

TEST_CASE("a batch in a foreign dialect that contradicts itself is refused before any change") {
  BatchTables tables{small};
  const PaddedTables padded{.block_tables = {0, 1, -1, -1},
                            .context_lens = {3},
                            .query_begin = {0, 1},
                            .slot_mapping = {2},
                            .max_blocks_per_seq = 4};
  tables.assign(padded);
  const auto wrong = [&tables](PaddedTables in, auto&& change) {
    change(in);
    CHECK_THROWS_AS(tables.assign(in), InvalidArgument);
    CHECK(tables.kv_len(0) == 3);
    CHECK(row_of(tables.view(), 0) == std::vector{0, 1, -1, -1});
  };
  wrong(padded, [](PaddedTables& in) { in.slot_mapping = {3}; });
  wrong(padded, [](PaddedTables& in) { in.context_lens = {9}; });
  wrong(padded, [](PaddedTables& in) { in.query_begin = {0, 4}; });
  wrong(padded, [](PaddedTables& in) { in.query_begin = {0}; });
  wrong(padded, [](PaddedTables& in) { in.block_tables.pop_back(); });
  const RaggedTables ragged{.q_begin = {0, 1}, .kv_begin = {0, 2}, .kv_block_ids = {0, 1}, .last_block_len = {1}};
  const std::int32_t* const memory = tables.view().block_ids.data;
  tables.assign(ragged);
  CHECK(tables.view().block_ids.data == memory);
  const auto wrong_ragged = [&tables](RaggedTables in, auto&& change) {
    change(in);
    CHECK_THROWS_AS(tables.assign(in), InvalidArgument);
    CHECK(tables.kv_len(0) == 3);
    CHECK(row_of(tables.view(), 0) == std::vector{0, 1, -1, -1});
  };
  wrong_ragged(ragged, [](RaggedTables& in) { in.last_block_len = {3}; });
  wrong_ragged(ragged, [](RaggedTables& in) { in.last_block_len = {0}; });
  wrong_ragged(ragged, [](RaggedTables& in) { in.kv_begin = {0, 3}; });
  wrong_ragged(ragged, [](RaggedTables& in) { in.kv_begin = {1, 2}; });
  wrong_ragged(ragged, [](RaggedTables& in) { in.q_begin = {0, -1}; });
}
