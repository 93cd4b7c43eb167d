#include "session/session.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "failure.h"
#include "operators/scratch.h"

namespace flexmoe {
namespace {

// Where each weight begins in their block, in floats, and after the last one the block's size.
std::vector<size_t> lay_out(const Plan& plan, size_t weights) {
  std::vector<size_t> offsets{0};
  for (size_t i = 0; i < weights; ++i) {
    offsets.push_back(offsets.back() + aligned_size(plan.input(i).bytes) / sizeof(float));
  }
  return offsets;
}

// Of the busiest operator of either program.
size_t most_scratch(const Plan& training, const Plan& evaluation, const Kernels& kernels,
                    int threads) {
  return std::max(scratch_bytes(training, kernels, threads),
                  scratch_bytes(evaluation, kernels, threads));
}

// "[n, 64]" for n samples of an input of sizes [16, 64].
std::string expected_sizes(const TensorFacts& input) {
  std::string text = "[n";
  for (size_t i = 1; i < input.sizes.size(); ++i) text += ", " + std::to_string(input.sizes[i]);
  return text + "]";
}

void check_array(const char* name, const Array& array, const TensorFacts& input) {
  bool fits = array.dtype == input.dtype && array.sizes.size() == input.sizes.size();
  for (size_t i = 1; fits && i < array.sizes.size(); ++i) fits = array.sizes[i] == input.sizes[i];
  if (!fits) {
    fail("%s: expected %s %s, got %s", name, dtype_name(input.dtype),
         expected_sizes(input).c_str(), array.text().c_str());
  }
}

}  // namespace

// The session while one thread works in it.
class Session::Entry {
 public:
  explicit Entry(std::atomic<bool>& entered) : entered_(entered) {
    if (entered_.exchange(true)) fail("the session is in use by another thread; one at a time");
  }
  ~Entry() { entered_.store(false); }

 private:
  std::atomic<bool>& entered_;
};

std::string Array::text() const {
  std::string text = std::string(dtype_name(dtype)) + " [";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + "]";
}

Session::Session(std::unique_ptr<Program> training, std::unique_ptr<Program> evaluation,
                 int64_t classes, int64_t experts, int64_t threads)
    : training_(std::move(training)),
      evaluation_(std::move(evaluation)),
      convention_(check_convention(training_->plan(), evaluation_->plan())),
      classes_(classes),
      expert_count_(experts),
      threads_(start_threads(threads)),
      engine_{&choose_kernels(), threads_.get()},
      offsets_(lay_out(training_->plan(), convention_.weights)),
      size_(offsets_.back()),
      arena_(std::max(training_->plan().arena_bytes(), evaluation_->plan().arena_bytes())),
      scratch_(most_scratch(training_->plan(), evaluation_->plan(), *engine_.kernels,
                            threads_->count())),
      weights_(size_ * sizeof(float)),
      gradients_(size_ * sizeof(float)),
      stats_(static_cast<size_t>(convention_.slots) * 3) {
  weights_.zero();
  gradients_.zero();
  for (Program* program : {training_.get(), evaluation_.get()}) {
    program->prepare(arena_.data(), &scratch_, threads_->count());
    for (size_t i = 0; i < convention_.weights; ++i) program->bind_input(i, weight(i));
    program->bind_output(kLoss, &loss_);
    program->bind_output(kStats, stats_.data());
  }
  bind_gradients(gradients_);
}

MemoryFacts Session::need(const Program& training, const Program& evaluation, const Rates& rates,
                          int64_t batch, int64_t threads) {
  check_threads(threads);
  const Convention convention = check_convention(training.plan(), evaluation.plan());
  const size_t size = lay_out(training.plan(), convention.weights).back();
  const size_t bytes = size * sizeof(float);
  return {training.bytes_needed() + evaluation.bytes_needed(),
          std::max(training.plan().arena_bytes(), evaluation.plan().arena_bytes()),
          bytes,
          batch > convention.batch ? 2 * bytes : bytes,
          Optimizer::state_bytes(rates, size),
          most_scratch(training.plan(), evaluation.plan(), choose_kernels(),
                       static_cast<int>(threads))};
}

MemoryFacts Session::memory() {
  const Entry entry(entered_);
  return {training_->bytes() + evaluation_->bytes(),
          arena_.size(),
          weights_.size(),
          gradients_.size() + partial_.size(),
          optimizer_.bytes(),
          scratch_.bytes()};
}

void Session::begin(std::vector<int64_t> experts) {
  const Entry entry(entered_);
  if (static_cast<int64_t>(experts.size()) != convention_.slots) {
    fail("the program takes %lld experts, got %zu", static_cast<long long>(convention_.slots),
         experts.size());
  }
  for (int64_t expert : experts) {
    if (expert < 0 || expert >= expert_count_ ||
        std::count(experts.begin(), experts.end(), expert) > 1) {
      fail("experts are different numbers from 0 to %lld, got %lld",
           static_cast<long long>(expert_count_ - 1), static_cast<long long>(expert));
    }
  }
  experts_ = std::move(experts);
  optimizer_.reset();
  for (Program* program : {training_.get(), evaluation_.get()}) {
    program->bind_input(convention_.experts(), experts_.data());
  }
}

int64_t Session::check(const Batch& batch) const {
  if (experts_.empty()) fail("no weights are assigned; call assign() after load()");
  const Plan& plan = training_->plan();
  check_array("x", batch.x, plan.input(convention_.x()));
  check_array("y", batch.y, plan.input(convention_.y()));
  check_array("sample_weight", batch.sample_weight, plan.input(convention_.sample_weight()));
  const int64_t n = batch.x.sizes[0];
  if (n < 1 || n % convention_.batch != 0) {
    fail("x: expected a multiple of %lld samples, got %lld",
         static_cast<long long>(convention_.batch), static_cast<long long>(n));
  }
  if (batch.y.sizes[0] != n || batch.sample_weight.sizes[0] != n) {
    fail("x, y and sample_weight have %lld, %lld and %lld samples, expected as many of each",
         static_cast<long long>(n), static_cast<long long>(batch.y.sizes[0]),
         static_cast<long long>(batch.sample_weight.sizes[0]));
  }
  const int64_t* y = static_cast<const int64_t*>(batch.y.data);
  const float* sample_weight = static_cast<const float*>(batch.sample_weight.data);
  for (int64_t i = 0; i < n; ++i) {
    if (y[i] < 0 || y[i] >= classes_) {
      fail("y: labels are 0 to %lld, got %lld", static_cast<long long>(classes_ - 1),
           static_cast<long long>(y[i]));
    }
    if (!std::isfinite(sample_weight[i]) || sample_weight[i] < 0) {
      fail("sample_weight: expected finite numbers of at least 0, got %g", sample_weight[i]);
    }
  }
  const int64_t count = n * plan.input(convention_.x()).count() / convention_.batch;
  if (!engine_.kernels->all_finite(count, static_cast<const float*>(batch.x.data))) {
    fail("x holds NaN or infinity");
  }
  return n / convention_.batch;
}

void Session::bind_gradients(Block& target) {
  if (bound_ == &target) return;
  for (size_t i = 0; i < convention_.weights; ++i) {
    training_->bind_output(kGradients + i, target.floats() + offsets_[i]);
  }
  bound_ = &target;
}

StepResult Session::run(Program& program, const Batch& batch, int64_t pieces) {
  const bool trains = &program == training_.get();
  const size_t inputs[] = {convention_.x(), convention_.y(), convention_.sample_weight()};
  const Array* arrays[] = {&batch.x, &batch.y, &batch.sample_weight};
  StepResult result{0, std::vector<float>(stats_.size())};
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int i = 0; i < 3; ++i) {
      const uint64_t bytes = program.plan().input(inputs[i]).bytes;
      // The runtime has no word for memory that is only read; `verify` saw that it is.
      program.bind_input(inputs[i], static_cast<uint8_t*>(const_cast<void*>(arrays[i]->data)) +
                                        static_cast<uint64_t>(piece) * bytes);
    }
    if (trains) bind_gradients(piece == 0 ? gradients_ : partial_);
    program.run(engine_);
    if (trains && piece > 0) {
      engine_.kernels->add(static_cast<int64_t>(size_), gradients_.floats(), partial_.floats(),
                           gradients_.floats());
    }
    result.loss += loss_;
    for (size_t i = 0; i < stats_.size(); ++i) result.stats[i] += stats_[i];
  }
  return result;
}

StepResult Session::train_step(const Batch& batch, const Rates& rates) {
  const Entry entry(entered_);
  check_rates(rates);
  const int64_t pieces = check(batch);
  if (pieces > 1 && partial_.size() == 0) {
    partial_ = Block(size_ * sizeof(float));
    partial_.zero();
  }
  optimizer_.reserve(rates, size_);
  StepResult result = run(*training_, batch, pieces);
  if (!std::isfinite(result.loss)) return result;
  if (!engine_.kernels->all_finite(static_cast<int64_t>(size_), gradients_.floats())) {
    result.loss = std::numeric_limits<float>::quiet_NaN();
    return result;
  }
  optimizer_.step(*engine_.kernels, rates, size_, gradients_.floats(), weights_.floats());
  return result;
}

StepResult Session::evaluate(const Batch& batch) {
  const Entry entry(entered_);
  return run(*evaluation_, batch, check(batch));
}

}  // namespace flexmoe
