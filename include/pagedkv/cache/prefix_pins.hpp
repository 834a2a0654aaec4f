// PrefixPins: prefixes that stay in memory on request, within a budget of blocks; the oldest ones give way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// Names a pinned prefix. Not used again when the pin is gone.
enum class PinId : std::uint64_t {};

namespace detail {

/// Each pin is an owner of its blocks. A block counts once, however many pins share it. Few, so lists; a pin costs
/// O(its blocks + all pinned blocks).
class PrefixPins {
 public:
  PrefixPins(BlockAllocator& allocator, int budget) : allocator_(allocator), budget_(budget) {
    require(budget >= 0, "PrefixCacheOptions: pin_budget", "at least 0", budget);
  }

  bool empty() const { return pins_.empty(); }

  /// Blocks in any pin.
  int num_blocks() const { return static_cast<int>(blocks_.size()); }

  /// Pins blocks that are published. `num_dropped` counts the older pins that had to go for it. nullopt, and no change,
  /// if the budget is too small for this pin alone.
  std::optional<PinId> pin(std::span<const BlockId> blocks, std::int64_t& num_dropped) {
    if (std::ssize(blocks) > budget_) return std::nullopt;
    pins_.reserve(pins_.size() + 1);
    blocks_.reserve(blocks_.size() + blocks.size());
    std::vector<BlockId> sorted(blocks.begin(), blocks.end());  // by id, for counting
    std::sort(sorted.begin(), sorted.end());
    Pin added{.id = next_id_, .blocks = {blocks.begin(), blocks.end()}};
    allocator_.retain(blocks);
    pins_.push_back(std::move(added));
    next_id_ = PinId{static_cast<std::uint64_t>(next_id_) + 1};
    count(sorted);
    for (; num_blocks() > budget_; ++num_dropped) drop(pins_.begin());
    return pins_.back().id;
  }

  /// False if the pin is not there (any more).
  bool unpin(PinId id) {
    const auto pin = std::find_if(pins_.begin(), pins_.end(), [id](const Pin& p) { return p.id == id; });
    if (pin == pins_.end()) return false;
    drop(pin);
    return true;
  }

  /// Blocks of a pin; 0 if it is not there.
  int num_blocks(PinId id) const {
    const auto pin = std::find_if(pins_.begin(), pins_.end(), [id](const Pin& p) { return p.id == id; });
    return pin == pins_.end() ? 0 : static_cast<int>(pin->blocks.size());
  }

  void clear() {
    while (!pins_.empty()) drop(pins_.begin());
  }

  /// Blocks that would be idle but for the pins, those in `without` not counted.
  int num_freeable(std::span<const BlockId> without) const {
    int freeable = 0;
    for (const Counted& counted : blocks_) freeable += is_freeable(counted);
    if (freeable == 0) return 0;
    for (const BlockId block : without) {
      const auto at = find(block);
      if (at != blocks_.end() && at->block == block) freeable -= is_freeable(*at);
    }
    return freeable;
  }

  void check_invariants() const {
    std::vector<BlockId> all;
    for (const Pin& pin : pins_) all.insert(all.end(), pin.blocks.begin(), pin.blocks.end());
    [[maybe_unused]] std::size_t num_counted = 0;
    for (const Counted& counted : blocks_) {
      num_counted += static_cast<std::size_t>(counted.num_pins);
      PAGEDKV_ASSERT(counted.num_pins == std::count(all.begin(), all.end(), counted.block));
      PAGEDKV_ASSERT(allocator_.ref_count(counted.block) >= counted.num_pins);
    }
    PAGEDKV_ASSERT(num_counted == all.size() && num_blocks() <= budget_);
  }

  std::uint64_t state_hash() const {
    std::uint64_t h = static_cast<std::uint64_t>(next_id_);
    for (const Pin& pin : pins_) {
      h = hash_mix(h, static_cast<std::uint64_t>(pin.id));
      for (const BlockId block : pin.blocks) h = hash_mix(h, to_index(block));
    }
    return h;
  }

 private:
  struct Pin {
    PinId id;
    std::vector<BlockId> blocks;
  };

  struct Counted {
    BlockId block;
    int num_pins;
  };

  bool is_freeable(const Counted& counted) const { return allocator_.ref_count(counted.block) == counted.num_pins; }

  std::vector<Counted>::const_iterator find(BlockId block) const {
    return std::lower_bound(blocks_.begin(), blocks_.end(), block,
                            [](const Counted& counted, BlockId b) { return counted.block < b; });
  }

  // Merges ascending blocks into the counts, from the back; there is room.
  void count(std::span<const BlockId> sorted) {
    std::size_t num_new = 0;
    for (const BlockId block : sorted) {
      const auto at = find(block);
      num_new += at == blocks_.end() || at->block != block;
    }
    std::size_t from = blocks_.size();
    std::size_t to = from + num_new;
    blocks_.resize(to);
    for (auto block = sorted.rbegin(); block != sorted.rend(); ++block) {
      while (from > 0 && blocks_[from - 1].block > *block) blocks_[--to] = blocks_[--from];
      if (from > 0 && blocks_[from - 1].block == *block) {
        ++blocks_[from - 1].num_pins;
      } else {
        blocks_[--to] = {.block = *block, .num_pins = 1};
      }
    }
  }

  void drop(std::vector<Pin>::iterator pin) {
    for (const BlockId block : pin->blocks) --blocks_[static_cast<std::size_t>(find(block) - blocks_.begin())].num_pins;
    std::erase_if(blocks_, [](const Counted& counted) { return counted.num_pins == 0; });
    allocator_.release(pin->blocks);
    pins_.erase(pin);
  }

  BlockAllocator& allocator_;
  int budget_;
  PinId next_id_{1};
  std::vector<Pin> pins_;        // the oldest first
  std::vector<Counted> blocks_;  // ascending
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
