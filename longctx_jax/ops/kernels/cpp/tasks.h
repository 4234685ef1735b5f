// Tasks for the threads of XLA's pool.

#ifndef LONGCTX_JAX_TASKS_H_
#define LONGCTX_JAX_TASKS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

// Calls run(0), ..., run(count - 1) on this thread and on those of the pool
// that come in time; returns when all are done. It waits for tasks that others
// have begun and never for a thread to come, so it may run on a pool's thread.
class Tasks {
 public:
  static void Run(xla::ffi::ThreadPool& pool, int64_t count,
                  std::function<void(int64_t)> run) {
    auto tasks = std::make_shared<Tasks>(count, std::move(run));
    const int64_t others = std::min(pool.num_threads(), count) - 1;
    for (int64_t i = 0; i < others; ++i)
      pool.Schedule([tasks] { tasks->Work(); });
    tasks->Work();
    std::unique_lock<std::mutex> lock(tasks->mutex_);
    tasks->all_done_.wait(lock, [&] { return tasks->done_ == count; });
  }

  Tasks(int64_t count, std::function<void(int64_t)> run)
      : count_(count), run_(std::move(run)) {}

 private:
  // Who comes late finds nothing to do, and touches nothing of the caller's.
  void Work() {
    for (int64_t i; (i = next_++) < count_;) {
      run_(i);
      std::lock_guard<std::mutex> lock(mutex_);
      if (++done_ == count_) all_done_.notify_all();
    }
  }

  const int64_t count_;
  const std::function<void(int64_t)> run_;
  std::atomic<int64_t> next_{0};
  int64_t done_ = 0;
  std::mutex mutex_;
  std::condition_variable all_done_;
};

#endif  // LONGCTX_JAX_TASKS_H_
