#include "session/optimizer.h"

#include <cmath>

#include "failure.h"

namespace flexmoe {
namespace {

constexpr double kClipEpsilon = 1e-6;  // as torch.nn.utils.clip_grad_norm_

bool needs_first(const Rates& rates) { return rates.rule == Rule::kAdamW || rates.momentum != 0; }

}  // namespace

void check_rates(const Rates& rates) {
  const struct {
    const char* name;
    float value;
  } named[] = {{"learning_rate", rates.learning_rate}, {"momentum", rates.momentum},
               {"weight_decay", rates.weight_decay},   {"beta1", rates.beta1},
               {"beta2", rates.beta2},                 {"epsilon", rates.epsilon},
               {"clip_norm", rates.clip_norm}};
  for (const auto& rate : named) {
    if (!std::isfinite(rate.value) || rate.value < 0) {
      fail("%s is %g, expected a number of at least 0", rate.name, rate.value);
    }
  }
  if (rates.rule == Rule::kAdamW && (rates.beta1 >= 1 || rates.beta2 >= 1)) {
    fail("beta1 and beta2 are %g and %g, expected numbers below 1", rates.beta1, rates.beta2);
  }
  if (rates.rule == Rule::kAdamW && rates.epsilon == 0) {
    fail("epsilon is 0 as a float32, expected a number above 0; use 1e-8");
  }
}

size_t Optimizer::state_bytes(const Rates& rates, size_t size) {
  const size_t blocks = rates.rule == Rule::kAdamW ? 2 : needs_first(rates) ? 1 : 0;
  return blocks * size * sizeof(float);
}

void Optimizer::reset() {
  first_.zero();
  second_.zero();
  power1_ = power2_ = 1;
}

void Optimizer::reserve(const Rates& rates, size_t size) {
  const size_t bytes = size * sizeof(float);
  if (rates.rule != rule_ || !needs_first(rates)) {
    *this = Optimizer();
    rule_ = rates.rule;
  }
  if (needs_first(rates) && first_.size() == 0) {
    first_ = Block(bytes);
    first_.zero();
  }
  if (rates.rule == Rule::kAdamW && second_.size() == 0) {
    second_ = Block(bytes);
    second_.zero();
  }
}

void Optimizer::step(const Kernels& kernels, const Rates& rates, size_t size, float* gradients,
                     float* weights) {
  const int64_t count = static_cast<int64_t>(size);
  if (rates.clip_norm > 0) {
    const double norm = std::sqrt(kernels.sum_of_squares(count, gradients));
    const double factor = rates.clip_norm / (norm + kClipEpsilon);
    if (factor < 1) kernels.scale(count, static_cast<float>(factor), gradients);
  }
  if (rates.rule == Rule::kSgd) {
    const SgdRates sgd{rates.learning_rate, rates.momentum, rates.weight_decay};
    kernels.sgd(count, sgd, gradients, weights, rates.momentum != 0 ? first_.floats() : nullptr);
    return;
  }
  power1_ *= rates.beta1;
  power2_ *= rates.beta2;
  const AdamWRates adamw{rates.learning_rate,
                         rates.beta1,
                         rates.beta2,
                         rates.epsilon,
                         rates.weight_decay,
                         static_cast<float>(1 - power1_),
                         static_cast<float>(1 - power2_)};
  kernels.adamw(count, adamw, gradients, weights, first_.floats(), second_.floats());
}

}  // namespace flexmoe
