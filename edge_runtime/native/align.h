// How all memory of the runtime is aligned.
#pragma once

#include <cstddef>

namespace flexmoe {

constexpr size_t kAlignment = 64;  // a cache line, and the widest vector

// The next multiple of kAlignment.
constexpr size_t aligned_size(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace flexmoe
