// Reservation: available blocks that nobody else can take.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Blocks that nobody else can take: an admission's promise to requests that run. Move-only; gives back what was not
/// taken. Must not outlive its allocator.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept
      : allocator_(std::exchange(other.allocator_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Reservation& operator=(Reservation&& other) noexcept {
    Reservation taken{std::move(other)};
    std::swap(allocator_, taken.allocator_);
    std::swap(size_, taken.size_);
    return *this;
  }
  ~Reservation() { shrink(size_); }

  int size() const { return size_; }

  /// Gives `num_blocks` of them back.
  void shrink(int num_blocks) {
    require(num_blocks >= 0 && num_blocks <= size_, "Reservation::shrink: blocks at most", size_, num_blocks);
    if (num_blocks == 0) return;
    allocator_->num_reserved_ -= num_blocks;
    size_ -= num_blocks;
    allocator_->trace({.op = TraceOp::give_back, .c = num_blocks});
  }

 private:
  friend class BlockAllocator;
  friend class Sequence;
  Reservation(BlockAllocator* allocator, int size) : allocator_(allocator), size_(size) {}

  void check_allocator(const BlockAllocator& allocator) const {
    require(size_ == 0 || allocator_ == &allocator, "Reservation: allocators", "the same", "another");
  }

  BlockAllocator* allocator_ = nullptr;
  int size_ = 0;
};

inline bool BlockAllocator::allocate(std::span<BlockId> out, Reservation& reservation) {
  reservation.check_allocator(*this);
  trace({.op = TraceOp::outside});
  const int from_reserve = static_cast<int>(min<std::int64_t>(std::ssize(out), reservation.size_));
  if (!make_available(std::ssize(out) - from_reserve)) return false;
  reservation.shrink(from_reserve);
  take(out);
  return true;
}

inline std::optional<Reservation> BlockAllocator::reserve(int num_blocks) {
  require(num_blocks >= 0, "BlockAllocator::reserve: num_blocks", "at least 0", num_blocks);
  const bool succeeded = make_available(num_blocks);
  trace({.op = TraceOp::set_aside, .succeeded = succeeded, .c = num_blocks});
  if (!succeeded) return std::nullopt;
  num_reserved_ += num_blocks;
  return Reservation{this, num_blocks};
}

}  // namespace v0
}  // namespace pagedkv
