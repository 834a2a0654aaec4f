// The inner loops of attention on a CPU: a tile of keys as floats, and one row of queries against it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/cache/tables_view.hpp"
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

/// sums += weights[0] * rows[0] + weights[1] * rows[1] + ..., in this order; each row has n floats.
inline void add_rows(float* __restrict sums, const float* weights, const float* const* rows, int num_rows, int n) {
  int row = 0;
  for (; row + 4 <= num_rows; row += 4) {  // four at a time: sums are loaded and stored once
    const float w0 = weights[row], w1 = weights[row + 1], w2 = weights[row + 2], w3 = weights[row + 3];
    const float* __restrict r0 = rows[row];
    const float* __restrict r1 = rows[row + 1];
    const float* __restrict r2 = rows[row + 2];
    const float* __restrict r3 = rows[row + 3];
    for (int i = 0; i < n; ++i) sums[i] = (((sums[i] + w0 * r0[i]) + w1 * r1[i]) + w2 * r2[i]) + w3 * r3[i];
  }
  for (; row < num_rows; ++row) {
    const float w = weights[row];
    const float* __restrict r = rows[row];
    for (int i = 0; i < n; ++i) sums[i] += w * r[i];
  }
}

template <StorageType T>
void load_row(const T* __restrict source, int n, float* __restrict target) {
  for (int i = 0; i < n; ++i) target[i] = to_float(source[i]);
}

/// Keys of one KV head, converted once for all rows that see them. Only keys that a row may see are read, and a row
/// multiplies only what it sees: what lies in other slots can be NaN.
class KeyTile {
 public:
  /// Room for `max_keys` keys.
  KeyTile(int max_keys, int head_dim, int head_dim_v)
      : key_stride_(padded(head_dim)),
        value_stride_(padded(head_dim_v)),
        keys_(size(max_keys) * size(key_stride_)),
        values_(size(max_keys) * size(value_stride_)),
        weights_(size(max_keys)),
        rows_(size(max_keys)) {
    positions_.reserve(size(max_keys));
  }

  /// Loads the keys of `range` that are in `wanted`. That may be generous (a chain can have a gap too many), so a block can be gone:
  /// rows that do not see it never notice, a row that does gets NaN.
  template <StorageType T>
  void load(const KvView<const T>& kv, const TablesView<Space::host>& tables, int sequence, int kv_head, KeyRange range,
            const KeyRanges& wanted) {
    positions_.clear();
    float *k = keys_.data(), *v = values_.data();
    for (int key = range.begin; key < range.end; ++key) {
      if (!wanted.contains(key)) continue;
      const int block = tables.block_ids(sequence, key / kv.block_size()), slot = key % kv.block_size();
      if (block >= 0 && block < kv.num_blocks()) {
        load_row(kv.k.at(block, kv_head, slot, 0), kv.head_dim(), k);
        load_row(kv.v.at(block, kv_head, slot, 0), kv.head_dim_v(), v);
      } else {
        std::fill_n(k, kv.head_dim(), std::numeric_limits<float>::quiet_NaN());
      }
      positions_.push_back(key);
      k += key_stride_;
      v += value_stride_;
    }
  }

  /// One query row against the tile: `q` is padded like the keys, `sums` like the values. `p` holds all but the key.
  template <AttentionVariant V>
  void attend(const float* q, float scale, const V& variant, Position p, OnlineSoftmax& softmax, float* sums) {
    const std::size_t num_keys = positions_.size();
    float top = -infinity;
    for (std::size_t i = 0; i < num_keys; ++i) {
      p.key = positions_[i];
      weights_[i] =
          variant.visible(p) ? variant.logit(scale * dot(q, &keys_[i * size(key_stride_)], key_stride_), p) : -infinity;
      top = max(top, weights_[i]);
    }
    const float factor = softmax.raise(top);
    if (factor != 1.f) {
      for (int i = 0; i < value_stride_; ++i) sums[i] *= factor;
    }
    int num_seen = 0;
    for (std::size_t i = 0; i < num_keys; ++i) {
      const float weight = softmax.weight(weights_[i]);
      if (weight == 0.f) continue;
      softmax.sum += weight;
      weights_[size(num_seen)] = weight;
      rows_[size(num_seen++)] = &values_[i * size(value_stride_)];
    }
    add_rows(sums, weights_.data(), rows_.data(), num_seen, value_stride_);
  }

 private:
  static std::size_t size(int count) { return static_cast<std::size_t>(count); }

  int key_stride_, value_stride_;
  std::vector<float> keys_;         // [max_keys, key_stride], the padding of head_dim is zero
  std::vector<float> values_;       // [max_keys, value_stride], likewise
  std::vector<int> positions_;      // of the loaded keys
  std::vector<float> weights_;      // of one row; logits at first
  std::vector<const float*> rows_;  // values of the keys that the row sees
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
