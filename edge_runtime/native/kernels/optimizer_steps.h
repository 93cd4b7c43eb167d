// Optimizer steps in place, and what gradient clipping needs.
#pragma once

#include "kernels.h"
#include "pointwise.h"

namespace flexmoe::FLEXMOE_ISA {

// In double throughout: the squares of large gradients are no floats.
inline double sum_of_squares(int64_t size, const float* x) {
  typedef double Wide __attribute__((vector_size(kWidth * sizeof(double))));
  Wide even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kWidth <= size; i += 2 * kWidth) {
    const Wide a = __builtin_convertvector(load(x + i), Wide);
    const Wide b = __builtin_convertvector(load(x + i + kWidth), Wide);
    even += a * a;
    odd += b * b;
  }
  double total = 0.0;
  for (; i < size; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  even += odd;
  for (int64_t lane = 0; lane < kWidth; ++lane) total += even[lane];
  return total;
}

inline bool all_finite(int64_t size, const float* x) {
  // x - x is 0, or NaN where x is infinite or NaN.
  return blocked_sum(size, [=](int64_t i, auto lanes) {
           const Vec value = load_lanes(x + i, lanes);
           return value - value;
         }) == 0.0;
}

inline void scale(int64_t size, float factor, float* x) {
  for_vectors(size, [=](int64_t i, auto lanes) {
    store_lanes(x + i, lanes, load_lanes(x + i, lanes) * splat(factor));
  });
}

inline void sgd(int64_t size, const SgdRates& rates, const float* gradient, float* weight,
                float* velocity) {
  const Vec rate = splat(-rates.learning_rate);
  const Vec decay = splat(rates.weight_decay);
  if (rates.momentum == 0.0f) {
    for_vectors(size, [=](int64_t i, auto lanes) {
      const Vec w = load_lanes(weight + i, lanes);
      const Vec slope = fma(decay, w, load_lanes(gradient + i, lanes));
      store_lanes(weight + i, lanes, fma(rate, slope, w));
    });
    return;
  }
  const Vec momentum = splat(rates.momentum);
  for_vectors(size, [=](int64_t i, auto lanes) {
    const Vec w = load_lanes(weight + i, lanes);
    const Vec slope = fma(decay, w, load_lanes(gradient + i, lanes));
    const Vec v = fma(momentum, load_lanes(velocity + i, lanes), slope);
    store_lanes(velocity + i, lanes, v);
    store_lanes(weight + i, lanes, fma(rate, v, w));
  });
}

inline void adamw(int64_t size, const AdamWRates& rates, const float* gradient, float* weight,
                  float* m, float* v) {
  const Vec keep = splat(1.0f - rates.learning_rate * rates.weight_decay);
  const Vec beta1 = splat(rates.beta1), rest1 = splat(1.0f - rates.beta1);
  const Vec beta2 = splat(rates.beta2), rest2 = splat(1.0f - rates.beta2);
  const Vec rate = splat(-rates.learning_rate / rates.correction1);
  const Vec root = splat(1.0f / __builtin_sqrtf(rates.correction2));
  const Vec epsilon = splat(rates.epsilon);
  for_vectors(size, [=](int64_t i, auto lanes) {
    const Vec slope = load_lanes(gradient + i, lanes);
    const Vec first = fma(rest1, slope, beta1 * load_lanes(m + i, lanes));
    const Vec second = fma(rest2, slope * slope, beta2 * load_lanes(v + i, lanes));
    const Vec step = rate * first / fma(sqrt(second), root, epsilon);
    store_lanes(m + i, lanes, first);
    store_lanes(v + i, lanes, second);
    store_lanes(weight + i, lanes, fma(keep, load_lanes(weight + i, lanes), step));
  });
}

}  // namespace flexmoe::FLEXMOE_ISA
