// A program file (.pte) as plain data, read without ExecuTorch and before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace flexmoe {

// ExecuTorch's numbers of the element types that programs use.
enum class Dtype : int8_t {
  kUint8 = 0,
  kInt32 = 3,
  kInt64 = 4,
  kFloat32 = 6,
  kFloat64 = 7,
  kBool = 11
};

const char* dtype_name(Dtype dtype);

// Where a tensor's memory comes from.
enum class Place {
  kPlanned,   // at `offset` of the arena's part `buffer`
  kConstant,  // in the file
  kCaller,    // from whoever runs the program; of no use in between
};

struct TensorFacts {
  Dtype dtype = Dtype::kFloat32;
  Place place = Place::kCaller;
  bool contiguous = true;
  std::vector<int32_t> sizes;
  uint64_t bytes = 0;
  uint64_t buffer = 0;
  uint64_t offset = 0;

  int64_t count() const;
  std::string text() const;  // such as "float32 [16, 64]"
};

// The schema's union `KernelTypes`.
enum class Kind : uint8_t {
  kNone = 1,
  kInt,
  kBool,
  kDouble,
  kTensor,
  kString,
  kInts,
  kDoubles,
  kBools,
  kTensors,
  kOptionalTensors,
};

struct Value {
  Kind kind = Kind::kNone;
  TensorFacts tensor;
  double number = 0;           // of an int, a bool or a double
  std::string text;            // of a string
  std::vector<int64_t> items;  // of a list: indices of values; -1 is none
};

struct PlannedCall {
  size_t operation;
  std::vector<size_t> arguments;  // indices of values
};

// The method that a program runs.
struct Plan {
  std::vector<Value> values;
  std::vector<size_t> inputs, outputs;  // indices of values
  std::vector<std::string> operators;   // such as "flexmoe::gemm.out"
  std::vector<PlannedCall> calls;              // in order; there is no other flow
  std::vector<uint64_t> buffers;        // the arena's parts, in bytes
  std::string layout;                   // what the constant method `flexmoe_layout` gives

  const TensorFacts& input(size_t i) const { return values[inputs[i]].tensor; }
  const TensorFacts& output(size_t i) const { return values[outputs[i]].tensor; }
  size_t arena_bytes() const;  // every part aligned
  size_t bytes() const;        // of this plan itself
  bool stock() const;          // has operators that are not ours
};

// Reads a file and checks all that does not need the operators' meaning; Failure names the fault.
Plan read_plan(const uint8_t* data, size_t size);

}  // namespace flexmoe
