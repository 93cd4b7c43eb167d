#include <cstring>

#include "operators/operators.h"

namespace flexmoe::operators {
namespace {

// x [N,C,...] in `groups` groups of channels; fails the call if it does not divide.
GroupNorm make_group_norm(Arguments& arguments, const TensorView<const float>& x, int64_t groups) {
  if (!arguments.require(x.rank >= 2 && x[1] % groups == 0, "channels do not divide into groups")) {
    return {};
  }
  return {x[0], x[1], x.count_from(2), groups, 0.0f, false};
}

bool same_shape(const TensorView<const float>& a, const TensorView<const float>& b) {
  return a.rank == b.rank && std::memcmp(a.sizes, b.sizes, sizeof(*a.sizes) * a.rank) == 0;
}

}  // namespace

void group_norm(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("group_norm", context, stack);
  const auto x = arguments.floats(kAnyRank);
  const auto weight = arguments.optional_floats(1);
  const auto bias = arguments.optional_floats(1);
  const int64_t groups = arguments.integer(1, INT32_MAX);
  const double epsilon = arguments.real();
  const bool relu = arguments.boolean();
  if (!arguments.ready()) return;
  GroupNorm norm = make_group_norm(arguments, x, groups);
  norm.epsilon = static_cast<float>(epsilon);
  norm.relu = relu;
  arguments.require(!weight || weight[0] == norm.channels, "the weight does not fit");
  arguments.require(!bias || bias[0] == norm.channels, "the bias does not fit");
  float* y = arguments.output_like(x);
  float* mean = arguments.output({norm.batch, groups});
  float* rstd = arguments.output({norm.batch, groups});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call->group_norm(call, norm, x.data, weight.data, bias.data, y, mean, rstd);
}

void group_norm_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("group_norm_backward", context, stack);
  const auto dy = arguments.floats(kAnyRank);
  const auto x = arguments.floats(kAnyRank);
  const auto mean = arguments.floats(2);
  const auto rstd = arguments.floats(2);
  const auto weight = arguments.optional_floats(1);
  const auto y = arguments.optional_floats(kAnyRank);
  const int64_t groups = arguments.integer(1, INT32_MAX);
  if (!arguments.ready()) return;
  const GroupNorm norm = make_group_norm(arguments, x, groups);
  arguments.require(same_shape(dy, x) && (!y || same_shape(y, x)), "the shapes differ");
  for (const auto& statistic : {mean, rstd}) {
    arguments.require(statistic[0] == norm.batch && statistic[1] == groups,
                      "the statistics do not fit");
  }
  arguments.require(!weight || weight[0] == norm.channels, "the weight does not fit");
  float* dx = arguments.output_like(x);
  float* dweight = arguments.output({norm.channels});
  float* dbias = arguments.output({norm.channels});
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->group_norm_backward(call, norm, dy.data, x.data, mean.data, rstd.data,
                                       weight.data, y.data, dx, dweight, dbias));
}

void relu(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("relu", context, stack);
  const auto x = arguments.floats(kAnyRank);
  float* y = arguments.output_like(x);
  if (!arguments.ready()) return;
  KernelCall(context)->relu(x.count(), x.data, y);
}

void relu_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("relu_backward", context, stack);
  const auto dy = arguments.floats(kAnyRank);
  const auto y = arguments.floats(kAnyRank);
  if (!arguments.ready()) return;
  arguments.require(same_shape(dy, y), "the shapes differ");
  float* dx = arguments.output_like(y);
  if (!arguments.ready()) return;
  KernelCall(context)->relu_backward(y.count(), dy.data, y.data, dx);
}

void add(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("add", context, stack);
  const auto a = arguments.floats(kAnyRank);
  const auto b = arguments.floats(kAnyRank);
  if (!arguments.ready()) return;
  arguments.require(same_shape(a, b), "the shapes differ");
  float* sum = arguments.output_like(a);
  if (!arguments.ready()) return;
  KernelCall(context)->add(a.count(), a.data, b.data, sum);
}

// Both copy whole tensors, which needs no kernel.
void stack(KernelRuntimeContext& context, Stack values) {
  Arguments arguments("stack", context, values);
  const auto xs = arguments.float_list();
  if (!arguments.ready()) return;
  float* out = arguments.output_stacked(xs);
  if (!arguments.ready()) return;
  for (size_t i = 0; i < xs.count; ++i) {
    std::memcpy(out + i * size_t(xs.first.count()), xs.data(i), sizeof(float) * xs.first.count());
  }
}

void select(KernelRuntimeContext& context, Stack values) {
  Arguments arguments("select", context, values);
  const auto x = arguments.floats(kAnyRank);
  const int64_t index = arguments.integer(0, INT32_MAX);
  if (!arguments.ready()) return;
  if (!arguments.require(x.rank >= 1 && index < x[0], "the index is out of range")) return;
  const TensorView<const float> part{x.data + index * x.count_from(1), x.sizes + 1, x.rank - 1};
  float* out = arguments.output_like(part);
  if (!arguments.ready()) return;
  std::memcpy(out, part.data, sizeof(float) * size_t(part.count()));
}

}  // namespace flexmoe::operators
