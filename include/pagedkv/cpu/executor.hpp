// Executors: who runs the tasks of a call. Results never depend on the choice.
#pragma once

#include <atomic>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cpu {

/// executor(num_tasks, f) calls f(0) .. f(num_tasks - 1), each once, in any order and on any thread, and returns when
/// all of them have returned. What a task throws is thrown to the caller (one of several); tasks not yet begun may be
/// dropped.
template <class E>
concept Executor = requires(E& executor, void (*task)(int)) {
  executor(1, task);
};

/// Runs the tasks in order on the calling thread.
struct InlineExecutor {
  template <std::invocable<int> F>
  void operator()(int num_tasks, F&& f) const {
    for (int i = 0; i < num_tasks; ++i) f(i);
  }
};

/// A fixed team of threads that sleep between calls; the calling thread works too. Calls from several threads take
/// turns; a task must not call its own executor.
class ThreadExecutor {
 public:
  /// `num_threads` counts the calling thread. Throws InvalidArgument below 1, std::system_error where the machine has
  /// no more threads.
  explicit ThreadExecutor(int num_threads = default_num_threads()) {
    require(num_threads >= 1, "ThreadExecutor: num_threads", "at least 1", num_threads);
    workers_.reserve(static_cast<std::size_t>(num_threads) - 1);
    pagedkv::detail::undo_on_failure(
        [&] {
          for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { serve(); });
        },
        [this] { stop(); });
  }
  ThreadExecutor(const ThreadExecutor&) = delete;  // the workers hold its address
  ThreadExecutor& operator=(const ThreadExecutor&) = delete;
  ~ThreadExecutor() { stop(); }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  template <std::invocable<int> F>
  void operator()(int num_tasks, F&& f) {
    if (num_tasks <= 1 || workers_.empty()) return InlineExecutor{}(num_tasks, f);
    using Function = std::remove_reference_t<F>;
    Job job{.call = [](const void* function,
                       int task) { (*const_cast<Function*>(static_cast<const Function*>(function)))(task); },
            .function = std::addressof(f),
            .num_tasks = num_tasks};
    run(job);
  }

 private:
  struct Job {
    void (*call)(const void* function, int task);
    const void* function;
    int num_tasks;
    std::atomic<int> next{0};
    std::exception_ptr error{};  // the first; guarded by mutex_
  };

  static int default_num_threads() {
    const unsigned int known = std::thread::hardware_concurrency();  // 0: not known
    return known == 0 ? 1 : static_cast<int>(known);
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void run(Job& job) {
    const std::lock_guard turn(turn_);
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      ++serial_;
    }
    wake_.notify_all();
    work(job);
    std::unique_lock lock(mutex_);
    job_ = nullptr;  // who has not woken up by now need not
    idle_.wait(lock, [this] { return num_busy_ == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

  void work(Job& job) {
    for (int task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.num_tasks;) {
      if (const std::exception_ptr error = pagedkv::detail::exception_of([&] { job.call(job.function, task); })) {
        job.next.store(job.num_tasks, std::memory_order_relaxed);
        const std::lock_guard lock(mutex_);
        if (!job.error) job.error = error;
      }
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (unsigned long long seen = 0;;) {
      wake_.wait(lock, [&] { return stopping_ || (job_ != nullptr && serial_ != seen); });
      if (stopping_) return;
      seen = serial_;
      Job& job = *job_;
      ++num_busy_;
      lock.unlock();
      work(job);
      lock.lock();
      if (--num_busy_ == 0) idle_.notify_one();
    }
  }

  std::mutex turn_;  // held by the call that is running
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  unsigned long long serial_ = 0;  // tells a new job from one that this worker has already served
  int num_busy_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

#if defined(_OPENMP)
/// Runs the tasks on OpenMP's threads.
struct OpenMpExecutor {
  template <std::invocable<int> F>
  void operator()(int num_tasks, F&& f) const {
    std::exception_ptr error;
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < num_tasks; ++i) {
      if (const std::exception_ptr thrown = pagedkv::detail::exception_of([&] { f(i); })) {
#pragma omp critical(pagedkv_executor_error)
        error = thrown;
      }
    }
    if (error) std::rethrow_exception(error);
  }
};
#endif

}  // namespace cpu
}  // namespace v0
}  // namespace pagedkv
