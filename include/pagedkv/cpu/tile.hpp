// The inner loops of attention on a CPU: a tile of keys as floats, and a few rows of queries against it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cpu/key_rows.hpp"
#include "pagedkv/cpu/lanes.hpp"
#include "pagedkv/cpu/panel.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {
namespace detail {

/// Keys of one KV head, transposed once for all rows that see them, each at its own place in the tile. Only keys that a
/// row may see are read, and a row multiplies only values that it sees: what lies in other slots can be NaN.
template <StorageType T, int PanelWidth = panel_width>
class KeyTile {
 public:
  /// Room for `max_keys` keys, for `num_rows` rows in all. Few rows take values as they are stored, and bf16 keys as
  /// pairs.
  KeyTile(const KvView<const T>& kv, int max_keys, int num_rows)
      : kv_(kv),
        head_dim_(kv.head_dim()),
        key_stride_(padded(max_keys)),
        value_stride_(padded(kv.head_dim_v())),
        converts_values_(num_rows > 2 * max_panel_rows || kv.head_dim_v() != value_stride_),
        has_pairs_(is_bf16 && !converts_values_ && head_dim_ % (2 * num_lanes) == 0),
        key_depth_(has_pairs_ ? head_dim_ / 2 : head_dim_),
        keys_(size(key_stride_) * size(key_depth_)),
        values_(converts_values_ ? size(max_keys) * size(value_stride_) : 0),
        weights_(size(key_stride_) * max_panel_rows) {}

  /// Loads the keys of `range` that are in `wanted`. That may be generous (a chain can have a gap too many), so a block
  /// can be gone: rows that do not see it never notice, a row that does gets NaN.
  void load(const TablesView<Space::host>& tables, int sequence, int kv_head, KeyRange range, const KeyRanges& wanted) {
    if (range == next_.range)
      std::swap(rows_, next_);
    else
      rows_.look_up(kv_, tables, sequence, kv_head, range, wanted);
    const int next_end = min(range.end + num_keys(), tables.kv_len(sequence));
    next_.look_up(kv_, tables, sequence, kv_head, {range.end, max(range.end, next_end)}, wanted, num_keys());
    if (!converts_values_) list_ahead();
    for (int begin = 0; begin < num_keys(); begin += num_lanes) load_rows(begin, min(num_lanes, num_keys() - begin));
  }

  /// `num_rows` query rows of one sequence, at most max_panel_rows, in the order of their queries, against the tile;
  /// they see keys of `seen` at most. `q` is [num_rows, head_dim], `sums` [num_rows, padded(head_dim_v)];
  /// position_of(row) says all but the key.
  template <AttentionVariant V, class F>
  void attend(int num_rows, const float* q, float scale, const V& variant, F&& position_of, const KeyRanges& seen,
              OnlineSoftmax* softmax, float* sums) {
    multiply_keys(num_rows, q, seen);
    const Position first = position_of(0), last = position_of(num_rows - 1);
    const bool all_seen = sees_all(variant, first.sequence, first.query, last.query, rows_.range);
    float least = 1.f;
    for (int r = 0; r < num_rows; ++r) {
      float* const logits = weights_of(r);
      bend(logits, scale, variant, position_of(r), all_seen);
      least = min(least, weigh(logits, softmax[r], sums + r * value_stride_));
    }
    if (least > 0.f) return add_values(0, num_rows, 0, num_keys(), sums);
    for (int r = 0; r < num_rows; ++r) {
      for (int begin = 0, end; begin < num_keys(); begin = end + 1) {
        for (end = begin; end < num_keys() && weights_of(r)[end] != 0.f;) ++end;
        if (begin < end) add_values(r, 1, begin, end, sums);
      }
    }
  }

  /// When all keys are added: puts `sums` of load()'s rows, [num_rows, padded(head_dim_v)], in the order of columns.
  void finish(int num_rows, float* sums) const {
    if constexpr (is_bf16) {
      if (converts_values_) return;
      for (int i = 0; i < num_rows * value_stride_; i += 2 * num_lanes) join_pairs(sums + i);
    }
  }

 private:
  static constexpr bool is_bf16 = std::is_same_v<T, bf16>;

  static std::size_t size(int count) { return static_cast<std::size_t>(count); }
  int num_keys() const { return rows_.range.end - rows_.range.begin; }
  float* panel(int index) { return keys_.data() + size(index) * size(panel_width * key_depth_); }
  float* weights_of(int row) { return weights_.data() + size(row) * size(key_stride_); }

  // The keys from `place` on in the tile, `count` of them.
  void load_rows(int place, int count) {
    float* const columns = panel(place / panel_width) + place % panel_width;
    const char* const is_there = &rows_.is_there[size(place)];
    const int any = static_cast<int>(std::find(is_there, is_there + count, 1) - is_there);
    if (any != count) {
      const T* readable[num_lanes];
      for (int i = 0; i < num_lanes; ++i) readable[i] = rows_.k[size(place + (is_there[i] ? i : any))];
      load_columns(readable, columns);
    }
    for (int i = 0; i < count; ++i) {
      if (!is_there[i])
        for (int d = 0; d < key_depth_; ++d) columns[d * panel_width + i] = std::numeric_limits<float>::quiet_NaN();
      else if (converts_values_)
        load_row(rows_.v[size(place + i)], kv_.head_dim_v(), values_.data() + size(place + i) * size(value_stride_));
    }
    if (!converts_values_) return;
    for (int i = place, end = min(place + count, static_cast<int>(next_.k.size())); i < end; ++i) {
      prefetch_row(next_.k[size(i)], head_dim_);
      prefetch_row(next_.v[size(i)], kv_.head_dim_v());
    }
  }

  void load_columns(const T* const* rows, float* columns) const {
    if constexpr (is_bf16)
      if (has_pairs_) return detail::load_columns<num_lanes>(rows, head_dim_, reinterpret_cast<RowPair*>(columns));
    detail::load_columns<num_lanes>(rows, head_dim_, columns);
  }

  // Blocks lie anywhere, where no hardware looks for them. While keys are multiplied, the values of this tile are
  // fetched, while these are added, the keys of the next: evenly, for a burst stops the loads behind it.
  void list_ahead() {
    const int value_bytes = value_stride_ * static_cast<int>(sizeof(T)), step = value_bytes * panel_width / key_depth_;
    values_ahead_.resize(size(key_stride_ / panel_width) * size(key_depth_));
    const char** next = values_ahead_.data();
    for (int begin = 0; begin < num_keys(); begin += panel_width) {
      for (int k = 0, row = begin, byte = 0; k < key_depth_; ++k, byte += step) {
        for (; byte >= value_bytes; byte -= value_bytes) ++row;
        *next++ = reinterpret_cast<const char*>(rows_.v[size(min(row, num_keys() - 1))]) + byte;
      }
    }
  }

  void multiply_keys(int num_rows, const float* q, const KeyRanges& seen) {
    for (int begin = 0; begin < num_keys(); begin += panel_width) {
      const int key = rows_.range.begin + begin;
      if (!seen.touches({key, min(key + panel_width, rows_.range.end)})) continue;
      if (has_pairs_)
        multiply_panel<RowPair>(num_rows, q, begin);
      else
        multiply_panel<float>(num_rows, q, begin);
    }
  }

  template <class Key>
  void multiply_panel(int num_rows, const float* q, int begin) {
    const int index = begin / panel_width;
    Panel<Key> keys{reinterpret_cast<const Key*>(panel(index)), panel_width, key_depth_};
    if (!converts_values_) keys.ahead = &values_ahead_[size(index * key_depth_)];
    multiply(num_rows, q, head_dim_, keys, false, weights_.data() + begin, key_stride_);
  }

  // Products to logits; -inf where the row does not look.
  template <AttentionVariant V>
  void bend(float* logits, float scale, const V& variant, Position p, bool all_seen) const {
    for (int i = 0; i < num_keys(); ++i) {
      p.key = rows_.range.begin + i;
      logits[i] = all_seen || variant.visible(p) ? variant.logit(scale * logits[i], p) : -infinity;
    }
    std::fill(logits + num_keys(), logits + round_up(num_keys(), num_lanes), -infinity);
  }

  // Logits to weights. Returns the least.
  float weigh(float* logits, OnlineSoftmax& softmax, float* sums) const {
    const auto larger = [](auto a, auto b) { return a < b ? b : a; };  // of numbers or lanes; never a NaN in `b`
    const auto smaller = [](auto a, auto b) { return b < a ? b : a; };
    Lanes tops = all_lanes(-infinity);
    for (int i = 0; i < num_keys(); i += num_lanes) tops = larger(tops, load_lanes(logits + i));
    const float top = reduce(tops, larger);
    if (top > softmax.max) {
      const float factor = softmax.raise(top);
      for (int i = 0; i < value_stride_; ++i) sums[i] *= factor;
    }
    const float reference = softmax.max == -infinity ? 0.f : softmax.max;  // -inf - -inf would be NaN
    Lanes total{}, lows = all_lanes(1.f);
    float least = 1.f;
    for (int i = 0; i < num_keys(); i += num_lanes) {
      const Lanes weights = exp2_of_negative((load_lanes(logits + i) - reference) * log2_e);
      total += weights;
      store_lanes(weights, logits + i);
      if (i + num_lanes <= num_keys())
        lows = smaller(lows, weights);
      else
        for (int last = i; last < num_keys(); ++last) least = smaller(least, logits[last]);
    }
    softmax.sum += reduce(total, [](Lanes a, Lanes b) { return a + b; });
    return smaller(least, reduce(lows, smaller));
  }

  // sums[r] += weights[r][i] * values[i] for keys from `begin` to `end`, in this order.
  void add_values(int row, int num_rows, int begin, int end, float* sums) {
    if (converts_values_) {
      const float* const first = values_.data() + size(begin) * size(value_stride_);
      for (int column = 0; column < value_stride_; column += panel_width)
        add_panel(row, num_rows, begin, Panel<float>{first + column, value_stride_, end - begin}, column, sums);
      return;
    }
    using Value = std::conditional_t<is_bf16, SplitBf16, T>;
    for (int column = 0; column < value_stride_; column += panel_width) {
      const ScatteredPanel<Value, T> values{&rows_.v[size(begin)], column, end - begin, &next_.k[size(begin)],
                                            std::int64_t{column} * head_dim_ / value_stride_};
      add_panel(row, num_rows, begin, values, column, sums);
    }
  }

  template <class Values>
  void add_panel(int row, int num_rows, int begin, const Values& values, int column, float* sums) {
    multiply(num_rows, weights_of(row) + begin, key_stride_, values, true, sums + row * value_stride_ + column,
             value_stride_);
  }

  const KvView<const T>& kv_;
  int head_dim_, key_stride_, value_stride_;
  bool converts_values_, has_pairs_;
  int key_depth_;                          // of a panel of keys: RowPairs count once
  KeyRows<T> rows_, next_;                 // of the tile, of the one behind it
  AlignedFloats<> keys_;                   // panels of panel_width keys, each [key_depth, panel_width], or RowPairs
  AlignedFloats<> values_;                 // [max_keys, value_stride], the padding of head_dim_v is zero
  std::vector<const char*> values_ahead_;  // [panels of keys, key_depth]
  AlignedFloats<> weights_;  // [max_panel_rows, key_stride]: of the rows at hand; products and logits at first
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
