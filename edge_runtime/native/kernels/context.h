// What a kernel takes from its caller's Context: scratch, and threads to share a loop.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "threads.h"

namespace flexmoe::FLEXMOE_ISA {

FLEXMOE_INLINE float* take_floats(const Context& context, int64_t count) {
  const size_t bytes = static_cast<size_t>(max_of(1, count)) * sizeof(float);
  return static_cast<float*>(context.workspace->take(bytes));
}

// With less work, waking the other threads costs more than they save.
constexpr double kSharedMultiplications = 1e6;

// Calls run(item, thread) for each item.
template <typename Function>
FLEXMOE_INLINE void share(const Context& context, int64_t items, double multiplications,
                          Function run) {
  if (context.threads->count() == 1 || multiplications < kSharedMultiplications) {
    for (int64_t i = 0; i < items; ++i) run(i, 0);
    return;
  }
  context.threads->share(
      items,
      [](void* argument, int64_t item, int thread) {
        (*static_cast<Function*>(argument))(item, thread);
      },
      &run);
}

}  // namespace flexmoe::FLEXMOE_ISA
