// What a step asks of a pool in host memory: copy shared tails once, then store each layer's new rows of K and V.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

namespace detail {

template <class T>
void copy_rows(const View<T, 4>& blocks, const BlockCopy& copy) {
  for (std::int64_t head = 0; head < blocks.extents[1]; ++head) {
    for (std::int64_t slot = 0; slot < copy.num_rows; ++slot) {
      const T* row = blocks.at(to_index(copy.source), head, slot, 0);
      std::copy_n(row, blocks.extents[3], blocks.at(to_index(copy.destination), head, slot, 0));
    }
  }
}

template <class T, class X>
void store_row(const View<T, 4>& blocks, Slot slot, const View<X, 3>& rows, std::int64_t row) {
  const std::int64_t block_size = blocks.extents[2];
  for (std::int64_t head = 0; head < blocks.extents[1]; ++head) {
    const X* source = rows.at(row, head, 0);
    T* target = blocks.at(slot / block_size, head, slot % block_size, 0);
    if constexpr (std::is_same_v<std::remove_const_t<X>, T>) {
      std::copy_n(source, blocks.extents[3], target);
    } else {
      std::transform(source, source + blocks.extents[3], target, [](X x) { return from_float<T>(to_float(x)); });
    }
  }
}

}  // namespace detail

/// Copy-on-write: executes step.copies() in all layers; only the valid rows of a block move. Once a step, before any
/// store_kv. Throws InvalidArgument where a copy does not fit the pool, before anything is written.
template <StorageType T>
void copy_blocks(const StepPlan& step, const KvLayers<T, Space::host>& layers) {
  layers.first.validate();
  for (const BlockCopy& copy : step.copies()) {
    const auto in_pool = [&](BlockId id) { return to_index(id) >= 0 && to_index(id) < layers.first.num_blocks(); };
    require(in_pool(copy.source), "copy_blocks: source block below", layers.first.num_blocks(), to_index(copy.source));
    require(in_pool(copy.destination), "copy_blocks: destination block below", layers.first.num_blocks(),
            to_index(copy.destination));
    require(copy.num_rows <= layers.first.block_size(), "copy_blocks: rows, at most", layers.first.block_size(),
            copy.num_rows);
  }
  for (int i = 0; i < layers.num_layers; ++i) {
    const KvView<T> layer = layers.layer(i);
    for (const BlockCopy& copy : step.copies()) {
      detail::copy_rows(layer.k, copy);
      detail::copy_rows(layer.v, copy);
    }
  }
}

template <StorageType T>
void copy_blocks(const StepPlan& step, KvPool<T>& pool) {
  copy_blocks(step, pool.layers());
}

/// Writes one layer's new rows to step.slots(), in the order of the appends; rows of dead slots are skipped.
///   k  [num_rows, kv_heads, head_dim], v  [num_rows, kv_heads, head_dim_v]; last stride 1; converted X -> T, to
///   nearest
/// Throws InvalidArgument where shapes disagree or a slot is not in the pool, before anything is written.
template <StorageType T, class X>
void store_kv(const StepPlan& step, const KvView<T, Space::host>& layer, const View<X, 3>& k, const View<X, 3>& v) {
  layer.validate();
  const std::span<const Slot> slots = step.slots();
  const auto num_rows = static_cast<std::int64_t>(slots.size());
  require(k.extents[0] == num_rows, "store_kv: k rows like the step's slots,", num_rows, k.extents[0]);
  require(v.extents[0] == num_rows, "store_kv: v rows like the step's slots,", num_rows, v.extents[0]);
  validate_rows("store_kv: k", k, layer.k);
  validate_rows("store_kv: v", v, layer.v);
  const Slot num_slots = layer.num_blocks() * layer.block_size();
  for (const Slot slot : slots) require(slot < num_slots, "store_kv: slot below", num_slots, slot);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const Slot slot = slots[static_cast<std::size_t>(row)];
    if (slot < 0) continue;
    detail::store_row(layer.k, slot, k, row);
    detail::store_row(layer.v, slot, v, row);
  }
}

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
