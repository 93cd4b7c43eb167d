#include "session/convention.h"

#include "failure.h"

namespace flexmoe {
namespace {

void check(const TensorFacts& tensor, Dtype dtype, const std::vector<int32_t>& sizes,
           const char* what) {
  TensorFacts expected;
  expected.dtype = dtype;
  expected.sizes = sizes;
  if (tensor.dtype != dtype || tensor.sizes != sizes || !tensor.contiguous) {
    fail("not a flexmoe program: its %s is %s, expected %s", what, tensor.text().c_str(),
         expected.text().c_str());
  }
}

void check_outputs(const Plan& plan, size_t gradients, int32_t slots) {
  if (plan.outputs.size() != kGradients + gradients) {
    fail("not a flexmoe program: it has %zu outputs, expected %zu", plan.outputs.size(),
         kGradients + gradients);
  }
  check(plan.output(kLoss), Dtype::kFloat32, {}, "loss");
  check(plan.output(kStats), Dtype::kFloat32, {slots, 3}, "table of statistics");
  for (size_t i = 0; i < gradients; ++i) {
    check(plan.output(kGradients + i), Dtype::kFloat32, plan.input(i).sizes, "gradient");
  }
}

}  // namespace

Convention check_convention(const Plan& training, const Plan& evaluation) {
  if (training.inputs.size() < 5) {
    fail("not a flexmoe program: it has %zu inputs, expected at least 5", training.inputs.size());
  }
  Convention convention{training.inputs.size() - 4, 0, 0};
  const TensorFacts& x = training.input(convention.x());
  const TensorFacts& experts = training.input(convention.experts());
  if (x.sizes.size() < 2 || x.count() < 1 || experts.sizes.size() != 1 || experts.count() < 1) {
    fail("not a flexmoe program: its batch is %s for experts %s", x.text().c_str(),
         experts.text().c_str());
  }
  const int32_t batch = x.sizes[0], slots = experts.sizes[0];
  convention.batch = batch;
  convention.slots = slots;
  check(x, Dtype::kFloat32, x.sizes, "x");
  check(training.input(convention.y()), Dtype::kInt64, {batch}, "y");
  check(experts, Dtype::kInt64, {slots}, "list of experts");
  check(training.input(convention.sample_weight()), Dtype::kFloat32, {batch}, "sample weight");
  for (size_t i = 0; i < convention.weights; ++i) {
    check(training.input(i), Dtype::kFloat32, training.input(i).sizes, "weight");
  }
  check_outputs(training, convention.weights, slots);
  check_outputs(evaluation, 0, slots);
  if (evaluation.inputs.size() != training.inputs.size()) {
    fail("the training and the evaluation program are of different models");
  }
  for (size_t i = 0; i < training.inputs.size(); ++i) {
    const TensorFacts& expected = training.input(i);
    if (evaluation.input(i).text() != expected.text() || !evaluation.input(i).contiguous) {
      fail("the training and the evaluation program are of different models: input %zu is %s and "
           "%s",
           i, expected.text().c_str(), evaluation.input(i).text().c_str());
    }
  }
  return convention;
}

}  // namespace flexmoe
