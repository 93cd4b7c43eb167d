// One instruction set's kernels with the threads and the scratch that they need.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/arrays.h"
#include "runtime/engine.h"
#include "runtime/memory.h"

namespace flexmoe::bindings {

class KernelTable {
 public:
  // ValueError for an instruction set that this machine or build does not have.
  KernelTable(const std::optional<std::string>& isa, int64_t threads)
      : kernels_(isa ? find(*isa) : choose_kernels()), threads_(start_threads(threads)) {}

  static std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* const* each = usable_kernels(); *each; ++each) {
      names.emplace_back((*each)->isa);
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
      scratch_.reset();
      const Context context{threads_.get(), &scratch_};
      if constexpr (std::is_void_v<decltype(kernel(kernels_, context))>) {
        kernel(kernels_, context);
      } else {
        done = kernel(kernels_, context);
      }
    }
    if (!done) throw std::bad_alloc();
  }

 private:
  static const Kernels& find(const std::string& isa) {
    std::string known;
    for (const Kernels* const* each = usable_kernels(); *each; ++each) {
      if (isa == (*each)->isa) return **each;
      known += std::string(" ") + (*each)->isa;
    }
    refuse("isa must be one that this machine can run:" + known + "; not " + isa);
  }

  class Scratch final : public Workspace {
   public:
    void* take(size_t bytes) override { return memory_.allocate(bytes, kAlignment); }
    void reset() { memory_.reset(); }

   private:
    GrowingMemory memory_{0};
  };

  const Kernels& kernels_;
  std::unique_ptr<Threads> threads_;
  Scratch scratch_;
  std::mutex mutex_;
};

}  // namespace flexmoe::bindings
