// What the operators of one run compute with. ExecuTorch hands its kernels no pointer of ours, so
// it belongs to the thread that runs.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "kernels/threads.h"

namespace flexmoe {

struct Engine {
  const Kernels* kernels;
  Threads* threads;
};

// The machine's best kernels, or those that FLEXMOE_ISA names; Failure if there are none of that
// name.
const Kernels& choose_kernels();

// Failure unless `count` is 1 to kMaxThreads.
void check_threads(int64_t count);
// Failure if the machine does not start so many, too.
std::unique_ptr<Threads> start_threads(int64_t count);

// Of this thread; null outside of an EngineScope.
const Engine* current_engine();

// Makes an engine this thread's while it lives.
class EngineScope {
 public:
  explicit EngineScope(const Engine& engine);
  ~EngineScope();
  EngineScope(const EngineScope&) = delete;
  EngineScope& operator=(const EngineScope&) = delete;
};

}  // namespace flexmoe
