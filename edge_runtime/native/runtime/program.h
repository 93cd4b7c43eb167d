// One .pte: read, verified, and run by ExecuTorch over memory that belongs to the session.
#pragma once

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/runtime/executor/program.h>

#include <memory>
#include <optional>
#include <vector>

#include "file/plan.h"
#include "runtime/engine.h"
#include "runtime/memory.h"

namespace flexmoe {

class Program {
 public:
  // Copies the file and checks it; Failure says what is wrong. Nothing else is allocated.
  Program(const uint8_t* data, size_t size);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const Plan& plan() const { return plan_; }

  // Makes the program ready to run over `arena`, of plan().arena_bytes() bytes, and `scratch`,
  // which its operators take while they run. Programs that take turns may share both. `threads` are
  // for ExecuTorch's own kernels.
  void prepare(uint8_t* arena, GrowingMemory* scratch, int threads);

  // Where input and output i are read and written, from the next run on. Where the program plans
  // memory of its own for them, they are copied.
  void bind_input(size_t i, void* data);
  void bind_output(size_t i, void* data);

  // One run; Failure names the cause.
  void run(const Engine& engine);

  // The file, and what is made of it: the most that it will be, and what it is by now.
  size_t bytes_needed() const;
  size_t bytes() const;

 private:
  void find_kernels(int threads);
  void set_input(size_t i);

  Block file_;
  Plan plan_;
  std::optional<executorch::extension::BufferDataLoader> loader_;
  std::unique_ptr<executorch::runtime::Program> program_;
  std::vector<executorch::runtime::Kernel> kernels_;
  std::vector<executorch::runtime::Span<uint8_t>> parts_;  // of the arena
  GrowingMemory method_memory_;
  std::optional<executorch::runtime::HierarchicalAllocator> planned_;
  std::optional<executorch::runtime::MemoryManager> memory_;
  std::vector<executorch::aten::TensorImpl> inputs_;
  std::vector<void*> copied_outputs_;  // where to, by output; null where none is copied
  std::unique_ptr<executorch::runtime::Method> method_;  // last: it uses all the others
};

}  // namespace flexmoe
