// SwapSpace: K and V of requests that were pushed out, in blocks of host memory, until there is room for them again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/storage/block_swap.hpp"

namespace engine {

/// Decides which block goes where; the model moves the bytes, first outgoing(), then incoming(), then the step's rows:
/// in this order blocks can be used again at once. A swapped branch is a Sequence of blocks of the host.
class SwapSpace {
 public:
  SwapSpace(pagedkv::BlockAllocator& device, int num_host_blocks) : device_(device) {
    if (num_host_blocks > 0) host_.emplace(pagedkv::BlockAllocatorOptions{num_host_blocks, device.block_size()});
  }

  int num_blocks() const { return host_ ? host_->num_blocks() : 0; }
  int num_free() const { return host_ ? host_->num_free() : 0; }

  /// False: there is nothing to move or no room for it, and nothing has changed. Rows of the open step are lost: they
  /// are not computed yet.
  [[nodiscard]] bool move_out(Request& request) { return host_ && move(request, *host_, outgoing_, 0, 1); }

  /// False: fewer blocks of the device than the request has and `num_spare` more can be had, and nothing has changed.
  [[nodiscard]] bool move_in(Request& request, int num_spare) {
    return move(request, device_, incoming_, num_spare, 0);
  }

  /// Of the step that is being scheduled: from the device to the host, and back.
  std::span<const pagedkv::BlockPair> outgoing() const { return outgoing_; }
  std::span<const pagedkv::BlockPair> incoming() const { return incoming_; }
  void begin_step() {
    outgoing_.clear();
    incoming_.clear();
  }

 private:
  // A block that several branches share goes once, and they share it where it arrives.
  static bool move(Request& request, pagedkv::BlockAllocator& to, std::vector<pagedkv::BlockPair>& moves, int num_spare,
                   std::size_t at_least) {
    std::vector<pagedkv::Sequence> here;  // of unfinished branches, without rows and copies of the open step
    std::vector<pagedkv::BlockId> from;
    for (const Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      here.push_back(branch.kv.fork());
      from.insert(from.end(), here.back().blocks().begin(), here.back().blocks().end());
    }
    std::sort(from.begin(), from.end());
    from.erase(std::unique(from.begin(), from.end()), from.end());
    if (from.size() < at_least) return false;
    if (to.has_dead_tables()) to.drain();
    std::vector<pagedkv::BlockId> fresh(from.size());
    if (to.num_available() < std::ssize(fresh) + num_spare || !to.allocate(fresh)) return false;

    for (std::size_t i = 0; i < from.size(); ++i) moves.push_back({from[i], fresh[i]});
    auto sequence = here.begin();
    for (Branch& branch : request.branches) {
      if (branch.finish != Finish::none) continue;
      std::vector<pagedkv::BlockId> ids;
      for (const pagedkv::BlockId id : sequence->blocks())
        ids.push_back(fresh[static_cast<std::size_t>(std::lower_bound(from.begin(), from.end(), id) - from.begin())]);
      branch.kv = pagedkv::Sequence{to};
      branch.kv.adopt(ids, sequence->size());
      branch.num_published = 0;
      for (int i = 0; i < sequence->size() / to.block_size(); ++i) to.seal(ids[static_cast<std::size_t>(i)]);
      ++sequence;
    }
    to.release(fresh);
    return true;
  }

  pagedkv::BlockAllocator& device_;
  std::optional<pagedkv::BlockAllocator> host_;
  std::vector<pagedkv::BlockPair> outgoing_, incoming_;
};

}  // namespace engine
