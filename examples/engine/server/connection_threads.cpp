// Starting threads, and letting them go.
#include "engine/server/connection_threads.hpp"

#include <system_error>
#include <thread>
#include <utility>

namespace engine::server {

void ConnectionThreads::serve(std::function<void()> connection) {
  std::unique_lock lock(mutex_);
  waiting_.push_back(std::move(connection));
  if (num_threads_ == max_threads_) return;
  ++num_threads_;
  try {
    std::thread([this] { work(); }).detach();
    return;
  } catch (const std::system_error&) {
    if (num_threads_ > 1) {
      --num_threads_;
      return;
    }
  }
  lock.unlock();
  work();
}

void ConnectionThreads::work() {
  std::unique_lock lock(mutex_);
  while (!waiting_.empty()) {
    {
      const std::function<void()> connection = std::exchange(waiting_.front(), nullptr);
      waiting_.pop_front();
      lock.unlock();
      connection();
    }
    lock.lock();
  }
  if (--num_threads_ == 0) has_ended_.notify_all();  // the last use of this object, but for the lock's end
}

void ConnectionThreads::wait() {
  std::unique_lock lock(mutex_);
  has_ended_.wait(lock, [this] { return num_threads_ == 0; });
}

}  // namespace engine::server
