// One .pte: read, verified, and run by ExecuTorch over memory that belongs to the session.
#pragma once

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/runtime/executor/program.h>

#include <memory>
#include <optional>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "plan.h"

namespace flexmoe {

class Program {
 public:
  // Copies the file and checks it; Failure says what is wrong. Nothing else is allocated.
  Program(const uint8_t* data, size_t size);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const Plan& plan() const { return plan_; }

  // Makes the program ready to run over `arena`, of plan().arena_bytes() bytes.
  void prepare(uint8_t* arena);

  // Where input and output i are read and written, from the next run on. Where the program plans
  // memory of its own for them, they are copied.
  void bind_input(size_t i, void* data);
  void bind_output(size_t i, void* data);

  // One run; Failure names the cause.
  void run(const Engine& engine);

  size_t bytes() const;          // the file, and what the runtime made of it
  size_t scratch_bytes() const;  // what the busiest operator took

 private:
  void find_kernels();
  void set_input(size_t i);

  Block file_;
  Plan plan_;
  std::optional<executorch::extension::BufferDataLoader> loader_;
  std::unique_ptr<executorch::runtime::Program> program_;
  std::vector<executorch::runtime::Kernel> kernels_;
  std::vector<executorch::runtime::Span<uint8_t>> parts_;  // of the arena
  GrowingMemory method_memory_;
  GrowingMemory scratch_;
  std::optional<executorch::runtime::HierarchicalAllocator> planned_;
  std::optional<executorch::runtime::MemoryManager> memory_;
  std::vector<executorch::aten::TensorImpl> inputs_;
  std::vector<void*> copied_outputs_;  // where to, by output; null where none is copied
  std::unique_ptr<executorch::runtime::Method> method_;  // last: it uses all the others
};

}  // namespace flexmoe
