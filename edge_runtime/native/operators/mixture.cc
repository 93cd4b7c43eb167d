#include <cfloat>

#include "operators/operators.h"

namespace flexmoe::operators {
namespace {

struct Inputs {
  TensorView<const float> scores, outputs;
  TensorView<const int64_t> y, experts;
  TensorView<const float> weight;
  Mixture mixture{};
};

bool all_below(const TensorView<const int64_t>& numbers, int64_t limit) {
  for (int64_t i = 0; i < numbers.count(); ++i) {
    if (numbers.data[i] < 0 || numbers.data[i] >= limit) return false;
  }
  return true;
}

Inputs read_inputs(Arguments& arguments) {
  Inputs in{arguments.floats(2), arguments.floats(3), arguments.longs(1), arguments.longs(1),
            arguments.floats(1)};
  if (!arguments.ready()) return in;
  in.mixture = {in.scores[0], in.scores[1], in.outputs[0], in.outputs[2]};
  arguments.require(in.outputs[1] == in.mixture.batch && in.y[0] == in.mixture.batch &&
                        in.weight[0] == in.mixture.batch && in.experts[0] == in.mixture.slots,
                    "the shapes differ");
  arguments.require(all_below(in.y, in.mixture.classes), "a label out of range");
  arguments.require(all_below(in.experts, in.mixture.experts), "an expert out of range");
  return in;
}

void run(KernelRuntimeContext& context, Arguments& arguments, Inputs in, bool gradients) {
  float* loss = arguments.output({});
  float* stats = arguments.output({in.mixture.slots, 3});
  float* dscores = gradients ? arguments.output_like(in.scores) : nullptr;
  float* doutputs = gradients ? arguments.output_like(in.outputs) : nullptr;
  if (!arguments.ready()) return;
  KernelCall call(context);
  call.check(call->mixture_cross_entropy(call, in.mixture, in.scores.data, in.outputs.data,
                                         in.y.data, in.experts.data, in.weight.data, loss, stats,
                                         dscores, doutputs));
}

}  // namespace

void mixture_cross_entropy(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mixture_cross_entropy", context, stack);
  run(context, arguments, read_inputs(arguments), true);
}

void balanced_mixture_cross_entropy(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("balanced_mixture_cross_entropy", context, stack);
  Inputs in = read_inputs(arguments);
  const double balance = arguments.real();
  if (arguments.require(0.0 <= balance && balance <= double{FLT_MAX}, "a number out of range")) {
    in.mixture.balance = static_cast<float>(balance);
  }
  run(context, arguments, in, true);
}

void mixture_evaluate(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mixture_evaluate", context, stack);
  run(context, arguments, read_inputs(arguments), false);
}

}  // namespace flexmoe::operators
