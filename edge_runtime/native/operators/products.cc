#include "kernels/geometry.h"
#include "operators/operators.h"

namespace flexmoe::operators {
namespace {

struct Steps {
  Window window;
  int64_t groups;
};

Steps read_steps(Arguments& arguments) {
  Steps steps{};
  arguments.integers(steps.window.stride, 1, kMaxStep);
  arguments.integers(steps.window.padding, 0, kMaxStep);
  arguments.integers(steps.window.dilation, 1, kMaxStep);
  steps.groups = arguments.integer(1, INT32_MAX);
  return steps;
}

// The whole geometry of x [N,C,H,W] * weight [O,C/groups,KH,KW]; fails the call if it is none.
Conv2d read_conv2d(Arguments& arguments, const int64_t (&x)[4], const int64_t (&weight)[4],
                   const Steps& steps) {
  Conv2d conv{};
  const char* reason = make_conv2d(x, weight, steps.window, steps.groups, &conv);
  arguments.require(reason == nullptr, reason);
  return conv;
}

bool is_output(const TensorView<const float>& dy, const Conv2d& conv) {
  return dy[0] == conv.batch && dy[1] == conv.out_channels && dy[2] == conv.out_h &&
         dy[3] == conv.out_w;
}

}  // namespace

void gemm(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("gemm", context, stack);
  const auto a = arguments.floats(2);
  const auto b = arguments.floats(2);
  const auto bias = arguments.optional_floats(1);
  const bool transpose_a = arguments.boolean();
  const bool transpose_b = arguments.boolean();
  const bool relu = arguments.boolean();
  if (!arguments.ready()) return;
  const Gemm gemm{transpose_a ? a[1] : a[0], transpose_b ? b[0] : b[1],
                  transpose_a ? a[0] : a[1], transpose_a, transpose_b, relu};
  arguments.require(gemm.k == (transpose_b ? b[1] : b[0]), "the inner sizes differ");
  arguments.require(!bias || bias[0] == gemm.n, "the bias does not fit");
  float* c = arguments.output({gemm.m, gemm.n});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->gemm(call, gemm, a.data, b.data, bias.data, c));
}

void sum_rows(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("sum_rows", context, stack);
  const auto x = arguments.floats(2);
  if (!arguments.ready()) return;
  float* sums = arguments.output({x[1]});
  if (!arguments.ready()) return;
  KernelCall(context)->sum_rows(x[0], x[1], x.data, sums);
}

void conv2d(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("conv2d", context, stack);
  const auto x = arguments.floats(4);
  const auto weight = arguments.floats(4);
  const auto bias = arguments.optional_floats(1);
  const Steps steps = read_steps(arguments);
  const bool relu = arguments.boolean();
  if (!arguments.ready()) return;
  Conv2d conv = read_conv2d(arguments, {x[0], x[1], x[2], x[3]},
                            {weight[0], weight[1], weight[2], weight[3]}, steps);
  conv.relu = relu;
  arguments.require(!bias || bias[0] == conv.out_channels, "the bias does not fit");
  float* y = arguments.output({conv.batch, conv.out_channels, conv.out_h, conv.out_w});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->conv2d(call, conv, x.data, weight.data, bias.data, y));
}

void conv2d_backward_input(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("conv2d_backward_input", context, stack);
  const auto dy = arguments.floats(4);
  const auto weight = arguments.floats(4);
  int64_t size[4];
  arguments.integers(size, 1, INT32_MAX);
  const Steps steps = read_steps(arguments);
  if (!arguments.ready()) return;
  const Conv2d conv = read_conv2d(arguments, size,
                                  {weight[0], weight[1], weight[2], weight[3]}, steps);
  arguments.require(is_output(dy, conv), "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->conv2d_backward_input(call, conv, dy.data, weight.data, dx));
}

void conv2d_backward_weight(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("conv2d_backward_weight", context, stack);
  const auto dy = arguments.floats(4);
  const auto x = arguments.floats(4);
  int64_t size[4];
  arguments.integers(size, 1, INT32_MAX);
  const Steps steps = read_steps(arguments);
  if (!arguments.ready()) return;
  const Conv2d conv = read_conv2d(arguments, {x[0], x[1], x[2], x[3]}, size, steps);
  arguments.require(is_output(dy, conv), "the gradient does not fit");
  float* dweight = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->conv2d_backward_weight(call, conv, dy.data, x.data, dweight));
}

void sum_channels(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("sum_channels", context, stack);
  const auto x = arguments.floats(4);
  if (!arguments.ready()) return;
  float* sums = arguments.output({x[1]});
  if (!arguments.ready()) return;
  KernelCall(context)->sum_channels(x[0], x[1], x[2] * x[3], x.data, sums);
}

}  // namespace flexmoe::operators
