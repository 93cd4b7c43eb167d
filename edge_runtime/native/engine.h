// What the operators of one run compute with. ExecuTorch hands its kernels no pointer of ours, so
// it belongs to the thread that runs.
#pragma once

#include "kernels/kernels.h"

namespace flexmoe {

struct Engine {
  const Kernels* kernels;
  Threads* threads;
};

// Of this thread; null outside of `Program::run`.
const Engine*& current_engine();

}  // namespace flexmoe
