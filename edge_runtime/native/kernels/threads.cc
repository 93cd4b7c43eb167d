#include "threads.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace flexmoe {

namespace {

// How long a thread looks for work before it sleeps: about the time between two operators.
constexpr std::chrono::microseconds kSpin{50};

template <typename Condition>
bool spin_until(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return condition();
}

}  // namespace

class Threads::Pool {
 public:
  explicit Pool(int workers) {
    threads_.reserve(static_cast<size_t>(workers));
    try {
      for (int i = 1; i <= workers; ++i) threads_.emplace_back([this, i] { work(i); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Pool() { stop(); }

  // Whether this process started the threads: a child of fork() has none of them.
  bool own() const { return getpid() == process_; }

  void share(int64_t items, Run run, void* argument) {
    items_ = items;
    run_ = run;
    argument_ = argument;
    next_.store(0, std::memory_order_relaxed);
    running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    start_.notify_all();
    take_items(0);
    const auto done = [this] { return running_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, done);
    }
  }

 private:
  void take_items(int thread) {
    for (;;) {
      const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
      if (item >= items_) return;
      run_(argument_, item, thread);
    }
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      const auto called = [this, seen] {
        return stopping_.load(std::memory_order_acquire) ||
               round_.load(std::memory_order_acquire) != seen;
      };
      if (!spin_until(called)) {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, called);
      }
      if (stopping_.load(std::memory_order_acquire)) return;
      ++seen;  // `share` waits for every thread, so no round is missed
      take_items(thread);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_.store(true, std::memory_order_release);
    }
    start_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> running_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stopping_{false};
  int64_t items_ = 0;
  Run run_ = nullptr;
  void* argument_ = nullptr;
  std::vector<std::thread> threads_;
};

Threads::Threads(int count, bool started) : count_(count > 1 ? count : 1) {
  if (started && count_ > 1) pool_ = std::make_unique<Pool>(count_ - 1);
}

Threads::~Threads() {
  // There is nobody to join, and what they slept on cannot be destroyed.
  if (pool_ && !pool_->own()) static_cast<void>(pool_.release());
}

void Threads::share(int64_t items, Run run, void* argument) {
  if (items > 1 && pool_ && pool_->own()) {
    pool_->share(items, run, argument);
    return;
  }
  for (int64_t i = 0; i < items; ++i) run(argument, i, 0);
}

}  // namespace flexmoe
