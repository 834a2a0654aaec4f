// RandomCaller: asks anything of an allocator, its sequences and a prefix cache, and has it recorded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cache/tokens.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/trace.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

using namespace pagedkv;

inline constexpr BlockAllocatorOptions pool{.num_blocks = 24, .block_size = 4};
inline constexpr PrefixCacheOptions pins{.pin_budget = 6};

/// What the library calls wrong changes nothing and is not recorded. Every call is followed by a `state`.
template <class Cache>
class RandomCaller {
 public:
  RandomCaller(std::uint64_t seed, std::size_t max_records) : random_(seed), trace_(max_records) {
    blocks_.record_to(&trace_);
    for (int i = 0; i < 6; ++i) requests_.emplace_back(blocks_);
  }
  ~RandomCaller() { blocks_.retire(fence_); }

  void run(int num_calls) {
    for (int i = 0; i < num_calls; ++i) {
      try {
        call();
      } catch (const InvalidArgument&) {
        ++num_wrong;
      }
      trace_.write(TraceRecord::with(TraceOp::state, cache_.state_hash()));
    }
  }

  const BlockAllocator& blocks() const { return blocks_; }
  const Cache& cache() const { return cache_; }
  const Trace& trace() const { return trace_; }
  int num_wrong = 0;

 private:
  struct Request {
    explicit Request(BlockAllocator& blocks) : sequence(blocks) {}
    explicit Request(Sequence&& s) : sequence(std::move(s)) {}
    Sequence sequence;
    Tokens tokens = {};
    AdmitOptions options = {};
    std::vector<PrefixExtra> extras = {};
  };

  Request& any() { return requests_[static_cast<std::size_t>(random_.between(0, 5))]; }

  void grow(Request& r) {
    while (std::ssize(r.tokens) < r.sequence.size()) r.tokens.push_back(random_.between(0, 1));
  }

  void choose_options(Request& r) {
    r.options = {};
    r.extras.clear();
    if (random_.one_in(3)) r.options.salt = 1ull << 40;
    if (random_.one_in(3)) r.options.model = "a model with a name of some length";
    if (random_.one_in(3)) r.options.adapter = "adapter";
    if (random_.one_in(3)) r.extras = {{1, 3, "image"}, {5, 9, ""}};
    r.options.extras = r.extras;
    r.options.partial_blocks = random_.one_in(2);
    r.options.no_read = random_.one_in(8);
    r.options.no_write = random_.one_in(8);
    if (random_.one_in(2)) r.options.twins = Twins::wait;
    r.options.retention.priority = static_cast<std::uint8_t>(random_.between(0, 3));
    if (random_.one_in(3)) r.options.retention.expires_at = now_ + random_.between(1, 5);
    if (random_.one_in(3)) r.options.max_append = random_.between(1, 8);
    if (random_.one_in(3)) r.options.watermark = random_.between(0, 4);
  }

  void admit(Request& r, StepPlan& plan) {
    if (r.sequence.size() > 0) return;
    choose_options(r);
    const int first = 10 * random_.between(0, 2);  // apart: the order of arguments is the compiler's choice
    r.tokens = iota(random_.between(0, 40), first);
    if (!r.tokens.empty() && random_.one_in(3)) r.tokens.back() = -1;
    static_cast<void>(cache_.admit(r.tokens, r.sequence, plan, r.options));
  }

  void call() {
    Request& r = any();
    StepPlan& plan = steps_[static_cast<std::size_t>(random_.between(0, 1))];
    switch (random_.between(0, 26)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return admit(r, plan);
      case 4:
      case 5:
      case 6:
        static_cast<void>(r.sequence.append(random_.pick({0, 1, 1, 1, 2, 5, 9}), plan));
        return grow(r);
      case 7:
        static_cast<void>(r.sequence.reserve(random_.between(1, 6), plan));
        return grow(r);
      case 8:
        return accept(r);
      case 9:
        return fork(r);
      case 10:
        return truncate(r);
      case 11:
        return r.sequence.release_before(random_.between(0, r.sequence.size()));
      case 12:
      case 13:
        r = Request{blocks_};
        return;
      case 14:
      case 15:
        return plan.commit();
      case 16:
      case 17:
        return cache_.publish(r.tokens, r.sequence, r.options.scope(), r.options.retention);
      case 18:
        return cache_.publish_and_remap(r.tokens, r.sequence, r.options.scope(), r.options.retention);
      case 19:
        return cache_.announce(r.tokens, r.sequence, r.options.scope());
      case 20:
        if (const auto pin = cache_.pin(r.tokens, r.options.scope())) last_pin_ = *pin;
        return;
      case 21:
        static_cast<void>(cache_.unpin(last_pin_));
        return;
      case 22:
        return cache_.advance(now_ += random_.between(0, 2));
      case 23:
        return reserve(r, plan);
      case 24:
        return guard(r);
      case 25:
        if (random_.one_in(4)) r.sequence.forbid_publishing();
        return;
      default:
        return seldom();
    }
  }

  void accept(Request& r) {
    r.sequence.accept(random_.between(0, r.sequence.num_drafts()));
    r.tokens.resize(static_cast<std::size_t>(r.sequence.size()));
  }

  void truncate(Request& r) {
    r.sequence.truncate(random_.between(0, r.sequence.size()));
    r.tokens.resize(static_cast<std::size_t>(r.sequence.size()));
  }

  void fork(Request& r) {
    Request child{r.sequence.fork()};
    child.tokens = r.tokens;
    child.tokens.resize(static_cast<std::size_t>(child.sequence.size()));
    child.extras = r.extras;
    child.options = r.options;
    child.options.extras = child.extras;
    Request& replaced = any();
    replaced = std::move(child);
    replaced.options.extras = replaced.extras;
  }

  void reserve(Request& r, StepPlan& plan) {
    if (!reservation_) {
      reservation_ = blocks_.reserve(random_.between(0, 4));
    } else if (random_.one_in(2)) {
      reservation_.reset();
    } else {
      static_cast<void>(r.sequence.append(random_.between(1, 9), plan, *reservation_));
      grow(r);
    }
  }

  void guard(Request& r) {
    if (random_.one_in(2)) return blocks_.retire(fence_);
    if (r.sequence.num_committed() >= 8 && r.sequence.table()[0] != BlockId::none) {
      const std::array two = {r.sequence.table()[0], r.sequence.table()[1]};
      blocks_.guard(two, ++fence_);
    }
  }

  void seldom() {
    if (random_.one_in(2)) return blocks_.drain(random_.between(0, 40));
    if (random_.one_in(2)) return cache_.reset();
    cache_.clear();
  }

  Random random_;
  Trace trace_;
  BlockAllocator blocks_{pool};
  Cache cache_{blocks_, pins};
  std::array<StepPlan, 2> steps_;
  std::vector<Request> requests_;
  std::optional<Reservation> reservation_;
  PinId last_pin_{};
  std::int64_t now_ = 0;
  Fence fence_ = 0;
};

}  // namespace pagedkv_test
