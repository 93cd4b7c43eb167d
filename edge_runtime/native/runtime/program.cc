#include "runtime/program.h"

#include <cstring>
#include <mutex>

#include "failure.h"
#include "file/verify.h"
#include "operators/table.h"
#include "runtime/log.h"
#include "runtime/stock_kernels.h"

namespace flexmoe {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;

// What ExecuTorch makes of a method: a little more than release 1.5.1 takes for each thing in it.
size_t method_bytes(const Plan& plan) {
  size_t items = 0, dimensions = 0, arguments = 0;
  for (const Value& value : plan.values) {
    items += value.items.size();
    dimensions += value.tensor.sizes.size();
  }
  for (const PlannedCall& call : plan.calls) arguments += call.arguments.size();
  return 1024 + 80 * plan.values.size() + 4 * dimensions + 16 * items + 16 * plan.calls.size() +
         8 * arguments;
}

// Throws with the runtime's own words, if it had any.
[[noreturn]] void fail_with(const char* what, const LogCapture& log, et::Error error) {
  fail("%s: %s", what, log.cause().empty() ? et::to_string(error) : log.cause().c_str());
}

Block copy(const uint8_t* data, size_t size) {
  Block block(size);
  std::memcpy(block.data(), data, size);
  return block;
}

}  // namespace

Program::Program(const uint8_t* data, size_t size)
    : file_(copy(data, size)),
      plan_(read_plan(file_.data(), size)),
      method_memory_(method_bytes(plan_)) {
  verify(plan_);
  copied_outputs_.resize(plan_.outputs.size());
  loader_.emplace(file_.data(), size);
  LogCapture log;
  auto program = et::Program::load(&*loader_, et::Program::Verification::InternalConsistency);
  if (!program.ok()) fail_with("ExecuTorch does not read the program", log, program.error());
  program_ = std::make_unique<et::Program>(std::move(*program));
}

void Program::prepare(uint8_t* arena, GrowingMemory* scratch, int threads) {
  find_kernels(threads);
  for (uint64_t bytes : plan_.buffers) {
    parts_.emplace_back(arena, bytes);
    arena += aligned_size(bytes);
  }
  planned_.emplace(et::Span<et::Span<uint8_t>>(parts_.data(), parts_.size()));
  memory_.emplace(&method_memory_, &*planned_, scratch);
  LogCapture log;
  auto method = program_->load_method("forward", &*memory_, nullptr, nullptr, nullptr,
                                      {kernels_.data(), kernels_.size()});
  if (!method.ok()) fail_with("ExecuTorch does not load the program", log, method.error());
  method_ = std::make_unique<et::Method>(std::move(*method));
  inputs_.reserve(plan_.inputs.size());
  for (size_t i : plan_.inputs) {
    TensorFacts& tensor = plan_.values[i].tensor;
    inputs_.emplace_back(static_cast<ScalarType>(tensor.dtype), tensor.sizes.size(),
                         tensor.sizes.data());
  }
}

// Ours for our operators, and the kernels of ExecuTorch's own library if the program needs any.
void Program::find_kernels(int threads) {
  if (plan_.stock()) load_stock_kernels(plan_.operators, threads);
  for (const std::string& name : plan_.operators) {
    if (const Operator* own = find_operator(name)) {
      kernels_.emplace_back(own->name, own->run);
      continue;
    }
    for (const et::Kernel& kernel : et::get_registered_kernels()) {
      if (name == kernel.name_) kernels_.push_back(kernel);
    }
  }
}

void Program::bind_input(size_t i, void* data) {
  inputs_[i].set_data(data);
  if (plan_.input(i).place == Place::kCaller) set_input(i);
}

void Program::set_input(size_t i) {
  LogCapture log;
  const et::Error error = method_->set_input(et::EValue(Tensor(&inputs_[i])), i);
  if (error != et::Error::Ok) fail_with("the program does not take its input", log, error);
}

void Program::bind_output(size_t i, void* data) {
  if (plan_.output(i).place == Place::kPlanned) {
    copied_outputs_[i] = data;
    return;
  }
  LogCapture log;
  const et::Error error = method_->set_output_data_ptr(data, plan_.output(i).bytes, i);
  if (error != et::Error::Ok) fail_with("the program does not give its output", log, error);
}

void Program::run(const Engine& engine) {
  // The memory of planned inputs is used again within a run.
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (plan_.input(i).place == Place::kPlanned) set_input(i);
  }
  std::unique_lock<std::mutex> turn;
  if (plan_.stock()) turn = wait_for_stock_kernels();
  LogCapture log;
  const EngineScope scope(engine);
  const et::Error error = method_->execute();
  if (error != et::Error::Ok) fail_with("the program failed", log, error);
  for (size_t i = 0; i < copied_outputs_.size(); ++i) {
    if (copied_outputs_[i] == nullptr) continue;
    std::memcpy(copied_outputs_[i], method_->get_output(i).toTensor().const_data_ptr(),
                plan_.output(i).bytes);
  }
}

size_t Program::bytes_needed() const {
  return file_.size() + plan_.bytes() + method_bytes(plan_);
}

size_t Program::bytes() const { return file_.size() + plan_.bytes() + method_memory_.bytes(); }

}  // namespace flexmoe
