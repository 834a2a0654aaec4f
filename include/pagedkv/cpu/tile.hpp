// The inner loops of attention on a CPU: a tile of keys as floats, and a few rows of queries against it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/cpu/lanes.hpp"
#include "pagedkv/cpu/panel.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {
namespace detail {

/// A row of sums: whole panels.
[[gnu::always_inline]] inline int padded(int dim) { return round_up(dim, panel_width); }

template <StorageType T>
void load_row(const T* __restrict source, int n, float* __restrict target) {
  for (int i = 0; i < n; ++i) target[i] = to_float(source[i]);
}

/// Column `lane` of `target`, whose rows have panel_width floats, becomes rows[lane], for num_lanes of them.
template <int NumLanes, StorageType T>
void load_columns(const T* const* rows, int n, float* target) {
  int i = 0;
  if constexpr (std::is_same_v<T, bf16>) {  // two at a time: half as many shuffles
    for (; i + 2 * num_lanes <= n; i += 2 * num_lanes) {
      Lanes pairs[num_lanes];
      for (int lane = 0; lane < num_lanes; ++lane) std::memcpy(&pairs[lane], rows[lane] + i, sizeof pairs[lane]);
      transpose(pairs);
      for (int j = 0; j < num_lanes; ++j, target += 2 * panel_width) {
        const LaneBits bits = std::bit_cast<LaneBits>(pairs[j]);
        store_lanes(std::bit_cast<Lanes>(bits << 16), target);
        store_lanes(std::bit_cast<Lanes>(bits & 0xffff0000u), target + panel_width);
      }
    }
  }
  for (; i + num_lanes <= n; i += num_lanes, target += num_lanes * panel_width) {
    Lanes square[num_lanes];
    for (int lane = 0; lane < num_lanes; ++lane) square[lane] = load_lanes(rows[lane] + i);
    transpose(square);
    for (int j = 0; j < num_lanes; ++j) store_lanes(square[j], target + j * panel_width);
  }
  for (; i < n; ++i, target += panel_width)
    for (int lane = 0; lane < num_lanes; ++lane) target[lane] = to_float(rows[lane][i]);
}

/// Where num_lanes keys of a sequence lie, from `range.begin` on: null for keys behind its end, not wanted or gone. The
/// value of a key that is gone is multiplied by NaN, of the others by nothing.
template <StorageType T, int NumLanes = num_lanes>
struct KeyRows {
  const T* k[num_lanes] = {};
  const T* v[num_lanes];  // where k is null: some row that can be read

  KeyRows(const KvView<const T>& kv, const TablesView<Space::host>& tables, int sequence, int kv_head, KeyRange range,
          const KeyRanges& wanted) {
    std::fill_n(v, num_lanes, kv.v.data);
    for (int i = 0, num_keys = min(num_lanes, range.end - range.begin); i < num_keys;) {
      const int index = (range.begin + i) / kv.block_size(), first_slot = (range.begin + i) % kv.block_size();
      const int block = tables.block_ids(sequence, index), end = min(num_keys, i + kv.block_size() - first_slot);
      if (block >= 0 && block < kv.num_blocks()) {
        const T* k_row = kv.k.at(block, kv_head, first_slot, 0);
        const T* v_row = kv.v.at(block, kv_head, first_slot, 0);
        for (; i < end; ++i, k_row += kv.k.strides[2], v_row += kv.v.strides[2]) {
          if (!wanted.contains(range.begin + i)) continue;
          k[i] = k_row;
          v[i] = v_row;
        }
      }
      i = end;
    }
  }
};

template <StorageType T>
[[gnu::always_inline]] inline void prefetch_row(const T* row, int n) {  // GCC drops calls that only prefetch
  for (int i = 0; i < n; i += static_cast<int>(64 / sizeof(T))) __builtin_prefetch(row + i);
}

/// Keys of one KV head, converted once for all rows that see them, each at its own place in the tile. Only keys that a
/// row may see are read, and a row multiplies only values that it sees: what lies in other slots can be NaN.
template <StorageType T, int PanelWidth = panel_width>
class KeyTile {
 public:
  /// Room for `max_keys` keys, for `num_rows` rows in all. Few rows take values as they are stored.
  KeyTile(const KvView<const T>& kv, int max_keys, int num_rows)
      : kv_(kv),
        head_dim_(kv.head_dim()),
        key_stride_(padded(max_keys)),
        value_stride_(padded(kv.head_dim_v())),
        converts_values_(num_rows > 2 * max_panel_rows || kv.head_dim_v() != value_stride_),
        keys_(size(key_stride_) * size(head_dim_)),
        values_(converts_values_ ? size(max_keys) * size(value_stride_) : 0),
        value_rows_(size(max_keys)),
        weights_(size(key_stride_) * max_panel_rows) {}

  /// Loads the keys of `range` that are in `wanted`. That may be generous (a chain can have a gap too many), so a block
  /// can be gone: rows that do not see it never notice, a row that does gets NaN.
  void load(const TablesView<Space::host>& tables, int sequence, int kv_head, KeyRange range, const KeyRanges& wanted) {
    range_ = range;
    for (int begin = range.begin; begin < range.end; begin += num_lanes) {
      const KeyRows<T> ahead(kv_, tables, sequence, kv_head, {begin + keys_ahead, tables.kv_len(sequence)}, wanted);
      load_rows(KeyRows<T>(kv_, tables, sequence, kv_head, {begin, range.end}, wanted), ahead, begin - range.begin,
                min(num_lanes, range.end - begin));
    }
  }

  /// `num_rows` query rows of one sequence, at most max_panel_rows, in the order of their queries, against the tile;
  /// they see keys of `seen` at most. `q` is [num_rows, head_dim], `sums` [num_rows, padded(head_dim_v)];
  /// position_of(row) says all but the key.
  template <AttentionVariant V, class F>
  void attend(int num_rows, const float* q, float scale, const V& variant, F&& position_of, const KeyRanges& seen,
              OnlineSoftmax* softmax, float* sums) {
    multiply_keys(num_rows, q, seen);
    const Position first = position_of(0), last = position_of(num_rows - 1);
    const bool all_seen = sees_all(variant, first.sequence, first.query, last.query, range_);
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

 private:
  static constexpr int keys_ahead = 32;  // fetched meanwhile: blocks lie anywhere, where no hardware looks for them

  static std::size_t size(int count) { return static_cast<std::size_t>(count); }
  int num_keys() const { return range_.end - range_.begin; }
  float* panel(int index) { return keys_.data() + size(index) * size(panel_width * head_dim_); }
  float* weights_of(int row) { return weights_.data() + size(row) * size(key_stride_); }

  // The keys from `place` on in the tile, `count` of them.
  void load_rows(const KeyRows<T>& rows, const KeyRows<T>& ahead, int place, int count) {
    float* const columns = panel(place / panel_width) + place % panel_width;
    const T* const* any = std::find_if(rows.k, rows.k + count, [](const T* row) { return row != nullptr; });
    if (any != rows.k + count) {
      const T* filled[num_lanes];
      for (int i = 0; i < num_lanes; ++i) filled[i] = rows.k[i] == nullptr ? *any : rows.k[i];
      load_columns<num_lanes>(filled, head_dim_, columns);
    }
    for (int i = 0; i < count; ++i) {
      if (ahead.k[i] != nullptr) {
        prefetch_row(ahead.k[i], head_dim_);
        prefetch_row(ahead.v[i], kv_.head_dim_v());
      }
      if (rows.k[i] == nullptr)
        for (int d = 0; d < head_dim_; ++d) columns[d * panel_width + i] = std::numeric_limits<float>::quiet_NaN();
      else if (converts_values_)
        load_row(rows.v[i], kv_.head_dim_v(), &values_[size(place + i) * size(value_stride_)]);
    }
    std::copy_n(rows.v, count, &value_rows_[size(place)]);
  }

  void multiply_keys(int num_rows, const float* q, const KeyRanges& seen) {
    for (int begin = 0; begin < num_keys(); begin += panel_width) {
      if (!seen.touches({range_.begin + begin, range_.begin + min(begin + panel_width, num_keys())})) continue;
      multiply(num_rows, q, head_dim_, Panel<float>{panel(begin / panel_width), panel_width, head_dim_}, false,
               weights_.data() + begin, key_stride_);
    }
  }

  // Products to logits; -inf where the row does not look.
  template <AttentionVariant V>
  void bend(float* logits, float scale, const V& variant, Position p, bool all_seen) const {
    for (int i = 0; i < num_keys(); ++i) {
      p.key = range_.begin + i;
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
    softmax.sum += reduce(total, [](float a, float b) { return a + b; });
    return smaller(least, reduce(lows, smaller));
  }

  // sums[r] += weights[r][i] * values[i] for keys from `begin` to `end`, in this order.
  void add_values(int row, int num_rows, int begin, int end, float* sums) {
    if (converts_values_)
      return add_panel(row, num_rows, begin, end, &values_[size(begin) * size(value_stride_)], value_stride_, sums);
    const std::int64_t stride = kv_.v.strides[2];
    for (int next; begin < end; begin = next) {  // as far as the slots of a block go
      for (next = begin + 1; next < end && value_rows_[size(next)] == value_rows_[size(next - 1)] + stride;) ++next;
      add_panel(row, num_rows, begin, next, value_rows_[size(begin)], stride, sums);
    }
  }

  template <StorageType Value>
  void add_panel(int row, int num_rows, int begin, int end, const Value* values, std::int64_t stride, float* sums) {
    for (int column = 0; column < value_stride_; column += panel_width) {
      multiply(num_rows, weights_of(row) + begin, key_stride_, Panel<Value>{values + column, stride, end - begin}, true,
               sums + row * value_stride_ + column, value_stride_);
    }
  }

  const KvView<const T>& kv_;
  int head_dim_, key_stride_, value_stride_;
  bool converts_values_;
  KeyRange range_;                    // of the tile
  std::vector<float> keys_;           // panels of panel_width keys, each [head_dim, panel_width]
  std::vector<float> values_;         // [max_keys, value_stride], the padding of head_dim_v is zero
  std::vector<const T*> value_rows_;  // [max_keys], as stored
  std::vector<float> weights_;        // [max_panel_rows, key_stride]: of the rows at hand; products and logits at first
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
