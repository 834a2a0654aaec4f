// CtaEmulator: every thread of a CTA is a fiber of one host thread, and fibers meet where CUDA threads must meet.
#pragma once

#include <ucontext.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace pagedkv_test {

/// One CTA at a time. The first warp runs ahead as far as barriers let it, then the second, and so on; next time the last
/// warp begins. A missing barrier meets its worst case.
class CtaEmulator {
 public:
  /// Runs `body` once per thread. Throws what a thread throws, and logic_error where threads would wait for ever.
  void run(int num_threads, const std::function<void()>& body) {
    threads_.clear();
    warps_.assign(static_cast<std::size_t>(num_threads / 32), {});
    barrier_ = {};
    for (int i = 0; i < num_threads; ++i) start_thread(body);
    bool progress = true;
    for (int pass = 0; progress; ++pass) {
      progress = false;
      for (std::size_t i = 0; i < warps_.size(); ++i)
        while (run_warp(pass % 2 == 0 ? i : warps_.size() - 1 - i)) progress = true;
    }
    for (const auto& thread : threads_)
      if (!thread->done) throw std::logic_error("some threads wait for others that never come");
  }

  unsigned thread() const { return static_cast<unsigned>(current_); }

  /// Every thread of the CTA arrives before one goes on.
  void synchronize() { meet(barrier_, threads_.size()); }

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
  struct Warp {
    std::array<std::array<Item, 32>, 2> items{};
    Meeting meeting;
  };
  struct Copy {
    void* to;
    const void* from;
  };
  struct Thread {
    ucontext_t context{};
    std::unique_ptr<std::byte[]> stack;
    std::function<void()> body;
    std::exception_ptr error;
    bool done = false;
    std::vector<Copy> open_group;
    std::deque<std::vector<Copy>> groups;
  };

  /// Gives each thread of a warp a turn. Did one get further?
  bool run_warp(std::size_t warp) {
    progress_ = false;
    for (current_ = 32 * warp; current_ < 32 * (warp + 1); ++current_) {
      Thread& thread = *threads_[current_];
      if (thread.done) continue;
      swapcontext(&scheduler_, &thread.context);
      if (thread.error) std::rethrow_exception(thread.error);
    }
    return progress_;
  }

  void start_thread(const std::function<void()>& body) {
    constexpr std::size_t stack_bytes = 256 * 1024;
    auto thread = std::make_unique<Thread>();
    thread->stack = std::make_unique<std::byte[]>(stack_bytes);
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
    self->progress_ = true;
  }

  void meet(Meeting& meeting, std::size_t expected) {
    progress_ = true;
    if (++meeting.arrived == expected) {
      meeting.arrived = 0;
      ++meeting.round;
      return;
    }
    Thread& self = *threads_[current_];
    for (const std::size_t round = meeting.round; meeting.round == round;) swapcontext(&self.context, &scheduler_);
  }

  ucontext_t scheduler_{};
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  Meeting barrier_;
  std::size_t current_ = 0;
  bool progress_ = false;
};

}  // namespace pagedkv_test
