#include "operators/scratch.h"

#include <algorithm>

#include "align.h"
#include "failure.h"
#include "kernels/geometry.h"
#include "kernels/threads.h"
#include "runtime/memory.h"

namespace flexmoe {
namespace {

// Hands out memory, which kernels that are only asked for their scratch hardly touch, and counts.
class Meter final : public Workspace {
 public:
  void* take(size_t bytes) override {
    void* memory = memory_.allocate(bytes, kAlignment);
    if (memory != nullptr) bytes_ += aligned_size(bytes);
    return memory;
  }

  size_t bytes() const { return bytes_; }

 private:
  GrowingMemory memory_{0};
  size_t bytes_ = 0;
};

// The arguments of one call, which `verify` found to be of the right kinds.
class Facts {
 public:
  Facts(const Plan& plan, const PlannedCall& call) : plan_(plan), call_(call) {}

  int64_t integer(size_t i) const { return integer(value(i)); }
  bool boolean(size_t i) const { return value(i).number != 0; }
  size_t rank(size_t i) const { return value(i).tensor.sizes.size(); }

  // Both are false if there are not exactly `N`. The numbers of a list of ints:
  template <size_t N>
  bool integers(size_t i, int64_t (&numbers)[N]) const {
    const std::vector<int64_t>& items = value(i).items;
    if (items.size() != N) return false;
    std::transform(items.begin(), items.end(), numbers, [this](int64_t item) {
      return integer(plan_.values[static_cast<size_t>(item)]);
    });
    return true;
  }
  // The first sizes of a tensor:
  template <size_t N>
  bool sizes(size_t i, int64_t (&numbers)[N]) const {
    if (rank(i) < N) return false;
    std::copy_n(value(i).tensor.sizes.begin(), N, numbers);
    return true;
  }

 private:
  const Value& value(size_t i) const { return plan_.values[call_.arguments[i]]; }
  static int64_t integer(const Value& value) {
    return static_cast<int64_t>(std::clamp(value.number, -1e15, 1e15));
  }

  const Plan& plan_;
  const PlannedCall& call_;
};

bool take_gemm(const Kernels& kernels, const Context& context, const Facts& call) {
  int64_t a[2], b[2];
  if (!call.sizes(0, a) || !call.sizes(1, b)) return true;
  const bool transpose_a = call.boolean(3), transpose_b = call.boolean(4);
  const Gemm gemm{transpose_a ? a[1] : a[0], transpose_b ? b[0] : b[1],
                  transpose_a ? a[0] : a[1], transpose_a, transpose_b, false};
  return kernels.gemm(context, gemm, nullptr, nullptr, nullptr, nullptr);
}

// A convolution whose x and weight are these arguments.
bool read_conv2d(const Facts& call, size_t x, size_t weight, Conv2d* conv) {
  int64_t x_sizes[4], weight_sizes[4];
  Window window{};
  return call.sizes(x, x_sizes) && call.sizes(weight, weight_sizes) &&
         call.integers(3, window.stride) && call.integers(4, window.padding) &&
         call.integers(5, window.dilation) &&
         make_conv2d(x_sizes, weight_sizes, window, call.integer(6), conv) == nullptr;
}

bool take_conv2d(const Kernels& kernels, const Context& context, const Facts& call) {
  Conv2d conv;
  return !read_conv2d(call, 0, 1, &conv) ||
         kernels.conv2d(context, conv, nullptr, nullptr, nullptr, nullptr);
}

bool take_backward_input(const Kernels& kernels, const Context& context, const Facts& call) {
  Conv2d conv;
  return !read_conv2d(call, 7, 1, &conv) ||  // its output has the sizes of x
         kernels.conv2d_backward_input(context, conv, nullptr, nullptr, nullptr);
}

bool take_backward_weight(const Kernels& kernels, const Context& context, const Facts& call) {
  Conv2d conv;
  return !read_conv2d(call, 1, 7, &conv) ||  // its output has the sizes of the weight
         kernels.conv2d_backward_weight(context, conv, nullptr, nullptr, nullptr);
}

bool take_group_norm(const Kernels& kernels, const Context& context, const Facts& call) {
  int64_t x[2];
  if (!call.sizes(1, x)) return true;
  const GroupNorm norm{x[0], x[1], 1, 1, 0, false};
  return kernels.group_norm_backward(context, norm, nullptr, nullptr, nullptr, nullptr, nullptr,
                                     nullptr, nullptr, nullptr, nullptr);
}

bool take_mixture(const Kernels& kernels, const Context& context, const Facts& call) {
  int64_t scores[2], outputs[3];
  if (!call.sizes(0, scores) || !call.sizes(1, outputs)) return true;
  const Mixture mixture{scores[0], scores[1], outputs[0], outputs[2]};
  return kernels.mixture_cross_entropy(context, mixture, nullptr, nullptr, nullptr, nullptr,
                                       nullptr, nullptr, nullptr, nullptr, nullptr);
}

// Null where an operator takes none.
using Take = bool (*)(const Kernels& kernels, const Context& context, const Facts& call);

Take find_take(const std::string& name) {
  constexpr struct {
    const char* name;
    Take take;
  } kTakes[] = {{"flexmoe::gemm.out", take_gemm},
                {"flexmoe::conv2d.out", take_conv2d},
                {"flexmoe::conv2d_backward_input.out", take_backward_input},
                {"flexmoe::conv2d_backward_weight.out", take_backward_weight},
                {"flexmoe::group_norm_backward.out", take_group_norm},
                {"flexmoe::mixture_cross_entropy.out", take_mixture},
                {"flexmoe::balanced_mixture_cross_entropy.out", take_mixture},
                {"flexmoe::mixture_evaluate.out", take_mixture}};
  for (const auto& entry : kTakes) {
    if (name == entry.name) return entry.take;
  }
  return nullptr;
}

// ExecuTorch's own kernels take little from us; most of them take what they need from the system.
constexpr size_t kStockBytes = 4096;

}  // namespace

size_t scratch_bytes(const Plan& plan, const Kernels& kernels, int threads) {
  Threads counted(threads, false);
  size_t most = plan.stock() ? kStockBytes : 0;
  for (const PlannedCall& call : plan.calls) {
    const Take take = find_take(plan.operators[call.operation]);
    if (take == nullptr) continue;
    Meter meter;
    if (!take(kernels, {&counted, &meter, true}, Facts(plan, call))) {
      fail("no memory for the scratch of %.60s; use a smaller batch or train.micro_batch",
           plan.operators[call.operation].c_str());
    }
    most = std::max(most, meter.bytes());
  }
  return most;
}

}  // namespace flexmoe
