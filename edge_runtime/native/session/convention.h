// How a pair of programs is called: which inputs and outputs they must have.
//
// Inputs: the weights, then x [batch, ...] float32, y [batch] int64, experts [k] int64 and
// sample_weight [batch] float32. Outputs: loss, stats [k, 3], and a gradient for each weight where
// the program trains.
#pragma once

#include "file/plan.h"

namespace flexmoe {

struct Convention {
  size_t weights;  // how many; x, y, experts, sample_weight are the inputs from here on
  int64_t batch, slots;

  size_t x() const { return weights; }
  size_t y() const { return weights + 1; }
  size_t experts() const { return weights + 2; }
  size_t sample_weight() const { return weights + 3; }
};

constexpr size_t kLoss = 0, kStats = 1, kGradients = 2;  // outputs

// Failure unless both are called so, and with the same inputs.
Convention check_convention(const Plan& training, const Plan& evaluation);

}  // namespace flexmoe
