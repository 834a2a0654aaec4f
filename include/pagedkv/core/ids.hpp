// Integers and places that do not mix: a block's id is not a count, a host address is not a device address.
#pragma once

#include <cstdint>

#include "pagedkv/core/config.hpp"

namespace pagedkv {
inline namespace v0 {

/// Names one block of KV memory in all layers. `none` stands where a sliding window has dropped a block.
enum class BlockId : std::int32_t { none = -1 };

PAGEDKV_HD constexpr std::int32_t to_index(BlockId id) { return static_cast<std::int32_t>(id); }

/// Where a pointer may be read.
enum class Space { host, device };

/// One token's place in a pool: block id * block_size + offset in the block.
/// Negative: the row is dead and nothing is stored.
using Slot = std::int64_t;
inline constexpr Slot dead_slot = -1;

}  // namespace v0
}  // namespace pagedkv
