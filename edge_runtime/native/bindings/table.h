// One instruction set's kernels with the threads and the scratch that they need.
#pragma once

#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../kernels/kernels.h"
#include "../kernels/threads.h"
#include "arrays.h"
#include "workspace.h"

namespace flexmoe::bindings {

class KernelTable {
 public:
  // ValueError for an instruction set that this machine or build does not have.
  KernelTable(const std::optional<std::string>& isa, int threads)
      : kernels_(find(isa)), threads_(checked(threads)) {}

  static std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const char* isa : {"baseline", "avx2", "avx512", "neon"}) {
      if (find_kernels(isa)) names.emplace_back(isa);
    }
    return names;
  }

  const char* isa() const { return kernels_.isa; }
  int64_t vector_floats() const { return kernels_.vector_floats; }

  // Calls kernel(kernels, context) without the GIL. The lock keeps Python's threads apart, for the
  // threads and the scratch serve one call at a time.
  template <class Kernel>
  void run(Kernel kernel) {
    bool done = true;
    {
      const nb::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      workspace_.reset();
      const Context context{&threads_, &workspace_};
      if constexpr (std::is_void_v<decltype(kernel(kernels_, context))>) {
        kernel(kernels_, context);
      } else {
        done = kernel(kernels_, context);
      }
    }
    if (!done) throw std::bad_alloc();
  }

 private:
  static const Kernels& find(const std::optional<std::string>& isa) {
    const Kernels* kernels = find_kernels(isa ? isa->c_str() : nullptr);
    if (kernels) return *kernels;
    std::string known;
    for (const std::string& name : isas()) known += " " + name;
    refuse("isa must be one that this machine can run:" + known + "; not " + isa.value_or("None"));
  }

  static int checked(int threads) {
    constexpr int kMost = 256;
    expect(threads >= 1 && threads <= kMost,
           "threads must be 1 to 256, not " + std::to_string(threads));
    return threads;
  }

  const Kernels& kernels_;
  Threads threads_;
  GrowingWorkspace workspace_;
  std::mutex mutex_;
};

}  // namespace flexmoe::bindings
