// The table's methods in Python: the loss and the optimizers.
#pragma once

#include <cmath>
#include <tuple>

#include "bindings/arrays.h"
#include "bindings/kernel_table.h"

namespace flexmoe::bindings {

struct MixtureInputs {
  Mixture sizes;
  const float* scores;
  const float* outputs;
  const int64_t* y;
  const int64_t* experts;
  const float* weight;
};

inline void expect_within(const char* name, const ArrayView<const int64_t>& values, int64_t end) {
  for (int64_t i = 0; i < values.count; ++i) {
    if (values.data[i] >= 0 && values.data[i] < end) continue;
    refuse(std::string(name) + " must be 0 to " + std::to_string(end - 1) + ", not " +
           std::to_string(values.data[i]));
  }
}

inline MixtureInputs mixture_inputs(const Array& scores, const Array& outputs, const Array& y,
                                    const Array& experts, const Array& weight) {
  const auto gate = floats("scores", scores, 2);
  const auto logits = floats("outputs", outputs, 3);
  const auto chosen = integers("experts", experts, 1);
  const auto labels = integers("y", y, 1);
  const Mixture sizes{gate[0], gate[1], logits[0], logits[2]};
  expect(sizes.slots >= 1 && sizes.classes >= 1,
         "outputs needs one slot and one class or more, not the sizes " + show(logits.sizes));
  expect_sizes("outputs", logits.sizes, {sizes.slots, sizes.batch, sizes.classes});
  expect_sizes("experts", chosen.sizes, {sizes.slots});
  expect_sizes("y", labels.sizes, {sizes.batch});
  expect_within("experts", chosen, sizes.experts);
  expect_within("y", labels, sizes.classes);
  return {sizes,       gate.data,   logits.data,
          labels.data, chosen.data, sized_floats("sample_weight", weight, {sizes.batch})};
}

inline float* same_sized(const char* name, const MutableArray& array, const Sizes& wanted) {
  const auto checked = view<float>(name, array);
  expect_sizes(name, checked.sizes, wanted);
  return checked.data;
}

inline void mix(KernelTable& table, const MixtureInputs& in, float* loss, float* stats,
                float* dscores, float* doutputs) {
  table.run([&](const Kernels& k, const Context& context) {
    return k.mixture_cross_entropy(context, in.sizes, in.scores, in.outputs, in.y, in.experts,
                                   in.weight, loss, stats, dscores, doutputs);
  });
}

inline std::tuple<FloatArray, FloatArray, FloatArray, FloatArray> mixture_cross_entropy(
    KernelTable& table, const Array& scores, const Array& outputs, const Array& y,
    const Array& experts, const Array& weight, float balance) {
  MixtureInputs in = mixture_inputs(scores, outputs, y, experts, weight);
  expect(std::isfinite(balance) && balance >= 0.0f,
         "balance must be a finite number of at least 0, not " + std::to_string(balance));
  in.sizes.balance = balance;
  const auto loss = make_array({});
  const auto stats = make_array({in.sizes.slots, 3});
  const auto dscores = make_array({in.sizes.batch, in.sizes.experts});
  const auto doutputs = make_array({in.sizes.slots, in.sizes.batch, in.sizes.classes});
  mix(table, in, loss.data, stats.data, dscores.data, doutputs.data);
  return {loss.array, stats.array, dscores.array, doutputs.array};
}

inline std::tuple<FloatArray, FloatArray> mixture_evaluate(KernelTable& table, const Array& scores,
                                                           const Array& outputs, const Array& y,
                                                           const Array& experts,
                                                           const Array& weight) {
  const MixtureInputs in = mixture_inputs(scores, outputs, y, experts, weight);
  const auto loss = make_array({});
  const auto stats = make_array({in.sizes.slots, 3});
  mix(table, in, loss.data, stats.data, nullptr, nullptr);
  return {loss.array, stats.array};
}

inline double sum_of_squares(KernelTable& table, const Array& x) {
  const auto in = floats("x", x);
  double sum = 0.0;
  table.run([&](const Kernels& k, const Context&) { sum = k.sum_of_squares(in.count, in.data); });
  return sum;
}

inline bool all_finite(KernelTable& table, const Array& x) {
  const auto in = floats("x", x);
  bool finite = false;
  table.run([&](const Kernels& k, const Context&) { finite = k.all_finite(in.count, in.data); });
  return finite;
}

inline void scale(KernelTable& table, const MutableArray& x, float factor) {
  const auto in = view<float>("x", x);
  table.run([&](const Kernels& k, const Context&) { k.scale(in.count, factor, in.data); });
}

inline void sgd(KernelTable& table, const MutableArray& weight, const Array& gradient,
                const std::optional<MutableArray>& velocity, float learning_rate, float momentum,
                float weight_decay) {
  const auto w = view<float>("weight", weight);
  const float* slope = sized_floats("gradient", gradient, w.sizes);
  expect(velocity || momentum == 0.0f, "momentum needs a velocity");
  float* speed = velocity ? same_sized("velocity", *velocity, w.sizes) : nullptr;
  const SgdRates rates{learning_rate, momentum, weight_decay};
  table.run([&](const Kernels& k, const Context&) { k.sgd(w.count, rates, slope, w.data, speed); });
}

inline void adamw(KernelTable& table, const MutableArray& weight, const Array& gradient,
                  const MutableArray& m, const MutableArray& v, int64_t step, float learning_rate,
                  float beta1, float beta2, float epsilon, float weight_decay) {
  const auto w = view<float>("weight", weight);
  const float* slope = sized_floats("gradient", gradient, w.sizes);
  float* first = same_sized("m", m, w.sizes);
  float* second = same_sized("v", v, w.sizes);
  expect(step >= 1, "step must be 1 or more, not " + std::to_string(step));
  // From the rates as rounded to floats, as the kernel uses them: 1 - beta2 is small.
  const auto correction = [step](float beta) {
    return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
  };
  const AdamWRates rates{learning_rate,    beta1, beta2, epsilon, weight_decay, correction(beta1),
                         correction(beta2)};
  table.run([&](const Kernels& k, const Context&) {
    k.adamw(w.count, rates, slope, w.data, first, second);
  });
}

inline void bind_loss_and_optimizers(nb::class_<KernelTable>& table) {
  using namespace nb::literals;
  table
      .def("mixture_cross_entropy", &mixture_cross_entropy, "scores"_a, "outputs"_a, "y"_a,
           "experts"_a, "sample_weight"_a, "balance"_a = 0.0f)
      .def("mixture_evaluate", &mixture_evaluate, "scores"_a, "outputs"_a, "y"_a, "experts"_a,
           "sample_weight"_a)
      .def("sum_of_squares", &sum_of_squares, "x"_a)
      .def("all_finite", &all_finite, "x"_a)
      .def("scale", &scale, "x"_a, "factor"_a)
      .def("sgd", &sgd, "weight"_a, "gradient"_a, "velocity"_a.none(), "learning_rate"_a,
           "momentum"_a = 0.0f, "weight_decay"_a = 0.0f)
      .def("adamw", &adamw, "weight"_a, "gradient"_a, "m"_a, "v"_a, "step"_a, "learning_rate"_a,
           "beta1"_a = 0.9f, "beta2"_a = 0.999f, "epsilon"_a = 1e-8f, "weight_decay"_a = 0.01f);
}

}  // namespace flexmoe::bindings
