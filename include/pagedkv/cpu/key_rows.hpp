// What attention on a CPU reads of a pool: where keys and values lie, and rows of keys turned into columns of floats.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

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

/// A square of pairs: rows[lane][first + 2 j] and its neighbour go to square[j], lane `lane`.
template <int NumLanes = num_lanes>
void load_pair_square(const bf16* const* rows, int first, Lanes (&square)[NumLanes]) {
  for (int lane = 0; lane < num_lanes; ++lane) std::memcpy(&square[lane], rows[lane] + first, sizeof square[lane]);
  transpose(square);
}

/// Column `lane` of `target`, whose rows have panel_width floats, becomes rows[lane], for num_lanes of them.
template <int NumLanes, StorageType T>
void load_columns(const T* const* rows, int n, float* target) {
  int i = 0;
  if constexpr (std::is_same_v<T, bf16>) {  // two at a time: half as many shuffles
    for (; i + 2 * num_lanes <= n; i += 2 * num_lanes) {
      Lanes square[num_lanes];
      load_pair_square(rows, i, square);
      for (int j = 0; j < num_lanes; ++j, target += 2 * panel_width) {
        const LaneBits pairs = std::bit_cast<LaneBits>(square[j]);
        store_lanes(first_of(pairs), target);
        store_lanes(second_of(pairs), target + panel_width);
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

/// The same for a row of `target` of RowPairs; n is a multiple of 2 num_lanes.
template <int NumLanes>
void load_columns(const bf16* const* rows, int n, RowPair* target) {
  for (int i = 0; i < n; i += 2 * num_lanes) {
    Lanes square[num_lanes];
    load_pair_square(rows, i, square);
    for (int j = 0; j < num_lanes; ++j, target += panel_width) std::memcpy(target, &square[j], sizeof square[j]);
  }
}

/// Where the keys of a range lie. The value of a key that is gone is multiplied by NaN, of one not wanted by nothing.
template <StorageType T, int NumLanes = num_lanes>
struct KeyRows {
  KeyRange range;
  std::vector<const T*> k, v;  // [round_up(num_keys, num_lanes)] or more: a row that can be read where is_there is 0
  std::vector<char> is_there;  // 0 for keys behind the range, not wanted or gone

  /// `room`: for so many keys at least.
  void look_up(const KvView<const T>& kv, const TablesView<Space::host>& tables, int sequence, int kv_head,
               KeyRange keys, const KeyRanges& wanted, int room = 0) {
    range = keys;
    const int num_keys = keys.end - keys.begin;
    const auto size = static_cast<std::size_t>(round_up(max(num_keys, room), num_lanes));
    k.assign(size, kv.k.data);
    v.assign(size, kv.v.data);
    is_there.assign(size, 0);
    for (int i = 0; i < num_keys;) {
      const int index = (keys.begin + i) / kv.block_size(), first_slot = (keys.begin + i) % kv.block_size();
      const int block = tables.block_ids(sequence, index), end = min(num_keys, i + kv.block_size() - first_slot);
      if (block >= 0 && block < kv.num_blocks()) {
        const T* k_row = kv.k.at(block, kv_head, first_slot, 0);
        const T* v_row = kv.v.at(block, kv_head, first_slot, 0);
        for (; i < end; ++i, k_row += kv.k.strides[2], v_row += kv.v.strides[2]) {
          if (!wanted.contains(keys.begin + i)) continue;
          k[static_cast<std::size_t>(i)] = k_row;
          v[static_cast<std::size_t>(i)] = v_row;
          is_there[static_cast<std::size_t>(i)] = 1;
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

/// Floats that begin where a cache line does: no vector lies across two.
template <int NumLanes = num_lanes>
class AlignedFloats {
 public:
  explicit AlignedFloats(std::size_t count) : vectors_(ceil_div(count, std::size_t{NumLanes})) {}
  float* data() { return vectors_.empty() ? nullptr : vectors_.data()->values; }

 private:
  struct alignas(NumLanes * sizeof(float)) Vector {
    float values[NumLanes];
  };
  std::vector<Vector> vectors_;
};

}  // namespace detail
}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
