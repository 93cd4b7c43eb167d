// An operator's arguments out of ExecuTorch's values, in the order of its schema, all checked.
//
// The first wrong one fails the call; what is read then has no elements. `ready` tells.
#pragma once

#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/span.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>

#include <cstdint>
#include <initializer_list>

#include "runtime/engine.h"

namespace flexmoe {

using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;
using Stack = executorch::runtime::Span<EValue*>;

// A contiguous tensor with at least one element; `data` is null if it was optional and not given.
template <class T>
struct TensorView {
  T* data = nullptr;
  const int32_t* sizes = nullptr;
  int rank = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t operator[](int dimension) const { return sizes[dimension]; }
  int64_t count() const { return count_from(0); }
  // Elements of one index of the dimensions before `dimension`.
  int64_t count_from(int dimension) const {
    int64_t count = 1;
    for (int i = dimension; i < rank; ++i) count *= sizes[i];
    return count;
  }
};

constexpr int kAnyRank = -1;

// Tensors of one shape, at least one.
struct FloatList {
  TensorView<const float> first;
  const executorch::aten::Tensor* tensors = nullptr;
  size_t count = 0;

  const float* data(size_t index) const { return tensors[index].const_data_ptr<float>(); }
};

class Arguments {
 public:
  Arguments(const char* name, KernelRuntimeContext& context, Stack stack)
      : name_(name), context_(context), stack_(stack) {}

  TensorView<const float> floats(int rank);
  TensorView<const float> optional_floats(int rank);
  TensorView<const int64_t> longs(int rank);
  FloatList float_list();

  bool boolean();
  int64_t integer(int64_t low, int64_t high);
  double real();
  // A list of exactly `N` numbers from `low` to `high`.
  template <size_t N>
  void integers(int64_t (&numbers)[N], int64_t low, int64_t high) {
    read_integers(numbers, N, low, high);
  }

  // The memory of an output that must have exactly these sizes.
  float* output(std::initializer_list<int64_t> sizes);
  float* output_like(const TensorView<const float>& other);
  float* output_stacked(const FloatList& list);
  int64_t* long_output(std::initializer_list<int64_t> sizes);

  // Fails the call with `what` unless it holds.
  bool require(bool holds, const char* what);
  // Whether all was right so far. Outputs must be read after their sizes are known to be sound.
  bool ready() const { return !failed_; }

 private:
  EValue* next();
  template <class T>
  TensorView<T> view(EValue* value, int rank);
  template <class T>
  T* output_of(const int64_t* sizes, size_t rank);
  void read_integers(int64_t* numbers, size_t count, int64_t low, int64_t high);

  const char* name_;
  KernelRuntimeContext& context_;
  Stack stack_;
  size_t position_ = 0;
  bool failed_ = false;
};

// Runs a kernel: `KernelCall(context)` has what it takes. Its scratch is the runtime's temporary
// memory.
class KernelCall {
 public:
  explicit KernelCall(KernelRuntimeContext& context)
      : engine_(*current_engine()),
        scratch_(context),
        context_(context),
        kernel_context_{engine_.threads, &scratch_} {}

  const Kernels* operator->() const { return engine_.kernels; }
  operator const Context&() const { return kernel_context_; }
  // What a kernel that needs scratch returned.
  void check(bool done);

 private:
  class Scratch final : public Workspace {
   public:
    explicit Scratch(KernelRuntimeContext& context) : context_(context) {}
    void* take(size_t bytes) override;

   private:
    KernelRuntimeContext& context_;
  };

  const Engine& engine_;
  Scratch scratch_;
  KernelRuntimeContext& context_;
  Context kernel_context_;
};

}  // namespace flexmoe
