// Attention on a CPU: executes the plan of attention/plan.hpp, item by item, on any executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "pagedkv/cpu/tile.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

/// How work is cut. The bits of a result depend on key_tile and split_keys, on nothing else: not on query_tile, the
/// threads, the block size, or the company in the batch.
struct AttendOptions {
  int query_tile = 16;    // queries that share one conversion of keys to float
  int key_tile = 64;      // keys converted at a time
  int split_keys = 1024;  // keys an item works through; more of them than this are shared out and merged
};

namespace detail {

inline AttentionPlan plan_of(const TablesView<Space::host>& tables, const AttendOptions& options) {
  const int any_number = std::numeric_limits<int>::max();  // else the bounds of the batch would move the boundaries
  return make_plan(tables, options.query_tile, options.key_tile, options.split_keys, any_number);
}

/// O(num_seqs), which the host can afford: what a kernel has to believe.
template <class Problem>
void validate_lengths(const Problem& problem) {
  const auto& tables = problem.tables;
  require(tables.query_begin(0) == 0, "problem.tables.query_begin: first entry", 0, tables.query_begin(0));
  for (int s = 0; s < tables.num_seqs(); ++s) {
    require(tables.q_len(s) >= 0 && tables.q_len(s) <= tables.max_q_len, "problem.tables: q_len from 0 to max_q_len",
            tables.max_q_len, tables.q_len(s));
    require(tables.kv_len(s) >= 0 && tables.kv_len(s) <= tables.max_kv_len,
            "problem.tables: kv_len from 0 to max_kv_len", tables.max_kv_len, tables.kv_len(s));
  }
  require(tables.query_begin(tables.num_seqs()) <= problem.num_tokens(),
          "problem.tables.query_begin: at most num_tokens", problem.num_tokens(),
          tables.query_begin(tables.num_seqs()));
}

/// Covers every key that a row of `rows` can see.
template <AttentionVariant V>
KeyRanges visible_keys(const TablesView<Space::host>& tables, const V& variant, const QueryRows& rows) {
  const int kv_len = tables.kv_len(rows.sequence), first_query = kv_len - tables.q_len(rows.sequence);
  return seen_keys(variant, first_query + rows.begin, first_query + rows.end - 1, kv_len);
}

/// The plan's items that have something to see, tile by tile, `split` of `num_splits` counted among these: a piece that
/// sees nothing would change no bit. Each tile has at least one item, so that its output is written.
template <AttentionVariant V>
std::vector<WorkItem> list_items(const AttentionPlan& plan, const TablesView<Space::host>& tables, const V& variant) {
  std::vector<WorkItem> items;
  for (int s = 0; s < plan.num_seqs; ++s) {
    const int num_tiles = ceil_div(tables.q_len(s), plan.query_tile);
    for (std::int64_t tile = std::int64_t{s} * plan.tiles_per_seq, end = tile + num_tiles; tile < end; ++tile) {
      const std::size_t first = items.size();
      WorkItem item = plan.item(tile, 0, tables.q_len(s), tables.kv_len(s));
      const KeyRanges wanted = visible_keys(tables, variant, item.rows);
      for (int split = 0; split < item.num_splits; ++split) {
        item = plan.item(tile, split, tables.q_len(s), tables.kv_len(s));
        if (wanted.touches(item.keys)) items.push_back(item);
      }
      if (items.size() == first) items.push_back({.rows = item.rows, .keys = {}});
      for (std::size_t i = first; i < items.size(); ++i) {
        items[i].split = static_cast<int>(i - first);
        items[i].num_splits = static_cast<int>(items.size() - first);
      }
    }
  }
  return items;
}

/// Unfinished rows: those of one KV head of an item, or, item by item, those of all KV heads: [kv_heads, rows, group].
template <int PanelWidth = panel_width>
struct Partials {
  int stride;                          // floats of a row of sums
  std::vector<OnlineSoftmax> softmax;  // [num_rows]
  std::vector<float> sums;             // [num_rows, stride]

  explicit Partials(int head_dim_v) : stride(padded(head_dim_v)) {}

  void reset(std::int64_t num_rows) {
    softmax.assign(static_cast<std::size_t>(num_rows), OnlineSoftmax{});
    sums.assign(static_cast<std::size_t>(num_rows * stride), 0.f);
  }
  OnlineSoftmax& softmax_of(std::int64_t row) { return softmax[static_cast<std::size_t>(row)]; }
  float* sums_of(std::int64_t row) { return &sums[static_cast<std::size_t>(row * stride)]; }
};

/// One call of attend(): the problem and what its tasks share.
template <class Problem, AttentionVariant V, int PanelWidth = panel_width>
class Attention {
 public:
  Attention(const Problem& problem, const V& variant, const AttendOptions& options)
      : problem_(problem),
        variant_(variant),
        key_tile_(options.key_tile),
        items_(list_items(plan_of(problem.tables, options), problem.tables, variant)),
        partial_begin_(items_.size()),
        partials_(problem.head_dim_v()) {}

  template <class E>
  void run(E& executor) {
    for (std::size_t begin = 0; begin < items_.size();) begin = run_wave(begin, executor);
  }

 private:
  // Rows whose partials are kept at a time: enough for any number of threads, little against a pool.
  static constexpr std::int64_t max_partial_rows = 1 << 16;

  // Runs the items from `begin` on, whole tiles, as many as max_partial_rows allows. Returns where the next wave
  // begins.
  template <class E>
  std::size_t run_wave(std::size_t begin, E& executor) {
    std::vector<std::size_t> split_tiles;  // first items of tiles that are to be merged
    std::int64_t partial_rows = 0;
    std::size_t end = begin;
    for (; end < items_.size() && partial_rows < max_partial_rows; end += num_splits(end)) {
      if (num_splits(end) == 1) continue;
      split_tiles.push_back(end);
      for (std::size_t i = end; i < end + num_splits(end); ++i) {
        partial_begin_[i] = partial_rows;
        partial_rows += num_rows(items_[i]) * problem_.kv_heads();
      }
    }
    partials_.reset(partial_rows);
    const int kv_heads = problem_.kv_heads();
    const auto num_tasks = [&](std::size_t count) { return static_cast<int>(count) * kv_heads; };
    executor(num_tasks(end - begin),
             [&](int task) { attend_item(begin + static_cast<std::size_t>(task / kv_heads), task % kv_heads); });
    if (split_tiles.empty()) return end;
    executor(num_tasks(split_tiles.size()),
             [&](int task) { merge_tile(split_tiles[static_cast<std::size_t>(task / kv_heads)], task % kv_heads); });
    return end;
  }

  std::size_t num_splits(std::size_t item) const { return static_cast<std::size_t>(items_[item].num_splits); }

  // Rows of one KV head's partials of an item, [rows, group]; those of the other heads lie behind.
  std::int64_t num_rows(const WorkItem& item) const { return std::int64_t{item.rows.size()} * problem_.group_size(); }
  std::int64_t partial_begin(std::size_t item, int kv_head) const {
    return partial_begin_[item] + kv_head * num_rows(items_[item]);
  }

  // Calls f(query row, query head, partial row) for all rows of an item that read a KV head; partial rows count up.
  template <class F>
  void for_each_row(const WorkItem& item, int kv_head, std::int64_t partial, F&& f) const {
    const int group = problem_.group_size();
    for (int row = item.rows.begin; row < item.rows.end; ++row) {
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) f(row, head, partial++);
    }
  }

  void attend_item(std::size_t index, int kv_head) {
    const WorkItem& item = items_[index];
    if (item.num_splits > 1) return add_keys(item, kv_head, partials_, partial_begin(index, kv_head));
    Partials<> whole(problem_.head_dim_v());
    whole.reset(num_rows(item));
    add_keys(item, kv_head, whole, 0);
    for_each_row(item, kv_head, 0, [&](int row, int head, std::int64_t i) {
      finish_row(item.rows, row, head, whole.softmax_of(i), whole.sums_of(i));
    });
  }

  void add_keys(const WorkItem& item, int kv_head, Partials<>& partials, std::int64_t first_partial) const {
    const auto& tables = problem_.tables;
    const int sequence = item.rows.sequence;
    const int first_query = tables.kv_len(sequence) - tables.q_len(sequence);
    const KeyRanges wanted = visible_keys(tables, variant_, item.rows);
    const std::vector<float> queries = load_queries(item.rows, kv_head);
    const int group = problem_.group_size(), num_rows = item.rows.size() * group;
    const auto position_of = [&](int row) {
      const int query = first_query + item.rows.begin + row / group;
      return Position{.query = query, .key = 0, .q_head = kv_head * group + row % group, .sequence = sequence};
    };
    KeyTile<typename Problem::Element> tile(problem_.kv, min(key_tile_, item.keys.end - item.keys.begin), num_rows);
    for (int key = item.keys.begin; key < item.keys.end; key += key_tile_) {
      const KeyRange range{key, key + min(key_tile_, item.keys.end - key)};
      if (!wanted.touches(range)) continue;
      tile.load(tables, sequence, kv_head, range, wanted);
      for (int row = 0; row < num_rows; row += max_panel_rows) {
        const int count = min(max_panel_rows, num_rows - row);
        const KeyRanges seen =
            seen_keys(variant_, position_of(row).query, position_of(row + count - 1).query, tables.kv_len(sequence));
        if (!seen.touches(range)) continue;
        tile.attend(
            count, &queries[static_cast<std::size_t>(row) * static_cast<std::size_t>(problem_.head_dim())],
            problem_.scale, variant_, [&](int i) { return position_of(row + i); }, seen,
            &partials.softmax_of(first_partial + row), partials.sums_of(first_partial + row));
      }
    }
    tile.finish(num_rows, partials.sums_of(first_partial));
  }

  // [rows, group, head_dim]
  std::vector<float> load_queries(const QueryRows& rows, int kv_head) const {
    const int group = problem_.group_size(), stride = problem_.head_dim();
    std::vector<float> queries(static_cast<std::size_t>(rows.size()) * static_cast<std::size_t>(group * stride));
    float* target = queries.data();
    for (int token = first_token(rows) + rows.begin; token < first_token(rows) + rows.end; ++token) {
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head, target += stride) {
        load_row(problem_.q.at(token, head, 0), problem_.head_dim(), target);
      }
    }
    return queries;
  }

  // Always in the order of the splits: the same bits, whoever finished first.
  void merge_tile(std::size_t first, int kv_head) {
    const WorkItem& item = items_[first];
    const std::int64_t begin = partial_begin(first, kv_head);
    for_each_row(item, kv_head, begin, [&](int row, int head, std::int64_t partial) {
      OnlineSoftmax softmax = partials_.softmax_of(partial);
      float* sums = partials_.sums_of(partial);
      for (std::size_t i = first + 1; i < first + num_splits(first); ++i) {
        const std::int64_t piece = partial_begin(i, kv_head) + (partial - begin);
        const auto [own, other] = softmax.merge(partials_.softmax_of(piece));
        const float* added = partials_.sums_of(piece);
        for (int d = 0; d < partials_.stride; ++d) sums[d] = own * sums[d] + other * added[d];
      }
      finish_row(item.rows, row, head, softmax, sums);
    });
  }

  void finish_row(const QueryRows& rows, int row, int head, const OnlineSoftmax& softmax, const float* sums) const {
    using Output = typename Problem::Output;
    const auto [scale, lse] = softmax.finish(prior_of(variant_, head));
    const int token = first_token(rows) + row;
    Output* out = problem_.out.at(token, head, 0);
    for (int d = 0; d < problem_.head_dim_v(); ++d) out[d] = from_float<Output>(scale * sums[d]);
    if (!problem_.lse.empty()) problem_.lse(token, head) = lse;
  }

  int first_token(const QueryRows& rows) const { return problem_.tables.query_begin(rows.sequence); }

  const Problem& problem_;
  const V& variant_;
  int key_tile_;
  std::vector<WorkItem> items_;
  std::vector<std::int64_t> partial_begin_;  // [num_items], rows of partials_, for items of split tiles
  Partials<> partials_;
};

}  // namespace detail

/// Attention over a paged cache: decode, prefill and mixed batches (PagedAttention, arXiv:2309.06180; split keys as in
/// Flash-Decoding). Fills problem.out and, unless empty, problem.lse; rows of q behind the last sequence are left
/// alone. Sums are float; reads K and V only where variant.keys() says a query may look. Scratch, freed on return: some
/// 40 bytes a work item and, where keys are split, 4 * head_dim_v bytes for each of 65,536 (query row, query head,
/// split), one tile more at most: 34 MB at head_dim_v 128. Same inputs, same bits on one build, with any executor.
/// Throws InvalidArgument (shapes, lengths) before writing.
template <StorageType Q, StorageType KV, StorageType O, VariantFor<Space::host> V, class E = InlineExecutor>
  requires Executor<std::remove_reference_t<E>>
void attend(const AttentionProblem<Space::host, Q, KV, O>& problem, const V& variant, E&& executor = E{},
            const AttendOptions& options = {}) {
  problem.validate();
  detail::validate_lengths(problem);
  detail::Attention(problem, variant, options).run(executor);
}

/// What attend() would do, in words: tiles, splits, tasks. Rules may hide whole splits; those are counted here.
template <StorageType Q, StorageType KV, StorageType O>
std::string explain(const AttentionProblem<Space::host, Q, KV, O>& problem, const AttendOptions& options = {}) {
  problem.validate();
  detail::validate_lengths(problem);
  const AttentionPlan plan = detail::plan_of(problem.tables, options);
  std::int64_t num_tiles = 0, num_items = 0;
  for (int s = 0; s < plan.num_seqs; ++s) {
    const std::int64_t tiles = ceil_div(problem.tables.q_len(s), plan.query_tile);
    num_tiles += tiles;
    num_items += tiles * plan.item(0, 0, 0, problem.tables.kv_len(s)).num_splits;
  }
  const auto text = [](auto number) { return std::to_string(number); };
  return std::string("cpu: ") + text(plan.num_seqs) + " sequences, " + text(problem.q_heads()) + " query heads on " +
         text(problem.kv_heads()) + " KV heads, head_dim " + text(problem.head_dim()) + " / " +
         text(problem.head_dim_v()) + "; " + text(num_tiles) + " query tiles of " + text(plan.query_tile) +
         ", splits of " + text(plan.split_keys) + " keys (at most " + text(plan.max_splits) + "), key tiles of " +
         text(options.key_tile) + "; " + text(num_items) + " items, " + text(num_items * problem.kv_heads()) + " tasks";
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
