// A training and an evaluation program over one set of weights: steps, micro-batches, optimizer.
//
// Everything is checked before anything is written. One thread at a time; a second one is refused.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/threads.h"
#include "runtime/engine.h"
#include "runtime/memory.h"
#include "runtime/program.h"
#include "session/convention.h"
#include "session/optimizer.h"

namespace flexmoe {

// An array as the caller has it. Contiguous.
struct Array {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> sizes;

  std::string text() const;
};

// As in docs: x [n, ...] float32, y [n] int64, sample_weight [n] float32.
struct Batch {
  Array x, y, sample_weight;
};

struct StepResult {
  float loss;
  std::vector<float> stats;  // [slots, 3]
};

// In bytes.
struct MemoryFacts {
  size_t programs, arena, weights, gradients, optimizer, scratch;
};

class Session {
 public:
  // `classes` and `experts` bound the labels and ids that are taken; 1 to kMaxThreads `threads`.
  Session(std::unique_ptr<Program> training, std::unique_ptr<Program> evaluation, int64_t classes,
          int64_t experts, int64_t threads);

  // The most that a session of this pair takes for steps of `batch` samples; for stock operators,
  // what they usually take. Nothing of it is allocated.
  static MemoryFacts need(const Program& training, const Program& evaluation, const Rates& rates,
                          int64_t batch, int64_t threads);

  size_t weight_count() const { return convention_.weights; }
  const TensorFacts& weight_facts(size_t i) const { return training_->plan().input(i); }
  float* weight(size_t i) { return weights_.floats() + offsets_[i]; }
  float* gradient(size_t i) { return gradients_.floats() + offsets_[i]; }

  // Take these experts, one for each slot; the optimizer forgets. The weights are the caller's.
  void begin(std::vector<int64_t> experts);

  // One step. If the loss or a gradient is not finite, the weights stay and the loss says so.
  StepResult train_step(const Batch& batch, const Rates& rates);
  StepResult evaluate(const Batch& batch);

  MemoryFacts memory();

 private:
  class Entry;

  // How many micro-batches `batch` is; Failure if it does not fit.
  int64_t check(const Batch& batch) const;
  void bind_gradients(Block& target);
  StepResult run(Program& program, const Batch& batch, int64_t pieces);

  std::atomic<bool> entered_{false};
  std::unique_ptr<Program> training_, evaluation_;
  Convention convention_;
  int64_t classes_, expert_count_;
  std::unique_ptr<Threads> threads_;
  Engine engine_;
  std::vector<size_t> offsets_;  // of the weights in their block, in floats
  size_t size_;                  // of that block, in floats; the gaps are 0
  Block arena_;                  // of whichever program runs
  GrowingMemory scratch_;        // of whichever operator runs
  Block weights_, gradients_;
  Block partial_;                       // the gradients of a micro-batch that is not the first
  const Block* bound_ = nullptr;        // where the training program writes gradients
  std::vector<int64_t> experts_;        // empty until `begin`
  float loss_ = 0;
  std::vector<float> stats_;
  Optimizer optimizer_;
};

}  // namespace flexmoe
