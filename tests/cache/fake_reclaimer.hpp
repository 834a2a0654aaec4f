// FakeReclaimer: a prefix cache without prefixes: it evicts idle blocks in the order in which they became idle.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"

namespace pagedkv_test {

/// Installed for its lifetime. The allocator's idle blocks must be the ones in `idle` at any time.
class FakeReclaimer {
 public:
  explicit FakeReclaimer(pagedkv::BlockAllocator& allocator) : allocator_(allocator) {
    allocator.install({.context = this,
                       .became_idle = [](void* self, Blocks blocks) { cast(self).became_idle(blocks); },
                       .left_idle = [](void* self, Blocks blocks) { cast(self).left_idle(blocks); },
                       .evict = [](void* self, int num_blocks) { cast(self).evict(num_blocks); }});
  }
  FakeReclaimer(const FakeReclaimer&) = delete;
  FakeReclaimer& operator=(const FakeReclaimer&) = delete;
  ~FakeReclaimer() {
    evict(static_cast<int>(idle.size()));
    allocator_.uninstall();
  }

  std::vector<pagedkv::BlockId> idle;    // coldest first
  std::vector<pagedkv::BlockId> became;  // every block that was ever told to be idle, in order
  int num_evicted = 0;

 private:
  using Blocks = std::span<const pagedkv::BlockId>;

  static FakeReclaimer& cast(void* self) { return *static_cast<FakeReclaimer*>(self); }

  void became_idle(Blocks blocks) {
    for (const pagedkv::BlockId block : blocks) {
      PAGEDKV_ASSERT(std::ranges::find(idle.end() - std::min<std::ptrdiff_t>(std::ssize(idle), 100), idle.end(),
                                       block) == idle.end());
      idle.push_back(block);
      became.push_back(block);
    }
  }

  void left_idle(Blocks blocks) {
    for (const pagedkv::BlockId block : blocks) {
      const auto found = std::ranges::find(idle, block);
      PAGEDKV_ASSERT(found != idle.end());
      idle.erase(found);
    }
  }

  void evict(int num_blocks) {
    for (int i = 0; i < num_blocks; ++i) allocator_.unpublish(idle.front());
    num_evicted += num_blocks;
  }

  pagedkv::BlockAllocator& allocator_;
};

}  // namespace pagedkv_test
