// What each eviction policy means, in lists that are searched, and traces of use that drive a policy and its model.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <utility>
#include <vector>

#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/eviction_lfu.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

using namespace pagedkv;

using Ids = std::vector<int>;

template <class Policy>
void make_idle(Policy& order, std::initializer_list<int> ids, Retention retention = {}) {
  for (const int i : ids) {
    order.published(BlockId{i}, static_cast<std::uint64_t>(i), retention);
    order.insert(BlockId{i});
  }
}

template <class Policy>
void hit(Policy& order, int i, Retention retention = {}) {
  order.touched(BlockId{i}, retention);
  order.remove(BlockId{i});
  order.insert(BlockId{i});
}

template <class Policy>
std::vector<int> evict_all(Policy& order) {
  std::vector<int> ids;
  for (BlockId block; (block = order.coldest()) != BlockId::none;) {
    order.remove(block);
    order.forgotten(block, static_cast<std::uint64_t>(to_index(block)), true);
    ids.push_back(to_index(block));
  }
  return ids;
}

/// Lists of idle blocks, the coldest first; the first list goes first.
struct NaiveLists {
  std::vector<std::list<BlockId>> lists;

  void add(int list, BlockId block) { lists[static_cast<std::size_t>(list)].push_back(block); }
  void drop(BlockId block) {
    for (auto& list : lists) list.remove(block);
  }
  bool contains(BlockId block) const {
    return std::ranges::any_of(lists, [&](auto& l) { return std::ranges::find(l, block) != l.end(); });
  }
  int size() const {
    std::size_t n = 0;
    for (const auto& list : lists) n += list.size();
    return static_cast<int>(n);
  }
  BlockId coldest() const {
    for (const auto& list : lists)
      if (!list.empty()) return list.front();
    return BlockId::none;
  }
};

struct NaiveLru : NaiveLists {
  explicit NaiveLru(int) : NaiveLists{.lists = std::vector<std::list<BlockId>>(1)} {}
  void published(BlockId, std::uint64_t, Retention) {}
  void touched(BlockId, Retention) {}
  void insert(BlockId block) { add(0, block); }
  void remove(BlockId block) { drop(block); }
  void forgotten(BlockId, std::uint64_t, bool) {}
  void advance(std::int64_t) {}
};

struct NaiveLfu : NaiveLists {
  std::map<BlockId, int> hits;
  int num_blocks, accesses = 0, aged;

  explicit NaiveLfu(int n) : NaiveLists{.lists = std::vector<std::list<BlockId>>(16)}, num_blocks(n), aged(n) {}
  void published(BlockId block, std::uint64_t, Retention) {
    hits[block] = 0;
    access();
  }
  void touched(BlockId block, Retention) {
    hits[block] = std::min(15, hits[block] + 1);
    access();
  }
  void insert(BlockId block) { add(hits[block], block); }
  void remove(BlockId block) { drop(block); }
  void forgotten(BlockId block, std::uint64_t, bool) { hits.erase(block); }
  void advance(std::int64_t) {}
  void access() {
    if (++accesses % 8 != 0) return;
    aged = (aged + num_blocks - 1) % num_blocks;
    const BlockId block{aged};
    if (!hits.contains(block) || hits[block] == 0) return;
    hits[block] /= 2;
    if (!contains(block)) return;
    drop(block);
    insert(block);
  }
};

struct NaiveS3Fifo : NaiveLists {
  std::map<BlockId, int> chances;  // of blocks that belong to the main queue
  detail::GhostKeys ghosts;        // has a test of its own

  explicit NaiveS3Fifo(int n) : NaiveLists{.lists = std::vector<std::list<BlockId>>(2)}, ghosts(n) {}
  void published(BlockId block, std::uint64_t key, Retention) {
    if (ghosts.take(key)) chances[block] = 0;
  }
  void touched(BlockId block, Retention) {
    if (!chances.contains(block))
      chances[block] = 0;
    else
      chances[block] = std::min(3, chances[block] + 1);
  }
  void insert(BlockId block) { add(chances.contains(block) ? 1 : 0, block); }
  void remove(BlockId block) { drop(block); }
  void forgotten(BlockId block, std::uint64_t key, bool evicted) {
    const bool was_main = chances.erase(block) == 1;
    if (evicted && !was_main) ghosts.add(key);
    for (int i = 0; evicted && was_main && i < 8 && !lists[1].empty() && chances[lists[1].front()] > 0; ++i) {
      --chances[lists[1].front()];
      lists[1].splice(lists[1].end(), lists[1], lists[1].begin());
    }
  }
  void advance(std::int64_t) {}
  BlockId coldest() const {
    const auto& small = lists[0];
    const auto& main = lists[1];
    if (main.empty() || small.size() * 10 >= small.size() + main.size()) return NaiveLists::coldest();
    int looked = 0;
    for (const BlockId block : main)
      if (looked++ < 8 && chances.at(block) == 0) return block;
    return main.front();
  }
};

struct NaivePriority : NaiveLists {
  std::map<BlockId, Retention> kept;
  std::map<BlockId, int> idle_since;
  std::int64_t time = std::numeric_limits<std::int64_t>::min();
  int num_inserts = 0;

  explicit NaivePriority(int) : NaiveLists{.lists = std::vector<std::list<BlockId>>(17)} {}
  bool is_expired(BlockId block) const { return kept.at(block).expires_at <= time; }
  void published(BlockId block, std::uint64_t, Retention retention) { kept[block] = retention; }
  void touched(BlockId block, Retention retention) {
    Retention& old = kept[block];
    if (is_expired(block) || retention.priority > old.priority)
      old = retention;
    else if (retention.priority == old.priority)
      old.expires_at = std::max(old.expires_at, retention.expires_at);
  }
  void insert(BlockId block) {
    idle_since[block] = ++num_inserts;
    add(is_expired(block) ? 0 : 1 + kept[block].priority, block);
  }
  void remove(BlockId block) { drop(block); }
  void forgotten(BlockId block, std::uint64_t, bool) { kept.erase(block); }
  void advance(std::int64_t now) {
    time = std::max(time, now);
    std::vector<BlockId> passed;
    for (std::size_t level = 1; level < lists.size(); ++level)
      std::ranges::copy_if(lists[level], std::back_inserter(passed), [&](BlockId b) { return is_expired(b); });
    std::ranges::sort(passed, {}, [&](BlockId b) { return std::pair(kept[b].expires_at, idle_since[b]); });
    for (const BlockId block : passed) {
      drop(block);
      add(0, block);
    }
  }
};

template <class Policy>
struct ModelOf;
template <>
struct ModelOf<LruEviction> {
  using type = NaiveLru;
};
template <>
struct ModelOf<LfuEviction> {
  using type = NaiveLfu;
};
template <>
struct ModelOf<S3FifoEviction> {
  using type = NaiveS3Fifo;
};
template <>
struct ModelOf<PriorityEviction> {
  using type = NaivePriority;
};

/// Which key is used next.
enum class Trace { zipf, scan, loop, burst };

class Keys {
 public:
  Keys(Trace trace, int num_keys, std::uint64_t seed) : trace_(trace), num_keys_(num_keys), random_(seed) {}

  int next() {
    switch (trace_) {
      case Trace::zipf: {  // the k-th key about 1 / k as often as the first
        const double u = (random_.real(1.f) + 1.) / 2.;
        return std::min(num_keys_ - 1, static_cast<int>(std::pow(num_keys_, u)) - 1);
      }
      case Trace::scan:  // a few hot keys, and keys that never come back
        return random_.one_in(3) ? random_.between(0, num_keys_ / 8) : num_keys_ + ++step_;
      case Trace::loop:  // each key once a round, in order
        return ++step_ % num_keys_;
      case Trace::burst:  // 16 uses of a key, then another
        if (++step_ % 16 == 1) current_ = random_.between(0, num_keys_ - 1);
        return current_;
    }
    return 0;
  }

 private:
  Trace trace_;
  int num_keys_, step_ = 0, current_ = 0;
  Random random_;
};

/// A cache of single blocks: what the prefix cache tells its policy, without prefixes.
template <class Order>
class Residents {
 public:
  explicit Residents(int num_blocks) : order(num_blocks), keys_(static_cast<std::size_t>(num_blocks)) {
    for (int i = num_blocks; i-- > 0;) free_.push_back(BlockId{i});
  }

  bool contains(int key) const { return blocks_.contains(key); }
  int num_hits = 0;

  /// Takes the key's block into use; evicts for it when there is no room. none: every block is in use.
  BlockId use(int key, Retention retention = {}) {
    if (const auto found = blocks_.find(key); found != blocks_.end()) {
      ++num_hits;
      order.touched(found->second, retention);
      if (order.contains(found->second)) order.remove(found->second);
      return found->second;
    }
    if (free_.empty() && !drop(order.coldest(), true)) return BlockId::none;
    const BlockId block = free_.back();
    free_.pop_back();
    order.published(block, hash(key), retention);
    blocks_[key] = block;
    keys_[static_cast<std::size_t>(to_index(block))] = key;
    return block;
  }

  void use_once(int key, Retention retention = {}) {
    if (const BlockId block = use(key, retention); block != BlockId::none) order.insert(block);
  }

  bool drop(BlockId block, bool evicted) {
    if (block == BlockId::none) return false;
    const int key = keys_[static_cast<std::size_t>(to_index(block))];
    order.remove(block);
    order.forgotten(block, hash(key), evicted);
    blocks_.erase(key);
    free_.push_back(block);
    return true;
  }

  Order order;

 private:
  static std::uint64_t hash(int key) { return static_cast<std::uint64_t>(key) * 7919; }

  std::vector<BlockId> free_;
  std::vector<int> keys_;
  std::map<int, BlockId> blocks_;
};

}  // namespace pagedkv_test
