// CtaEmulator: every thread of a CTA is a fiber of one host thread, and fibers meet where CUDA threads must meet.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/random.hpp"

namespace pagedkv_test {

/// One CTA at a time. The first warp runs ahead as far as barriers let it, then the second, and so on; next time the
/// last warp begins. A missing barrier meets its worst case. What the hardware does on its own happens when no thread
/// can go on.
class CtaEmulator {
 public:
  /// From now on `seed` decides which warp goes on, how far, with which lane first, and how soon later() comes.
  void shuffle(std::uint64_t seed) { random_.emplace(seed); }

  /// From now on `pause` is called now and then, between turns of warps.
  void pause_with(std::function<void()> pause) { pause_ = std::move(pause); }

  /// Runs `body` once per thread. Throws what a thread throws, and logic_error where threads would wait for ever.
  void run(int num_threads, const std::function<void()>& body) {
    threads_.clear();
    warps_.assign(static_cast<std::size_t>(num_threads / 32), {});
    barriers_ = {};
    events_.clear();
    for (int i = 0; i < num_threads; ++i) start_thread(body);
    const int haste = random_ ? random_->pick({0, 1, 4}) : 0;  // of events: not before they must, often, now and then
    std::vector<std::size_t> order(warps_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (;;) {
      bool progress = false;
      for (const std::size_t warp : order) {
        progress |= run_ahead(warp);
        while (haste != 0 && !events_.empty() && random_->one_in(haste + 1)) {
          let_happen();
          progress = true;
        }
      }
      if (!progress && events_.empty()) break;
      if (!progress) let_happen();
      if (random_) {
        for (std::size_t i = 1; i < order.size(); ++i)
          std::swap(order[i], order[static_cast<std::size_t>(random_->between(0, static_cast<int>(i)))]);
      } else {
        std::reverse(order.begin(), order.end());
      }
      if (pause_) pause_();
    }
    if (!std::ranges::all_of(threads_, [](const auto& thread) { return thread->done; }))
      throw std::logic_error("some threads wait for others that never come");
  }

  unsigned thread() const { return static_cast<unsigned>(current_); }

  /// Lets other threads go on until `ready()`.
  template <class F>
  void wait_until(const F& ready) {
    if (ready()) return;
    Thread& self = *threads_[current_];
    self.waits_for = {[](const void* f) { return (*static_cast<const F*>(f))(); }, &ready};
    swapcontext(&self.context, &scheduler_);
    self.waits_for = {};
  }

  /// Lets other threads go on, once. Who does no more than ask again and again makes no progress.
  void yield() {
    Thread& self = *threads_[current_];
    self.asks = true;
    swapcontext(&self.context, &scheduler_);
    self.asks = false;
  }

  /// Lets other CTAs go on too, where some run beside this one.
  void yield_to_other_ctas() {
    if (!pause_) return;
    asks_others_ = true;
    swapcontext(&threads_[current_]->context, &scheduler_);
  }

  /// What the hardware does on its own, some time after this.
  void later(std::function<void()> event) { events_.push_back(std::move(event)); }

  /// Every thread of the CTA arrives before one goes on.
  void synchronize() { meet(barriers_[0].meeting, threads_.size()); }

  /// The same for the `expected` threads of the barrier with this number, 1 to 15; those that do not wait go on.
  void come_to(int number, int expected, bool waits) {
    if (number < 1 || number > 15 || expected % 32 != 0) throw std::logic_error("there is no such barrier");
    Barrier& barrier = barriers_[static_cast<std::size_t>(number)];
    if (barrier.meeting.arrived == 0) barrier = {{0, barrier.meeting.round}, expected, {}};
    if (barrier.expected != expected) throw std::logic_error("threads disagree how many come to a barrier");
    if (barrier.who.test(current_)) throw std::logic_error("a thread comes to a barrier twice before all others came");
    barrier.who.set(current_);
    if (waits)
      meet(barrier.meeting, static_cast<std::size_t>(expected));
    else
      arrive(barrier.meeting, static_cast<std::size_t>(expected));
  }

  /// Every lane of the warp arrives before one goes on.
  void synchronize_warp() { meet(warps_[current_ / 32].meeting, 32); }

  /// Every lane of the warp arrives with `mine`; returns what all 32 brought.
  template <class T>
  std::array<T, 32> exchange(const T& mine) {
    static_assert(sizeof(T) <= sizeof(Item));
    Warp& warp = warps_[current_ / 32];
    auto& items = warp.items[warp.meeting.round % 2];  // slower lanes may still read the items of the round before
    std::memcpy(&items[current_ % 32], &mine, sizeof(T));
    meet(warp.meeting, 32);
    std::array<T, 32> all;
    for (std::size_t i = 0; i < 32; ++i) std::memcpy(&all[i], &items[i], sizeof(T));
    return all;
  }

  /// 16 bytes; from null: zeros. They arrive when they are waited for; until then NaN stands in their place.
  void start_copy(void* to, const void* from) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
      throw std::logic_error("a copy of 16 bytes is not aligned to 16 bytes");
    std::memset(to, 0xff, 16);
    threads_[current_]->open_group.push_back({to, from});
  }
  void commit_copies() { threads_[current_]->groups.push_back(std::exchange(threads_[current_]->open_group, {})); }
  void wait_for_copies(std::size_t pending) {
    for (auto& groups = threads_[current_]->groups; groups.size() > pending; groups.pop_front()) {
      for (const auto& [to, from] : groups.front()) {
        if (from != nullptr)
          std::memcpy(to, from, 16);
        else
          std::memset(to, 0, 16);
      }
    }
  }

 private:
  using Item = std::array<std::uint32_t, 8>;
  struct Meeting {
    std::size_t arrived = 0, round = 0;
  };
  struct Barrier {
    Meeting meeting;
    int expected = 0;
    std::bitset<1024> who;
  };
  struct Warp {
    std::array<std::array<Item, 32>, 2> items{};
    Meeting meeting;
  };
  struct Copy {
    void* to;
    const void* from;
  };
  struct Condition {
    bool (*holds)(const void*) = nullptr;
    const void* context = nullptr;
  };
  struct Thread {
    ucontext_t context{};
    std::unique_ptr<std::byte[]> stack;
    std::function<void()> body;
    std::exception_ptr error;
    Condition waits_for;
    bool asks = false, done = false;
    std::vector<Copy> open_group;
    std::deque<std::vector<Copy>> groups;
  };

  /// Gives a warp turns until it waits for others, or fewer. Did a thread get further?
  bool run_ahead(std::size_t warp) {
    constexpr int no_limit = 1 << 30;
    const int turns = random_ ? random_->pick({0, 1, 3, 10, no_limit, no_limit}) : no_limit;
    bool progress = turns == 0;  // put off
    asks_others_ = false;
    for (int turn = 0; turn < turns && !asks_others_ && run_warp(warp); ++turn) progress = true;
    return progress;
  }

  /// Gives each thread of a warp a turn. Did one get further?
  bool run_warp(std::size_t warp) {
    bool progress = false;
    const bool backwards = random_ && random_->one_in(2);
    for (std::size_t lane = 0; lane < 32; ++lane) {
      current_ = 32 * warp + (backwards ? 31 - lane : lane);
      Thread& thread = *threads_[current_];
      if (thread.done || (thread.waits_for.holds != nullptr && !thread.waits_for.holds(thread.waits_for.context)))
        continue;
      progress |= !thread.asks;
      swapcontext(&scheduler_, &thread.context);
      if (thread.error) std::rethrow_exception(thread.error);
    }
    return progress;
  }

  void let_happen() {
    const auto which =
        random_ ? static_cast<std::ptrdiff_t>(random_->between(0, static_cast<int>(events_.size()) - 1)) : 0;
    const auto event = std::move(events_[static_cast<std::size_t>(which)]);
    events_.erase(events_.begin() + which);
    event();
  }

  void start_thread(const std::function<void()>& body) {
    constexpr std::size_t stack_bytes = 256 * 1024;
    auto thread = std::make_unique<Thread>();
    thread->stack = std::make_unique_for_overwrite<std::byte[]>(stack_bytes);
    thread->body = body;
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = thread->stack.get();
    thread->context.uc_stack.ss_size = stack_bytes;
    thread->context.uc_link = &scheduler_;
    const auto self = reinterpret_cast<std::uintptr_t>(this);  // makecontext passes ints only
    makecontext(&thread->context, reinterpret_cast<void (*)()>(&CtaEmulator::enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
    threads_.push_back(std::move(thread));
  }

  static void enter(unsigned low, unsigned high) {
    auto* const self = reinterpret_cast<CtaEmulator*>(std::uintptr_t{low} | std::uintptr_t{high} << 32);
    Thread& thread = *self->threads_[self->current_];
    try {
      thread.body();
    } catch (...) {  // must not leave the fiber's stack
      thread.error = std::current_exception();
    }
    thread.done = true;
  }

  static void arrive(Meeting& meeting, std::size_t expected) {
    if (++meeting.arrived < expected) return;
    meeting.arrived = 0;
    ++meeting.round;
  }
  void meet(Meeting& meeting, std::size_t expected) {
    const std::size_t round = meeting.round;
    arrive(meeting, expected);
    wait_until([&] { return meeting.round != round; });
  }

  ucontext_t scheduler_{};
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::array<Barrier, 16> barriers_;  // 0: of all threads
  std::deque<std::function<void()>> events_;
  std::optional<Random> random_;
  bool asks_others_ = false;
  std::function<void()> pause_;
  std::size_t current_ = 0;
};

}  // namespace pagedkv_test
