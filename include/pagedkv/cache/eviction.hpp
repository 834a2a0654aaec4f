// Eviction policies: in which order idle blocks are given up. The prefix cache takes one as a template parameter.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/cache/hash.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/ids.hpp"

namespace pagedkv {
inline namespace v0 {

/// An order over idle blocks. The cache inserts a block when its last owner lets go (deepest block of a sequence first)
/// and removes it when it is used again or evicted. coldest() only proposes: the cache never evicts a prefix before its
/// continuation. prepare() comes before a block's first insert() and may throw; the others may not, since sequences die
/// and steps are committed by way of them.
template <class Policy>
concept EvictionPolicy = std::default_initializable<Policy> &&
    requires(Policy policy, const Policy view, BlockId block) {
  policy.prepare(block);
  policy.insert(block);
  policy.remove(block);
  { view.coldest() } -> std::same_as<BlockId>;
  { view.contains(block) } -> std::same_as<bool>;
  { view.size() } -> std::same_as<int>;
  { view.state_hash() } -> std::same_as<std::uint64_t>;
};

/// Least recently used first: a doubly linked list threaded through an array by block id. O(1) each.
class LruEviction {
 public:
  void prepare(BlockId block) {
    const auto index = static_cast<std::size_t>(to_index(block));
    if (index >= links_.size()) links_.resize(index + 1);
  }

  void insert(BlockId block) {
    PAGEDKV_ASSERT(!contains(block));
    link(block) = {.colder = hottest_, .hotter = BlockId::none, .linked = true};
    (hottest_ == BlockId::none ? coldest_ : link(hottest_).hotter) = block;
    hottest_ = block;
    ++size_;
  }

  void remove(BlockId block) {
    PAGEDKV_ASSERT(contains(block));
    const Link gone = link(block);
    (gone.colder == BlockId::none ? coldest_ : link(gone.colder).hotter) = gone.hotter;
    (gone.hotter == BlockId::none ? hottest_ : link(gone.hotter).colder) = gone.colder;
    link(block) = {};
    --size_;
  }

  /// BlockId::none when there is no idle block.
  BlockId coldest() const { return coldest_; }

  bool contains(BlockId block) const {
    const auto index = static_cast<std::size_t>(to_index(block));
    return index < links_.size() && links_[index].linked;
  }

  int size() const { return size_; }

  std::uint64_t state_hash() const {
    std::uint64_t h = 0;
    for (BlockId block = coldest_; block != BlockId::none;
         block = links_[static_cast<std::size_t>(to_index(block))].hotter)
      h = detail::hash_mix(h, to_index(block));
    return h;
  }

 private:
  struct Link {
    BlockId colder = BlockId::none;
    BlockId hotter = BlockId::none;
    bool linked = false;
  };

  Link& link(BlockId block) { return links_[static_cast<std::size_t>(to_index(block))]; }

  std::vector<Link> links_;
  BlockId coldest_ = BlockId::none;
  BlockId hottest_ = BlockId::none;
  int size_ = 0;
};

static_assert(EvictionPolicy<LruEviction>);

}  // namespace v0
}  // namespace pagedkv
