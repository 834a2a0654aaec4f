// PrefixCache beside lists of tokens: random requests under every policy and under hashes that collide.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/naive_prefixes.hpp"
#include "cache/tokens.hpp"
#include "pagedkv/cache/eviction_lfu.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "support/random.hpp"

using namespace pagedkv;

namespace {

struct ConstantHash {
  std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t>, std::string_view) const { return 42; }
};

struct ByteHash {
  std::uint64_t operator()(std::uint64_t parent, std::span<const std::int32_t> tokens, std::string_view extra) const {
    return BlockHash{}(parent, tokens, extra) & 0xff;
  }
};

template <class Cache>
class World {
 public:
  World(std::uint64_t seed, int num_blocks, int block_size)
      : random_(seed),
        blocks_{{.num_blocks = num_blocks, .block_size = block_size}},
        cache_{blocks_, {.pin_budget = num_blocks / 2, .event_capacity = 64}},
        naive_{block_size} {}
  ~World() {
    requests_.clear();
    step_.commit();
  }

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      operate();
      naive_.forget_unpublished(blocks_);
      cache_.check_invariants();
      naive_.check(blocks_);
      check_events();
    }
  }

 private:
  struct Request {
    Sequence sequence;
    std::uint64_t salt;
    Tokens tokens;  // all that it will have
    bool may_publish;
  };

  void operate() {
    switch (random_.between(0, 19)) {
      case 0:
        if (random_.one_in(4)) random_.one_in(2) ? reset() : clear();
        return;
      case 1:
        return pin();
      case 2:
        cache_.advance(++now_);
        return;
      case 3:
        if (!pins_.empty()) cache_.unpin(pins_[index_below(pins_.size())]);
        return;
      case 4:
      case 5:
        return publish();
      case 6:
      case 7:
      case 8:
        return step_.commit();
      default:
        break;
    }
    if (requests_.size() < 3 || random_.one_in(3)) return admit();
    Request& request = requests_[index_below(requests_.size())];
    Sequence& s = request.sequence;
    switch (random_.between(0, 5)) {
      case 0:
        return drop(request);
      case 1:
        if (s.size() > 0) s.release_before(random_.between(0, s.num_committed()));
        return;
      case 2:
        if (random_.one_in(2)) return truncate(request);
        return fork(request);
      default:
        return append(request);
    }
  }

  void admit() {
    if (requests_.size() > 8) requests_.erase(requests_.begin());
    AdmitOptions options{.salt = static_cast<std::uint64_t>(random_.between(0, 1))};
    options.partial_blocks = random_.one_in(2);
    options.no_read = random_.one_in(8);
    options.no_write = random_.one_in(8);
    options.twins = random_.one_in(2) ? Twins::wait : Twins::compute;
    options.retention = {.priority = static_cast<std::uint8_t>(random_.between(0, 3)), .expires_at = now_ + 5};
    if (random_.one_in(4)) options.max_append = random_.between(1, 6);
    if (random_.one_in(4)) options.watermark = 2;
    const Tokens tokens = prompt();
    const int num_tokens = static_cast<int>(tokens.size());
    const int whole = options.no_read ? 0 : naive_.cached_tokens(options.salt, tokens, false);
    const int longest = options.no_read ? 0 : naive_.cached_tokens(options.salt, tokens, options.partial_blocks);
    REQUIRE(cache_.num_cached_tokens(tokens, options.scope()) == naive_.cached_tokens(options.salt, tokens, false));
    const bool fits = fits_after_hit(options, tokens, whole);
    const std::uint64_t before = cache_.state_hash();
    const int rows_before = step_.num_rows();

    Sequence s{blocks_};
    const Admission admitted = cache_.admit(tokens, s, step_, options);
    if (!admitted) {
      REQUIRE(cache_.state_hash() == before);
      REQUIRE(step_.num_rows() == rows_before);
      REQUIRE((admitted.refusal() == Refusal::never) == (blocks_for(num_tokens) > blocks_.num_blocks()));
      if (admitted.refusal() == Refusal::later || admitted.refusal() == Refusal::pinned) REQUIRE_FALSE(fits);
      if (admitted.refusal() == Refusal::pinned) REQUIRE(cache_.num_pinned_blocks() > 0);
      if (admitted.refusal() == Refusal::twin) {
        REQUIRE(options.twins == Twins::wait);
        step_.commit();  // then nobody waits any more
        const Admission again = cache_.admit(tokens, s, step_, options);
        REQUIRE((again || again.refusal() != Refusal::twin));
        s.truncate(0);
      }
      return;
    }
    REQUIRE((fits || admitted->cached > whole));
    REQUIRE((admitted->cached == longest || (admitted->cached == whole && whole < longest)));
    REQUIRE(admitted->cached + admitted->to_compute == num_tokens);
    REQUIRE(admitted->to_compute > 0);
    REQUIRE(s.size() == admitted->cached + admitted->appended);
    REQUIRE(blocks_.num_available() >= options.watermark);
    const int num_whole = admitted->cached / blocks_.block_size();
    for (int i = 0; i < num_whole; ++i)
      REQUIRE(naive_.holds(s.table()[i], options.salt, tokens, static_cast<std::size_t>(i)));
    requests_.push_back({std::move(s), options.salt, tokens, !options.no_write});
  }

  void append(Request& request) {
    const int left = static_cast<int>(request.tokens.size()) - request.sequence.size();
    const int count = std::min(left, random_.between(1, 5));
    if (count <= 0) return drop(request);
    if (!request.sequence.append(count, step_)) return;
    if (random_.one_in(2)) cache_.announce(request.tokens, request.sequence, {.salt = request.salt});
  }

  void publish() {
    for (Request& request : requests_) {
      if (random_.one_in(4)) continue;
      const PrefixScope scope{.salt = request.salt};
      const Retention retention{.priority = static_cast<std::uint8_t>(random_.between(0, 3))};
      random_.one_in(2) ? cache_.publish(request.tokens, request.sequence, scope, retention)
                        : cache_.publish_and_remap(request.tokens, request.sequence, scope, retention);
      std::vector<BlockId> full;
      for (int i = 0; i < request.sequence.num_committed() / blocks_.block_size(); ++i)
        full.push_back(request.sequence.table()[i]);
      if (request.may_publish) naive_.publish(request.salt, request.tokens, full);
    }
  }

  void truncate(Request& request) {
    const int target = random_.between(0, request.sequence.size());
    const auto released = std::ranges::count(request.sequence.blocks(), BlockId::none) * blocks_.block_size();
    if (target > 0 && target < released) return;
    request.sequence.truncate(target);
    for (std::size_t i = static_cast<std::size_t>(target); i < request.tokens.size(); ++i)
      request.tokens[i] = random_.between(0, 1);
  }

  void fork(const Request& request) {
    if (request.sequence.num_committed() == 0 || requests_.size() > 8) return;
    Request child{request.sequence.fork(), request.salt, request.tokens, request.may_publish};
    for (std::size_t i = static_cast<std::size_t>(child.sequence.size()); i < child.tokens.size(); ++i)
      child.tokens[i] = random_.between(0, 1);
    requests_.push_back(std::move(child));
  }

  void drop(Request& request) {
    std::swap(request, requests_.back());
    requests_.pop_back();
  }

  void pin() {
    const Tokens tokens = prompt();
    const std::uint64_t before = cache_.state_hash();
    const auto pin = cache_.pin(tokens, {.salt = 0});
    if (!pin) {
      REQUIRE(cache_.state_hash() == before);
      return;
    }
    Tokens longer = tokens;
    longer.push_back(-1);
    REQUIRE(cache_.num_pinned_blocks(*pin) == naive_.cached_tokens(0, longer, false) / blocks_.block_size());
    REQUIRE(cache_.num_pinned_blocks() <= blocks_.num_blocks() / 2);
    pins_.push_back(*pin);
  }

  void reset() {
    cache_.reset();
    naive_.reset();
  }

  void clear() {
    cache_.clear();
    REQUIRE(blocks_.num_idle() == 0);
  }

  void check_events() {
    if (random_.one_in(2)) return;
    CacheEvents drained = cache_.drain_events();
    if (drained.num_lost > 0) {
      drained.events = cache_.snapshot_events();
      known_.clear();
    }
    for (const CacheEvent& event : drained.events) {
      if (event.kind == CacheEventKind::stored) REQUIRE(known_.insert(event.key).second);
      if (event.kind == CacheEventKind::removed) REQUIRE(known_.erase(event.key) == 1);
      if (event.kind == CacheEventKind::cleared) known_.clear();
    }
    REQUIRE(static_cast<int>(known_.size()) == naive_.num_keys());
  }

  // Two kinds of tokens and lengths that repeat: prefixes are shared all the time.
  Tokens prompt() {
    Tokens tokens(static_cast<std::size_t>(random_.between(1, 5 * blocks_.block_size() + 1)));
    const bool is_common = random_.one_in(2);
    for (std::int32_t& token : tokens) token = is_common ? 0 : random_.between(0, 1);
    return tokens;
  }

  bool fits_after_hit(const AdmitOptions& options, const Tokens& tokens, int cached) const {
    const int end = cached + std::min(static_cast<int>(tokens.size()) - cached, options.max_append);
    int num_available = blocks_.num_available() - options.watermark;
    for (int length = blocks_.block_size(); length <= cached; length += blocks_.block_size())
      num_available -=
          naive_.is_idle(options.salt, std::span(tokens).first(static_cast<std::size_t>(length)), blocks_) ? 1 : 0;
    return blocks_for(end) - cached / blocks_.block_size() <= num_available;
  }

  int blocks_for(int num_tokens) const { return ceil_div(num_tokens, blocks_.block_size()); }
  std::size_t index_below(std::size_t size) {
    return static_cast<std::size_t>(random_.between(0, static_cast<int>(size) - 1));
  }

  pagedkv_test::Random random_;
  BlockAllocator blocks_;
  Cache cache_;
  StepPlan step_;
  pagedkv_test::NaivePrefixes naive_;
  std::vector<Request> requests_;
  std::vector<PinId> pins_;
  std::set<ContentKey> known_;
  std::int64_t now_ = 0;
};

}  // namespace

TEST_CASE_TEMPLATE("random requests find exactly what is cached, and refusals change nothing", Cache, PrefixCache,
                   BasicPrefixCache<LfuEviction>, BasicPrefixCache<S3FifoEviction>, BasicPrefixCache<PriorityEviction>,
                   BasicPrefixCache<LruEviction, ConstantHash>, BasicPrefixCache<S3FifoEviction, ByteHash>) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr int num_runs = 20;
#else
  constexpr int num_runs = 300;
#endif
  for (int seed = 0; seed < num_runs; ++seed) {
    CAPTURE(seed);
    World<Cache> world{static_cast<std::uint64_t>(seed), 6 + seed % 30, 1 + seed % 4};
    world.run(300);
  }
}
