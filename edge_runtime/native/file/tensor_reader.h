// The tensors of a program file: their shapes, and that they lie where there is memory.
#pragma once

#include <cstdint>
#include <vector>

#include "file/flatbuffer.h"
#include "file/plan.h"

namespace flexmoe {

class TensorReader {
 public:
  // Reads where the program's constants lie.
  explicit TensorReader(const Table& program);

  // Start a method, whose arena has these parts, in bytes.
  void begin(const std::vector<uint64_t>& buffers);
  // One tensor of the method, as the schema's table `Tensor`.
  TensorFacts read(const Table& table);
  // Failure if the arena is larger than the tensors need: it would be allocated for nothing.
  void end() const;

 private:
  void place(const Table& table, TensorFacts& tensor);

  std::vector<uint64_t> constant_room_;  // bytes from each constant on
  std::vector<uint64_t> buffers_;
  std::vector<uint64_t> used_;  // of each part
};

}  // namespace flexmoe
