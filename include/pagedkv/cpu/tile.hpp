// The inner loops of attention on a CPU: a tile of keys as floats, and one row of queries against it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {
namespace detail {

/// Floats that are added side by side. Part of the result: it fixes the order of additions, on any machine.
inline constexpr int num_lanes = 16;

inline int padded(int dim) { return round_up(dim, num_lanes); }

/// a . b over n floats, n a multiple of num_lanes.
inline float dot(const float* __restrict a, const float* __restrict b, int n) {
  float sums[num_lanes] = {};
  for (int i = 0; i < n; i += num_lanes) {
    for (int lane = 0; lane < num_lanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (int width = num_lanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

/// sums += weights[0] * rows[0] + ... + weights[3] * rows[3], in this order; rows lie n floats apart, n as in dot().
inline void add_four_rows(float* __restrict sums, const float* __restrict weights, const float* __restrict rows,
                          int n) {
  const float *row0 = rows, *row1 = row0 + n, *row2 = row1 + n, *row3 = row2 + n;
  for (int i = 0; i < n; ++i) {
    float sum = sums[i];
    sum += weights[0] * row0[i];
    sum += weights[1] * row1[i];
    sum += weights[2] * row2[i];
    sum += weights[3] * row3[i];
    sums[i] = sum;
  }
}

template <StorageType T>
void load_row(const T* __restrict source, int n, float* __restrict target) {
  for (int i = 0; i < n; ++i) target[i] = to_float(source[i]);
}

/// Keys of one KV head, converted once for all rows that see them. Only keys that a row may see are read, and nothing
/// behind them is multiplied except zeros: what lies in other slots can be NaN.
class KeyTile {
 public:
  /// Room for `max_keys` keys.
  KeyTile(int max_keys, int head_dim, int head_dim_v)
      : key_stride_(padded(head_dim)),
        value_stride_(padded(head_dim_v)),
        keys_(floats(max_keys, key_stride_)),
        values_(floats(round_up(max_keys, 4), value_stride_)),
        weights_(floats(round_up(max_keys, 4), 1)) {
    positions_.reserve(static_cast<std::size_t>(max_keys));
  }

  /// Loads the keys of `range` that are in `wanted`.
  template <StorageType T>
  void load(const KvView<const T>& kv, const TablesView<Space::host>& tables, int sequence, int kv_head, KeyRange range,
            const KeyRanges& wanted) {
    positions_.clear();
    float *k = keys_.data(), *v = values_.data();
    for (int key = range.begin; key < range.end; ++key) {
      if (!wanted.contains(key)) continue;
      const int block = tables.block_ids(sequence, key / kv.block_size()), slot = key % kv.block_size();
      PAGEDKV_ASSERT(block >= 0 && block < kv.num_blocks());
      load_row(kv.k.at(block, kv_head, slot, 0), kv.head_dim(), k);
      load_row(kv.v.at(block, kv_head, slot, 0), kv.head_dim_v(), v);
      positions_.push_back(key);
      k += key_stride_;
      v += value_stride_;
    }
    // add_four_rows goes on to a multiple of four rows, with weight zero. What an earlier tile left there may be
    // infinite.
    std::fill(v, values_.data() + round_up(positions_.size(), std::size_t{4}) * stride(value_stride_), 0.f);
  }

  /// One query row against the tile: `q` is padded like the keys, `sums` like the values. `p` holds all but the key.
  template <AttentionVariant V>
  void attend(const float* q, float scale, const V& variant, Position p, OnlineSoftmax& softmax, float* sums) {
    const std::size_t num_keys = positions_.size();
    float top = -infinity;
    for (std::size_t i = 0; i < num_keys; ++i) {
      p.key = positions_[i];
      weights_[i] = variant.visible(p) ? variant.logit(scale * dot(q, &keys_[i * stride(key_stride_)], key_stride_), p)
                                       : -infinity;
      top = max(top, weights_[i]);
    }
    const float factor = softmax.raise(top);
    for (std::size_t i = 0; i < num_keys; ++i) {
      weights_[i] = softmax.weight(weights_[i]);
      softmax.sum += weights_[i];
    }
    if (factor != 1.f) {
      for (int i = 0; i < value_stride_; ++i) sums[i] *= factor;
    }
    std::size_t padded_keys = num_keys;
    while (padded_keys % 4 != 0) weights_[padded_keys++] = 0.f;
    for (std::size_t i = 0; i < padded_keys; i += 4) {
      add_four_rows(sums, &weights_[i], &values_[i * stride(value_stride_)], value_stride_);
    }
  }

 private:
  static std::size_t stride(int floats) { return static_cast<std::size_t>(floats); }
  static std::vector<float> floats(int rows, int row_stride) {
    return std::vector<float>(stride(rows) * stride(row_stride));
  }

  int key_stride_, value_stride_;
  std::vector<float> keys_;     // [max_keys, key_stride], the padding of head_dim is zero
  std::vector<float> values_;   // [max_keys, value_stride]
  std::vector<float> weights_;  // of one row
  std::vector<int> positions_;  // of the loaded keys
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
