// BatchTables: the block ids and lengths of a batch, flat, as a TablesView; also in the two dialects in use elsewhere.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/table_changes.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"

namespace pagedkv {
inline namespace v0 {

struct BatchTablesOptions {
  int max_seqs;            // rows
  int max_blocks_per_seq;  // columns
  int block_size;
};

/// The dialect of vLLM. Unused ids are -1.
struct PaddedTables {
  std::vector<std::int32_t> block_tables;  // [num_seqs, max_blocks_per_seq]
  std::vector<std::int32_t> context_lens;  // [num_seqs], keys, this step's included
  std::vector<std::int32_t> query_begin;   // [num_seqs + 1]
  std::vector<Slot> slot_mapping;          // [num_tokens], the slot of each query's own key
  int max_blocks_per_seq = 0;
};

/// The dialect of FlashInfer: rows of different lengths, one behind the other (CSR).
struct RaggedTables {
  std::vector<std::int32_t> q_begin;         // [num_seqs + 1]
  std::vector<std::int32_t> kv_begin;        // [num_seqs + 1], into kv_block_ids
  std::vector<std::int32_t> kv_block_ids;    // [kv_begin[num_seqs]]
  std::vector<std::int32_t> last_block_len;  // [num_seqs], rows used in the last block, 1 .. block_size; 0 if no block
};

/// A batch on the host. Each sequence keeps its row until remove(); queries are ordered by row. The memory is allocated
/// once, so the addresses in view() stay the same. A row that follows one sequence is written where the sequence has
/// changed, and changes() tells a copy elsewhere which entries those were.
class BatchTables {
 public:
  explicit BatchTables(const BatchTablesOptions& options) : options_(options) {
    require(options.max_seqs >= 1, "BatchTables: max_seqs", "at least 1", options.max_seqs);
    require(options.max_blocks_per_seq >= 1, "BatchTables: max_blocks_per_seq", "at least 1",
            options.max_blocks_per_seq);
    require(options.block_size >= 1, "BatchTables: block_size", "at least 1", options.block_size);
    const auto rows = static_cast<std::size_t>(options.max_seqs);
    block_ids_.assign(rows * static_cast<std::size_t>(options.max_blocks_per_seq), unused);
    kv_len_.assign(rows, 0);
    query_begin_.assign(rows + 1, 0);
    is_free_.assign(rows, 0);
    followed_.resize(rows);
    changes_ = TableChanges{rows * static_cast<std::size_t>(options.max_blocks_per_seq)};
  }

  int max_seqs() const { return options_.max_seqs; }
  int max_blocks_per_seq() const { return options_.max_blocks_per_seq; }
  int block_size() const { return options_.block_size; }

  /// Rows in use, removed ones in between included.
  int num_seqs() const { return num_rows_; }

  /// Queries of all rows.
  int num_tokens() const { return query_begin_[static_cast<std::size_t>(num_rows_)]; }

  int kv_len(int row) const { return kv_len_[checked(row)]; }
  int q_len(int row) const { return query_begin_[checked(row) + 1] - query_begin_[checked(row)]; }

  /// Gives the sequence a row (a removed one if there is one, else the next) and returns it: all its tokens are keys,
  /// the last `q_len` of them are queries. O(blocks), and O(rows behind it) where a removed row is used again.
  int add(const Sequence& sequence, int q_len) {
    require_block_size(sequence);
    const int row = claim_row(sequence.table().num_blocks(), sequence.size(), q_len);
    follow(row, sequence, q_len);
    return row;
  }

  /// The same for blocks from elsewhere; `blocks` are at least ceil(kv_len / block_size).
  int add(std::span<const BlockId> blocks, int kv_len, int q_len) {
    const int row = claim_row(std::ssize(blocks), kv_len, q_len);
    write_row(row, blocks, kv_len, q_len);
    return row;
  }

  /// Brings a row up to date after the sequence has changed: O(changed blocks) where it has followed the same sequence
  /// through at most one copy-on-write, truncation or window since, else O(blocks); O(rows behind it) if q_len changes.
  void update(int row, const Sequence& sequence, int q_len) {
    require_block_size(sequence);
    require(is_free_[checked(row)] == 0, "BatchTables::update: row", "in use", "removed");
    check_row(sequence.table().num_blocks(), sequence.size(), q_len, this->q_len(row));
    follow(row, sequence, q_len);
  }

  /// Empties a row: no keys, no queries; the rows behind it keep their place.
  void remove(int row) {
    require(is_free_[checked(row)] == 0, "BatchTables::remove: row", "in use", "removed");
    write_row(row, {}, 0, 0);
    is_free_[static_cast<std::size_t>(row)] = 1;
  }

  void clear() {
    for (int row = 0; row < num_rows_; ++row) write_row(row, {}, 0, 0);
    std::fill(is_free_.begin(), is_free_.end(), std::uint8_t{0});
    num_rows_ = 0;
  }

  /// The rows in use; the maxima are those of the rows.
  TablesView<Space::host> view() const {
    std::int32_t max_q_len = 0, max_kv_len = 0;
    for (int row = 0; row < num_rows_; ++row) {
      max_q_len = max(max_q_len, q_len(row));
      max_kv_len = max(max_kv_len, kv_len(row));
    }
    return make_view(num_rows_, max_q_len, max_kv_len);
  }

  /// Which entries of the table have changed, for copies that follow it.
  const TableChanges& changes() const { return changes_; }

  /// All max_seqs rows, those not in use with no keys and no queries, and the bounds that the caller promises to keep:
  /// what a CUDA graph is captured with.
  TablesView<Space::host> capacity_view(int max_q_len, int max_kv_len) const {
    for (int row = 0; row < num_rows_; ++row) {
      require(q_len(row) <= max_q_len, "BatchTables::capacity_view: q_len at most", max_q_len, q_len(row));
      require(kv_len(row) <= max_kv_len, "BatchTables::capacity_view: kv_len at most", max_kv_len, kv_len(row));
    }
    return make_view(options_.max_seqs, max_q_len, max_kv_len);
  }

  PaddedTables to_padded() const {
    PaddedTables out;
    const auto rows = static_cast<std::ptrdiff_t>(num_rows_);
    out.max_blocks_per_seq = options_.max_blocks_per_seq;
    out.block_tables.assign(block_ids_.begin(), block_ids_.begin() + rows * options_.max_blocks_per_seq);
    out.context_lens.assign(kv_len_.begin(), kv_len_.begin() + rows);
    out.query_begin.assign(query_begin_.begin(), query_begin_.begin() + rows + 1);
    for (int row = 0; row < num_rows_; ++row)
      for (int i = 0; i < q_len(row); ++i) out.slot_mapping.push_back(slot(row, kv_len(row) - q_len(row) + i));
    return out;
  }

  RaggedTables to_ragged() const {
    RaggedTables out;
    out.q_begin.assign(query_begin_.begin(), query_begin_.begin() + num_rows_ + 1);
    out.kv_begin.push_back(0);
    for (int row = 0; row < num_rows_; ++row) {
      const int num_blocks = ceil_div(kv_len(row), options_.block_size);
      const auto ids = block_ids_.begin() + row_begin(row);
      out.kv_block_ids.insert(out.kv_block_ids.end(), ids, ids + num_blocks);
      out.kv_begin.push_back(static_cast<std::int32_t>(out.kv_block_ids.size()));
      out.last_block_len.push_back(kv_len(row) - max(num_blocks - 1, 0) * options_.block_size);
    }
    return out;
  }

  /// Replaces the batch. `slot_mapping` may be empty; if it is not, it must say what the tables say.
  void assign(const PaddedTables& in) {
    const int num_seqs = static_cast<int>(in.context_lens.size());
    const std::ptrdiff_t columns = in.max_blocks_per_seq;
    require(std::ssize(in.block_tables) == num_seqs * columns, "PaddedTables: block_tables", num_seqs * columns,
            std::ssize(in.block_tables));
    check_begin("PaddedTables: query_begin", in.query_begin, num_seqs);
    BatchTables next{options_};
    for (int row = 0; row < num_seqs; ++row)
      next.add_row(std::span(in.block_tables)
                       .subspan(static_cast<std::size_t>(row * columns), static_cast<std::size_t>(columns)),
                   in.context_lens[static_cast<std::size_t>(row)], length(in.query_begin, row));
    require(in.slot_mapping.empty() || in.slot_mapping == next.to_padded().slot_mapping, "PaddedTables: slot_mapping",
            "the slots of block_tables", "others");
    replace_by(next);
  }

  /// Replaces the batch.
  void assign(const RaggedTables& in) {
    const int num_seqs = static_cast<int>(in.last_block_len.size());
    check_begin("RaggedTables: q_begin", in.q_begin, num_seqs);
    check_begin("RaggedTables: kv_begin", in.kv_begin, num_seqs);
    require(std::ssize(in.kv_block_ids) == in.kv_begin.back(), "RaggedTables: kv_block_ids", in.kv_begin.back(),
            std::ssize(in.kv_block_ids));
    BatchTables next{options_};
    for (int row = 0; row < num_seqs; ++row) {
      const int num_blocks = length(in.kv_begin, row);
      const int last = in.last_block_len[static_cast<std::size_t>(row)];
      require(num_blocks == 0 ? last == 0 : last >= 1 && last <= options_.block_size, "RaggedTables: last_block_len",
              num_blocks == 0 ? "0" : "1 .. block_size", last);
      const auto first = static_cast<std::size_t>(in.kv_begin[static_cast<std::size_t>(row)]);
      const std::int64_t kv_len = std::int64_t{max(num_blocks - 1, 0)} * options_.block_size + last;
      require(kv_len <= std::numeric_limits<int>::max(), "RaggedTables: keys of one sequence", "below 2^31", kv_len);
      next.add_row(std::span(in.kv_block_ids).subspan(first, static_cast<std::size_t>(num_blocks)),
                   static_cast<int>(kv_len), length(in.q_begin, row));
    }
    replace_by(next);
  }

 private:
  static constexpr std::int32_t unused = -1;

  std::size_t checked(int row) const {
    require(row >= 0 && row < num_rows_, "BatchTables: row below", num_rows_, row);
    return static_cast<std::size_t>(row);
  }

  // Of the sequence that a row was written from last: what its table looked like then.
  struct Followed {
    std::uint64_t allocator = 0;
    std::uint64_t table = 0;
    std::uint64_t num_edits = 0;
  };

  int claim_row(std::ptrdiff_t num_blocks, int kv_len, int q_len) {
    check_row(num_blocks, kv_len, q_len, 0);
    const auto removed = std::find(is_free_.begin(), is_free_.begin() + num_rows_, 1);
    const int row = static_cast<int>(removed - is_free_.begin());
    require(row < options_.max_seqs, "BatchTables::add: sequences at most", options_.max_seqs, row + 1);
    if (row == num_rows_) {
      query_begin_[static_cast<std::size_t>(row) + 1] = num_tokens();
      ++num_rows_;
    }
    is_free_[static_cast<std::size_t>(row)] = 0;
    return row;
  }

  void follow(int row, const Sequence& sequence, int q_len) {
    const BlockTable& table = sequence.table();
    const Followed now{table.allocator()->id(), table.id(), table.num_edits()};
    Followed& before = followed_[static_cast<std::size_t>(row)];
    const int num_blocks = table.num_blocks(), num_before = ceil_div(kv_len(row), options_.block_size);
    int begin = 0, end = num_blocks;  // the old entries to be read again
    if (before.allocator == now.allocator && before.table == now.table && now.num_edits - before.num_edits <= 1) {
      begin = end = min(num_before, num_blocks);
      if (now.num_edits != before.num_edits) begin = min(begin, table.last_edit().first);
      if (now.num_edits != before.num_edits) end = min(end, table.last_edit().second);
    }
    const auto copy = [&](int first, int last) {
      table.for_each_chunk(first, last, [&](std::span<const BlockId> chunk) {
        write_entries(row, first, chunk);
        first += static_cast<int>(chunk.size());
      });
    };
    copy(begin, end);
    copy(max(end, num_before), num_blocks);
    erase_entries(row, num_blocks, num_before);
    write_lengths(row, sequence.size(), q_len);
    before = now;
  }

  void require_block_size(const Sequence& sequence) const {
    require(sequence.table().allocator() != nullptr, "BatchTables: sequence", "with an allocator", "moved from");
    require(sequence.table().block_size() == options_.block_size, "BatchTables: sequence's block_size",
            options_.block_size, sequence.table().block_size());
  }

  void check_row(std::ptrdiff_t num_given, int kv_len, int q_len, int q_len_before) const {
    require(kv_len >= 0, "BatchTables: kv_len", "at least 0", kv_len);
    require(q_len >= 0 && q_len <= kv_len, "BatchTables: q_len at most kv_len", kv_len, q_len);
    const std::int64_t num_queries = std::int64_t{num_tokens()} - q_len_before + q_len;
    require(num_queries <= std::numeric_limits<int>::max(), "BatchTables: queries of all rows", "below 2^31",
            num_queries);
    const int num_blocks = ceil_div(kv_len, options_.block_size);
    require(num_blocks <= options_.max_blocks_per_seq, "BatchTables: blocks of one sequence at most",
            options_.max_blocks_per_seq, num_blocks);
    require(num_blocks <= num_given, "BatchTables: blocks at least", num_blocks, num_given);
  }

  std::ptrdiff_t row_begin(int row) const { return static_cast<std::ptrdiff_t>(row) * options_.max_blocks_per_seq; }

  Slot slot(int row, int position) const {
    const auto entry = row_begin(row) + position / options_.block_size;
    const std::int32_t block = block_ids_[static_cast<std::size_t>(entry)];
    return block < 0 ? dead_slot : static_cast<Slot>(block) * options_.block_size + position % options_.block_size;
  }

  void write_row(int row, std::span<const BlockId> blocks, int kv_len, int q_len) {
    const int num_blocks = ceil_div(kv_len, options_.block_size);
    write_entries(row, 0, blocks.first(static_cast<std::size_t>(num_blocks)));
    erase_entries(row, num_blocks, ceil_div(this->kv_len(row), options_.block_size));
    write_lengths(row, kv_len, q_len);
    followed_[static_cast<std::size_t>(row)] = {};
  }

  void write_entries(int row, int first, std::span<const BlockId> blocks) {
    auto entry = static_cast<std::size_t>(row_begin(row) + first);
    for (const BlockId block : blocks) write_entry(entry++, to_index(block));
  }

  // No id of a longer sequence stays behind.
  void erase_entries(int row, int first, int last) {
    for (int i = first; i < last; ++i) write_entry(static_cast<std::size_t>(row_begin(row) + i), unused);
  }

  void write_entry(std::size_t entry, std::int32_t id) {
    if (block_ids_[entry] == id) return;
    block_ids_[entry] = id;
    changes_.add(entry);
  }

  void write_lengths(int row, int kv_len, int q_len) {
    const auto index = static_cast<std::size_t>(row);
    kv_len_[index] = kv_len;
    const int change = q_len - (query_begin_[index + 1] - query_begin_[index]);
    if (change == 0) return;
    for (auto i = index + 1; i <= static_cast<std::size_t>(options_.max_seqs); ++i) query_begin_[i] += change;
  }

  // Into the same memory; a copy elsewhere must be made anew.
  void replace_by(const BatchTables& next) {
    *this = next;
    changes_.restart();
  }

  void add_row(std::span<const std::int32_t> ids, int kv_len, int q_len) {
    std::vector<BlockId> blocks;
    for (const std::int32_t id : ids) blocks.push_back(BlockId{id});
    add(blocks, kv_len, q_len);
  }

  static int length(const std::vector<std::int32_t>& begin, int row) {
    return begin[static_cast<std::size_t>(row) + 1] - begin[static_cast<std::size_t>(row)];
  }

  static void check_begin(const char* name, const std::vector<std::int32_t>& begin, int num_seqs) {
    require(std::ssize(begin) == num_seqs + 1, name, num_seqs + 1, std::ssize(begin));
    require(begin.front() == 0, name, "0 first", begin.front());
    require(std::ranges::is_sorted(begin), name, "ascending offsets", "others");
  }

  TablesView<Space::host> make_view(int num_rows, std::int32_t max_q_len, std::int32_t max_kv_len) const {
    return {.block_ids = dense_view(block_ids_.data(), {num_rows, options_.max_blocks_per_seq}),
            .kv_len = dense_view(kv_len_.data(), {num_rows}),
            .query_begin = dense_view(query_begin_.data(), {num_rows + 1}),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len};
  }

  BatchTablesOptions options_;
  int num_rows_ = 0;
  std::vector<std::int32_t> block_ids_;    // [max_seqs, max_blocks_per_seq]
  std::vector<std::int32_t> kv_len_;       // [max_seqs], 0 where not in use
  std::vector<std::int32_t> query_begin_;  // [max_seqs + 1], constant from num_seqs() on
  std::vector<std::uint8_t> is_free_;      // [max_seqs], 1 for removed rows
  std::vector<Followed> followed_;         // [max_seqs]
  TableChanges changes_{0};
};

}  // namespace v0
}  // namespace pagedkv
