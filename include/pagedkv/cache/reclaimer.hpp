// Reclaimer: how the allocator tells a prefix cache which blocks are idle, and asks it for some back.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// What a prefix cache installs so that the blocks it publishes outlive their owners. The order in which idle blocks
/// are given up belongs to the cache. None of the functions may throw or call the allocator back, but evict().
struct Reclaimer {
  void* context = nullptr;
  void (*became_idle)(void* context, std::span<const BlockId> blocks) = nullptr;  // deepest of a sequence first
  void (*left_idle)(void* context, std::span<const BlockId> blocks) = nullptr;
  void (*evict)(void* context, int num_blocks) = nullptr;  // must unpublish exactly so many idle blocks
};

namespace detail {

/// Gathers blocks for one of the reclaimer's functions.
class ReclaimerBatch {
 public:
  ReclaimerBatch(void* context, void (*send)(void*, std::span<const BlockId>)) : context_(context), send_(send) {}
  ReclaimerBatch(const ReclaimerBatch&) = delete;
  ReclaimerBatch& operator=(const ReclaimerBatch&) = delete;
  ~ReclaimerBatch() { flush(); }
  void add(BlockId id) {
    if (count_ == blocks_.size()) flush();
    blocks_[count_++] = id;
  }
  void flush() {
    if (count_ > 0) send_(context_, {blocks_.data(), count_});
    count_ = 0;
  }

 private:
  void* context_;
  void (*send_)(void*, std::span<const BlockId>);
  std::size_t count_ = 0;
  std::array<BlockId, 64> blocks_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
