// The audit of BlockAllocator: what must always be true of it, and its state as one number.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

inline void BlockAllocator::check_invariants() const {
  [[maybe_unused]] std::array<std::int32_t, 4> counts{};
  std::vector<std::uint32_t> named(static_cast<std::size_t>(num_fresh_));
  nodes_.for_each_leaf([&](std::span<const BlockId> blocks) {
    for (const BlockId id : blocks)
      if (id != BlockId::none) ++named[static_cast<std::size_t>(to_index(id))];
  });
  [[maybe_unused]] std::int64_t num_guards = 0;
  for (std::int32_t i = 0; i < num_fresh_; ++i) {
    const BlockId id{i};
    const detail::BlockRecords::Pins pins = records_.pins(id);
    ++counts[static_cast<std::size_t>(records_.place(id))];
    num_guards += pins.guards;
    PAGEDKV_ASSERT(records_.users(id) >= std::uint32_t{pins.guards} + pins.holds);
    PAGEDKV_ASSERT(records_.owners(id) >= named[static_cast<std::size_t>(i)] && "each chunk that names it owns it");
    PAGEDKV_ASSERT(pins.holds > 0 || pins.held_rows == 0);
    PAGEDKV_ASSERT(!records_.is_published(id) || records_.is_sealed(id));
  }
  PAGEDKV_ASSERT(counts[static_cast<std::size_t>(detail::Place::free)] == num_recycled_);
  PAGEDKV_ASSERT(counts[static_cast<std::size_t>(detail::Place::used)] == num_used());
  PAGEDKV_ASSERT(counts[static_cast<std::size_t>(detail::Place::idle)] == num_idle_);
  PAGEDKV_ASSERT(counts[static_cast<std::size_t>(detail::Place::quarantined)] == num_quarantined_);
  PAGEDKV_ASSERT(num_guards == std::ssize(guards_));
  PAGEDKV_ASSERT(num_reserved_ >= 0 && num_available() >= 0);
  std::vector<bool> listed(static_cast<std::size_t>(num_fresh_));
  for (std::int32_t i = 0; i < num_recycled_; ++i) {
    [[maybe_unused]] const BlockId id = recycled_[static_cast<std::size_t>(i)];
    PAGEDKV_ASSERT(records_.place(id) == detail::Place::free);
    PAGEDKV_ASSERT(!listed[static_cast<std::size_t>(to_index(id))] && "a free block is listed once");
    listed[static_cast<std::size_t>(to_index(id))] = true;
  }
  nodes_.check_invariants();
}

inline std::uint64_t BlockAllocator::state_hash() const {
  std::uint64_t h =
      detail::hash_mix(detail::hash_mix(static_cast<std::uint64_t>(num_blocks_), block_size_), num_reserved_);
  for (std::int32_t i = 0; i < num_fresh_; ++i) {
    const BlockId id{i};
    const detail::BlockRecords::Pins pins = records_.pins(id);
    h = detail::hash_mix(h, static_cast<std::int32_t>(state(id)));
    if (records_.place(id) == detail::Place::free) continue;
    h = detail::hash_mix(h, records_.is_published(id) * 2 + records_.is_sealed(id));
    h = detail::hash_mix(h, static_cast<std::int32_t>(records_.users(id)));
    h = detail::hash_mix(h, static_cast<std::uint64_t>(pins.guards) << 16 | pins.holds);
    h = detail::hash_mix(h, pins.held_rows);
  }
  for (std::int32_t i = 0; i < num_recycled_; ++i)
    h = detail::hash_mix(h, to_index(recycled_[static_cast<std::size_t>(i)]));
  for (const Guard& guard : guards_) h = detail::hash_mix(detail::hash_mix(h, guard.fence), to_index(guard.block));
  return detail::hash_mix(h, nodes_.state_hash());
}

}  // namespace v0
}  // namespace pagedkv
