// SGD and AdamW in place over one block of weights, as torch.optim computes them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/memory.h"

namespace flexmoe {

enum class Rule { kSgd, kAdamW };

struct Rates {
  Rule rule = Rule::kSgd;
  float learning_rate = 0, momentum = 0, weight_decay = 0;
  float beta1 = 0, beta2 = 0, epsilon = 0;
  float clip_norm = 0;  // 0: gradients are not clipped
};

// Failure names the first rate that no rule can work with.
void check_rates(const Rates& rates);

class Optimizer {
 public:
  // What `reserve` allocates for `size` weights.
  static size_t state_bytes(const Rates& rates, size_t size);

  // Forget the past: state as before the first step.
  void reset();
  // Take the memory for the state, and leave what another rule had; Failure if there is none.
  void reserve(const Rates& rates, size_t size);
  // One step over `size` weights, after `reserve`. Clipping changes the gradients.
  void step(const Kernels& kernels, const Rates& rates, size_t size, float* gradients,
            float* weights);

  size_t bytes() const { return first_.size() + second_.size(); }

 private:
  Rule rule_ = Rule::kSgd;
  Block first_;   // velocity, or the gradients' mean
  Block second_;  // AdamW: the gradients' mean square
  double power1_ = 1, power2_ = 1;  // beta1, beta2 to the number of steps
};

}  // namespace flexmoe
