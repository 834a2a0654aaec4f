// ConcurrentBlockAllocator: block ids and reference counts for engines whose threads take and free blocks at once.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/magazine.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// Hands out block ids and counts their owners, from any number of threads. Each thread works through a Magazine of its
/// own, a stock of at most 128 free ids; stocks trade 64 ids at a time with one depot (Bonwick and Adams, Magazines and
/// Vmem, USENIX ATC 2001). A block may be released through any magazine: it stays in that one, and 64 of them travel on
/// together, as remote frees do in snmalloc (Lietar et al., ISMM 2019).
///
/// It is no BlockAllocator: sequences, step plans and prefix caches do not run on it, and it has no holds, no
/// quarantine and no eviction. Which ids a thread gets depends on what the others do. 8 bytes a block, the first four
/// written when its id is handed out for the first time.
///
/// Exact: a request is refused only if, at one moment of the call, fewer blocks were free than it asks for, wherever
/// they lay; a thread whose own stock and the depot fall short empties the stocks of the others. A call that throws
/// changes nothing, unless other threads change the same blocks meanwhile. What every owner of a block did before its
/// release happens before what the next owner does after its allocate.
///
/// For many cores or small requests. Every release is an atomic exchange per block, 5 to 7 ns, so that even two threads
/// that free one block at the same moment find out; a BlockAllocator under a std::mutex has no such price and, on few
/// cores with requests of 16 blocks and more, is the faster choice (bench/concurrent_allocator_bench.cpp).
///
/// `Threads` is a seam for tests; use the alias ConcurrentBlockAllocator.
template <class Threads>
class BasicConcurrentBlockAllocator {
  using Stock = detail::Stock<Threads, BasicConcurrentBlockAllocator>;

 public:
  class Magazine;

  /// O(1) for any number of blocks, 1 .. 2^31 - 2.
  explicit BasicConcurrentBlockAllocator(std::int32_t num_blocks) : num_blocks_(num_blocks) {
    require(num_blocks >= 1 && num_blocks <= max_blocks, "ConcurrentBlockAllocator: num_blocks", "1 .. 2147483646",
            num_blocks);
    counts_ = std::make_unique_for_overwrite<Count[]>(static_cast<std::size_t>(num_blocks));
    recycled_ = std::make_unique_for_overwrite<BlockId[]>(static_cast<std::size_t>(num_blocks));
  }
  BasicConcurrentBlockAllocator(const BasicConcurrentBlockAllocator&) = delete;  // magazines hold its address
  BasicConcurrentBlockAllocator& operator=(const BasicConcurrentBlockAllocator&) = delete;
  ~BasicConcurrentBlockAllocator() {
    PAGEDKV_ASSERT(stocks_ == nullptr && "a magazine outlives its allocator");
    PAGEDKV_ASSERT(num_recycled_ == num_begun() && "a block outlives its allocator");
    for (Stock* stock = stocks_; stock != nullptr; stock = stock->next) stock->pool = nullptr;
  }

  int num_blocks() const { return num_blocks_; }

  /// Blocks without an owner, in the depot and in all magazines; exact at one moment of the call. It stops all threads
  /// for that moment: O(magazines), not for every step.
  int num_available() const {
    const std::lock_guard depot(depot_);
    lock_stocks(nullptr);
    const std::size_t total = num_in_stocks() + num_in_depot();
    unlock_stocks(nullptr);
    return static_cast<int>(total);
  }

  /// Number of owners; 0 for a free block and for a foreign id. Only an owner can rely on the answer.
  std::int32_t ref_count(BlockId id) const {
    return is_known(id) ? std::max(0, count(id).load(std::memory_order_relaxed)) : 0;
  }

  /// Asserts that every free id lies in exactly one place. While no thread is inside a call; O(blocks ever used).
  void check_invariants() const {
    const std::lock_guard depot(depot_);
    std::vector<bool> is_free(num_begun());
    [[maybe_unused]] const auto mark = [&](BlockId id) {
      PAGEDKV_ASSERT(is_known(id) && !is_free[index(id)] && "a free id lies in one place");
      is_free[index(id)] = true;
    };
    for (std::size_t i = 0; i < num_recycled_; ++i) mark(recycled_[i]);
    for (Stock* stock = stocks_; stock != nullptr; stock = stock->next)
      for (std::uint32_t i = stock->begin; i != stock->end; ++i) mark(stock->at(i));
    for (std::size_t i = 0; i < is_free.size(); ++i) {
      [[maybe_unused]] const std::int32_t owners = counts_[i].value.load(std::memory_order_relaxed);
      PAGEDKV_ASSERT(is_free[i] ? owners == 0 : owners > 0);
    }
  }

 private:
  static constexpr std::int32_t max_blocks = std::numeric_limits<std::int32_t>::max() - 1;

  // Owners of a block; 0: free, or about to be handed out; negative: a stock's `leaving`. Made when its id leaves the
  // depot for the first time, hence the union: an array of atomics would be written at construction.
  struct Count {
    Count() noexcept {}
    union {
      std::atomic<std::int32_t> value;
    };
  };

  static std::size_t index(BlockId id) { return static_cast<std::size_t>(to_index(id)); }
  std::atomic<std::int32_t>& count(BlockId id) const { return counts_[index(id)].value; }
  std::size_t num_begun() const { return num_begun_.load(std::memory_order_acquire); }
  bool is_known(BlockId id) const { return to_index(id) >= 0 && index(id) < num_begun(); }
  std::size_t num_in_depot() const { return num_recycled_ + static_cast<std::size_t>(num_blocks_) - num_begun(); }

  // False: the block is foreign or has no owner, or as many as can be counted.
  bool add_owner(BlockId id) {
    if (!is_known(id)) return false;
    Threads::step();
    std::int32_t owners = count(id).load(std::memory_order_relaxed);
    do {
      if (owners <= 0 || owners == std::numeric_limits<std::int32_t>::max()) return false;
      Threads::step();
    } while (!count(id).compare_exchange_weak(owners, owners + 1, std::memory_order_relaxed));
    return true;
  }

  // False: the block is foreign or has no owner. The last owner leaves `leaving` behind.
  bool drop_owner(BlockId id, std::int32_t leaving) {
    if (!is_known(id)) return false;
    Threads::step();
    std::int32_t owners = count(id).load(std::memory_order_relaxed);
    do {
      if (owners <= 0) return false;
      Threads::step();
    } while (!count(id).compare_exchange_weak(owners, owners == 1 ? leaving : owners - 1, std::memory_order_acq_rel,
                                              std::memory_order_relaxed));
    return true;
  }

  // The slow half of an allocation, for the owner of `stock`, who found too few ids there: they come from the stock and
  // the depot, if need be from all stocks; then the stock is filled up with one magazine.
  bool take(Stock& stock, std::span<BlockId> out) {
    const std::lock_guard depot(depot_);
    if (out.size() > stock.size() + num_in_depot() && !gather(stock, out.size())) return false;
    const std::size_t num_own = std::min(out.size(), stock.size());
    stock.take_newest(out.first(num_own));
    take_from_depot(out.subspan(num_own));
    if (stock.size() > 0) return true;
    std::array<BlockId, Threads::magazine_size> magazine;
    const std::size_t num_more = std::min(magazine.size(), num_in_depot());
    take_from_depot(std::span(magazine).first(num_more));
    for (std::size_t i = num_more; i-- > 0;) stock.push(magazine[i]);
    return true;
  }

  // Brings home the ids of all other stocks, if then there are `wanted`. Nobody takes any while all locks are held, and
  // what is given back meanwhile only adds to the sum: if it is too small, so was the truth when the last was locked.
  bool gather(const Stock& mine, std::size_t wanted) {
    lock_stocks(&mine);
    const bool enough = num_in_stocks() + num_in_depot() >= wanted;
    for (Stock* stock = stocks_; stock != nullptr && enough; stock = stock->next)
      if (stock != &mine) put_oldest(*stock, stock->size());
    unlock_stocks(&mine);
    return enough;
  }

  std::size_t num_in_stocks() const {
    std::size_t num_ids = 0;
    for (const Stock* stock = stocks_; stock != nullptr; stock = stock->next) num_ids += stock->size();
    return num_ids;
  }

  // Only the holder of depot_ holds more than one stock's lock, and nobody waits for depot_ with a stock's lock held.
  void lock_stocks(const Stock* except) const {
    for (Stock* stock = stocks_; stock != nullptr; stock = stock->next)
      if (stock != except) stock->lock.lock();
  }

  void unlock_stocks(const Stock* except) const {
    for (Stock* stock = stocks_; stock != nullptr; stock = stock->next)
      if (stock != except) stock->lock.unlock();
  }

  // Last freed first, then ids never used before in their order. There are enough.
  void take_from_depot(std::span<BlockId> out) {
    const std::size_t num_old = std::min(out.size(), num_recycled_);
    for (BlockId& id : out.first(num_old)) id = recycled_[--num_recycled_];
    std::size_t begun = num_begun_.load(std::memory_order_relaxed);
    for (BlockId& id : out.subspan(num_old)) {
      ::new (&counts_[begun].value) std::atomic<std::int32_t>(0);
      id = BlockId{static_cast<std::int32_t>(begun++)};
    }
    if (num_old < out.size()) num_begun_.store(begun, std::memory_order_release);
  }

  void put_oldest(Stock& stock, std::size_t num_ids) {
    stock.take_oldest({recycled_.get() + num_recycled_, num_ids});
    num_recycled_ += num_ids;
  }

  void make_room(Stock& stock) {
    const std::lock_guard depot(depot_);
    put_oldest(stock, std::min(stock.size(), Threads::magazine_size));  // others may have been there first
  }

  void enter(Stock& stock) {
    const std::lock_guard depot(depot_);
    stock.pool = this;
    stock.leaving = -1 - static_cast<std::int32_t>(num_entered_++ % (1u << 30));
    stock.next = stocks_;
    if (stocks_ != nullptr) stocks_->previous = &stock;
    stocks_ = &stock;
  }

  void leave(Stock& stock) {
    const std::lock_guard depot(depot_);
    put_oldest(stock, stock.size());
    (stock.previous != nullptr ? stock.previous->next : stocks_) = stock.next;
    if (stock.next != nullptr) stock.next->previous = stock.previous;
  }

  // Read by every call, hardly ever written once all ids have been used.
  std::int32_t num_blocks_;
  std::atomic<std::size_t> num_begun_{0};  // ids below it have been used; written under depot_
  std::unique_ptr<Count[]> counts_;

  alignas(64) mutable typename Threads::Mutex depot_;
  std::unique_ptr<BlockId[]> recycled_;  // ids in the depot that have been used before; the newest last
  std::size_t num_recycled_ = 0;
  Stock* stocks_ = nullptr;
  std::uint32_t num_entered_ = 0;
};

/// One thread's stock of free ids, through which it takes and gives blocks. Any thread may use it, one at a time.
/// allocate() costs one uncontended exchange, release() and retain() one on the count of each block; the depot is
/// locked about once in 64 blocks, and once for a larger request.
template <class Threads>
class BasicConcurrentBlockAllocator<Threads>::Magazine {
 public:
  /// `blocks` must outlive it.
  explicit Magazine(BasicConcurrentBlockAllocator& blocks) : stock_(std::make_unique<Stock>()) {
    blocks.enter(*stock_);
  }
  Magazine(Magazine&&) noexcept = default;
  Magazine& operator=(Magazine&& other) noexcept {
    Magazine taken(std::move(other));
    stock_.swap(taken.stock_);
    return *this;
  }
  /// Its ids go to the depot.
  ~Magazine() {
    if (stock_ != nullptr && stock_->pool != nullptr) stock_->pool->leave(*stock_);
  }

  /// Fills `out` with distinct blocks, each with one owner, and returns true; or returns false and changes nothing.
  [[nodiscard]] bool allocate(std::span<BlockId> out) {
    BasicConcurrentBlockAllocator& pool = open("allocate");
    if (!stock_->take(out) && !pool.take(*stock_, out)) return false;
    for (const BlockId id : out) {
      Threads::step();
      pool.count(id).store(1, std::memory_order_relaxed);
    }
    return true;
  }

  /// Adds one owner to each block, which must have one. Throws InvalidArgument when a block has none.
  void retain(std::span<const BlockId> ids) {
    BasicConcurrentBlockAllocator& pool = open("retain");
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (pool.add_owner(ids[i])) continue;
      release(ids.first(i));
      fail(ids[i], "retain", "1 .. 2147483646 owners");
    }
  }

  /// Takes one owner from each block, one by one; blocks without owners are free, the last of `ids` first. Throws
  /// InvalidArgument when a block has fewer owners than it is named here. An id that was given back too early and has
  /// been handed out again since cannot be told from the new one.
  void release(std::span<const BlockId> ids) {
    BasicConcurrentBlockAllocator& pool = open("release");
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (pool.drop_owner(ids[i], stock_->leaving)) continue;
      for (std::size_t undone = i; undone-- > 0;) restore_owner(ids[undone]);
      fail(ids[i], "release", "an owner");
    }
    while (!settle(ids)) pool.make_room(*stock_);
  }

 private:
  BasicConcurrentBlockAllocator& open(const char* operation) const {
    if (stock_ == nullptr || stock_->pool == nullptr) [[unlikely]]
      require(false, "ConcurrentBlockAllocator::Magazine::" + std::string(operation) + ": a magazine", "of a live pool",
              stock_ == nullptr ? "a moved-from one" : "one that outlives its pool");
    return *stock_->pool;
  }

  void fail(BlockId id, const char* operation, const char* expected) const {
    const bool known = stock_->pool->is_known(id);
    const std::string what = "ConcurrentBlockAllocator::Magazine::" + std::string(operation) + ": block " +
                             std::to_string(to_index(id)) + ":";
    require(false, what, expected, known ? std::to_string(stock_->pool->ref_count(id)) : "a foreign id");
  }

  // Moves the blocks that this owner released last into the stock, from the back of `ids`, and drops from `ids` what it
  // has seen; false: the stock is full. Neither another owner's last release nor a free block carries our mark.
  bool settle(std::span<const BlockId>& ids) {
    for (; !ids.empty(); ids = ids.first(ids.size() - 1)) {
      std::atomic<std::int32_t>& owners = stock_->pool->count(ids.back());
      Threads::step();
      if (owners.load(std::memory_order_relaxed) != stock_->leaving) continue;
      if (stock_->is_full()) return false;
      owners.store(0, std::memory_order_relaxed);
      stock_->push(ids.back());
    }
    return true;
  }

  // Gives back the owner that drop_owner() took. Should other threads have freed the block meanwhile, it stays free.
  void restore_owner(BlockId id) {
    std::atomic<std::int32_t>& owners = stock_->pool->count(id);
    std::int32_t leaving = stock_->leaving;
    if (!owners.compare_exchange_strong(leaving, 1, std::memory_order_relaxed)) stock_->pool->add_owner(id);
  }

  std::unique_ptr<Stock> stock_;
};

using ConcurrentBlockAllocator = BasicConcurrentBlockAllocator<detail::RealThreads>;

}  // namespace v0
}  // namespace pagedkv
