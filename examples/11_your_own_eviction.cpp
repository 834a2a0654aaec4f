// An eviction policy of your own: what nobody ever hit goes first, so one-time prompts spare the system prompt.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "letter_cache.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

using namespace pagedkv;

namespace {

/// Blocks that no request ever hit go first, then the others; the least recently used first in both. Who hits a block
/// hits all that come before it, so a prefix is never in an earlier list than its continuations.
class UnhitFirst {
 public:
  explicit UnhitFirst(std::int32_t num_blocks)
      : links_(static_cast<std::size_t>(num_blocks) + 2), num_blocks_(num_blocks) {
    for (const std::int32_t head : {unhit(), hit()}) at(head) = {.colder = head, .hotter = head};  // two empty rings
  }

  // [policy]
  void published(BlockId block, std::uint64_t /*key*/, Retention) { at(block) = {}; }  // the only one that may throw
  void touched(BlockId block, Retention) { at(block).was_hit = true; }  // if it is idle, remove() is the next call
  void insert(BlockId block) {
    const std::int32_t head = at(block).was_hit ? hit() : unhit(), hottest = at(head).colder, self = to_index(block);
    at(block).colder = hottest;
    at(block).hotter = head;
    at(hottest).hotter = at(head).colder = self;
    ++size_;
  }
  BlockId coldest() const {  // proposes; the cache itself sees to it that no prefix goes before its continuations
    for (const std::int32_t head : {unhit(), hit()})
      if (at(head).hotter != head) return BlockId{at(head).hotter};
    return BlockId::none;
  }
  // [policy]

  void remove(BlockId block) {
    at(at(block).colder).hotter = at(block).hotter;
    at(at(block).hotter).colder = at(block).colder;
    at(block).colder = at(block).hotter = none;
    --size_;
  }
  void forgotten(BlockId block, std::uint64_t /*key*/, bool /*evicted*/) { at(block) = {}; }
  void advance(std::int64_t /*now*/) {}      // no deadlines here
  void prefetch(BlockId /*block*/) const {}  // a hint; nothing depends on it
  bool contains(BlockId block) const { return at(block).hotter != none; }
  int size() const { return size_; }
  std::uint64_t state_hash() const {  // of everything that can influence a later call
    std::uint64_t h = 0;
    for (const Link& link : links_)
      for (const int value : {link.colder, link.hotter, int{link.was_hit}})
        h = (h ^ static_cast<std::uint32_t>(value)) * 0x100000001b3u;
    return h;
  }

 private:
  static constexpr std::int32_t none = -1;
  struct Link {
    std::int32_t colder = none, hotter = none;
    bool was_hit = false;
  };
  std::int32_t unhit() const { return num_blocks_; }  // the heads lie behind the blocks
  std::int32_t hit() const { return num_blocks_ + 1; }
  Link& at(std::int32_t index) { return links_[static_cast<std::size_t>(index)]; }
  const Link& at(std::int32_t index) const { return links_[static_cast<std::size_t>(index)]; }
  Link& at(BlockId block) { return at(to_index(block)); }
  const Link& at(BlockId block) const { return at(to_index(block)); }

  std::vector<Link> links_;
  std::int32_t num_blocks_;
  int size_ = 0;
};
static_assert(EvictionPolicy<UnhitFirst>);

template <class Cache>
int serve(const std::string& text, Cache& prefixes, BlockAllocator& blocks, LetterCache& cache) {
  const std::vector<std::int32_t> tokens(text.begin(), text.end());
  StepPlan step;
  Sequence sequence{blocks};
  const Admission admission = prefixes.admit(tokens, sequence, step);
  if (!admission) return -1;
  cache.run(step, text.substr(static_cast<std::size_t>(admission->cached)));
  prefixes.publish(tokens, sequence);
  return admission->cached;
}

template <class Cache>
void run(const char* name) {
  LetterCache cache{16, 4};
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
  Cache prefixes{blocks};
  std::printf("%s\n", name);
  const auto ask = [&](const std::string& text) {
    std::printf("  %-36s %2d letters cached\n", ("\"" + text + "\"").c_str(), serve(text, prefixes, blocks, cache));
  };
  ask("you are a helpful machine. hello");
  ask("you are a helpful machine. who am I?");
  for (char c = 'a'; c < 'i'; ++c)
    serve(std::string(20, c), prefixes, blocks, cache);  // eight one-time prompts of five blocks
  std::printf("  ... eight prompts that nobody will ask again, %d blocks evicted\n",
              static_cast<int>(prefixes.stats().evicted_blocks));
  ask("you are a helpful machine. bye");
}

}  // namespace

int main() {
  run<PrefixCache>("least recently used first:");
  // [use]
  run<BasicPrefixCache<UnhitFirst>>("what nobody ever hit first:");
  // [use]
}
