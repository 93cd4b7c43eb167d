// A fixed set of threads that share loops. One thread: no thread is ever started.
#pragma once

#include <cstdint>
#include <memory>

namespace flexmoe {

// Far more than a step can use. Python's: edge_runtime.trainers.MAX_THREADS.
constexpr int kMaxThreads = 256;

class Threads {
 public:
  // std::system_error where the machine starts no more threads. Not `started`: `count` is only
  // what kernels reckon with, and loops stay with their caller.
  explicit Threads(int count, bool started = true);
  // In a child of fork(), which has none of the threads, they are left alone.
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  // Calls run(argument, i, thread) for each i in [0, items), thread in [0, count); returns when all
  // are done. `run` must not throw. Not re-entrant.
  using Run = void (*)(void* argument, int64_t item, int thread);
  void share(int64_t items, Run run, void* argument);

 private:
  class Pool;
  int count_;
  std::unique_ptr<Pool> pool_;  // null with one thread
};

}  // namespace flexmoe
