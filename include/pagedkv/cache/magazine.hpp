// Magazines: the free ids that lie with one thread, and the lock under which a thread in need comes for them.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>

#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// What the concurrent allocator runs on. Tests put a scheduler in its place that decides at every step who runs next.
struct RealThreads {
  using Mutex = std::mutex;
  static constexpr std::size_t magazine_size = 64;   // ids that change places at once
  static void step() {}                              // called before every access to what threads share
  static void wait() { std::this_thread::yield(); }  // called while another thread holds a lock
};

/// For sections of a few nanoseconds that are hardly ever contended: letting go is a plain store.
template <class Threads>
class SpinLock {
 public:
  void lock() {
    Threads::step();
    while (locked_.exchange(true, std::memory_order_acquire))
      while (locked_.load(std::memory_order_relaxed)) Threads::wait();
  }
  void unlock() {
    Threads::step();
    locked_.store(false, std::memory_order_release);
  }

 private:
  std::atomic<bool> locked_{false};
};

/// The free ids of one thread, on cache lines of their own: room for two magazines, so that a thread that takes and
/// gives around the edge of one does not go to the depot each time (Bonwick and Adams, Magazines and Vmem, USENIX ATC
/// 2001, section 3.1).
///
/// Others may take ids away, the oldest first, so the owner pays for taking some: one exchange. No algorithm spares it,
/// as the answer "none" is exact (Attiya et al., Laws of Order, POPL 2011). Giving costs none: only the owner adds ids,
/// at an end that nobody else moves. To take ids the owner holds `lock` or the depot's, others hold both.
template <class Threads, class Pool>
struct alignas(64) Stock {
  static constexpr std::size_t capacity = 2 * Threads::magazine_size;
  static_assert((capacity & (capacity - 1)) == 0, "begin and end may wrap around");

  SpinLock<Threads> lock;
  std::atomic<std::uint32_t> begin{0};  // ids begin .. end - 1 of a ring
  std::atomic<std::uint32_t> end{0};    // written by the owner alone
  std::int32_t leaving = 0;             // the count of a block that this owner released last and is about to push
  Pool* pool = nullptr;                 // null once the pool is gone
  Stock* next = nullptr;                // of the same pool
  Stock* previous = nullptr;
  std::array<BlockId, capacity> ring;

  BlockId& at(std::uint32_t position) { return ring[position % capacity]; }

  std::size_t size() const {
    Threads::step();
    return end.load(std::memory_order_acquire) - begin.load(std::memory_order_acquire);
  }

  bool is_full() const { return size() == capacity; }

  /// For the owner, without a lock; there is room.
  void push(BlockId id) {
    const std::uint32_t last = end.load(std::memory_order_relaxed);
    Threads::step();
    at(last) = id;
    end.store(last + 1, std::memory_order_release);
  }

  /// For the owner: fills `out`, the newest id first, or changes nothing.
  bool take(std::span<BlockId> out) {
    const std::lock_guard guard(lock);
    if (out.size() > size()) return false;
    take_newest(out);
    return true;
  }

  /// For the owner, under one of the two locks; there are enough.
  void take_newest(std::span<BlockId> out) {
    std::uint32_t last = end.load(std::memory_order_relaxed);
    for (BlockId& id : out) id = at(--last);
    end.store(last, std::memory_order_relaxed);
  }

  /// Under both locks, or by the owner under the depot's; there are enough. The oldest id first.
  void take_oldest(std::span<BlockId> out) {
    std::uint32_t first = begin.load(std::memory_order_relaxed);
    for (BlockId& id : out) id = at(first++);
    Threads::step();
    begin.store(first, std::memory_order_release);
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
