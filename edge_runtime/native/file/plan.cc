#include "file/plan.h"

#include <algorithm>

#include "align.h"

namespace flexmoe {

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kUint8:
      return "uint8";
    case Dtype::kInt32:
      return "int32";
    case Dtype::kInt64:
      return "int64";
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kBool:
      return "bool";
  }
  return "?";
}

int64_t TensorFacts::count() const {
  int64_t count = 1;
  for (int32_t size : sizes) count *= size;
  return count;
}

std::string TensorFacts::text() const {
  std::string text = std::string(dtype_name(dtype)) + " [";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + "]";
}

size_t Plan::arena_bytes() const {
  size_t total = 0;
  for (uint64_t bytes : buffers) total += aligned_size(bytes);
  return total;
}

size_t Plan::bytes() const {
  size_t total = values.capacity() * sizeof(Value) + calls.capacity() * sizeof(PlannedCall) +
                 operators.capacity() * sizeof(std::string) + layout.capacity();
  for (const Value& value : values) {
    total += value.tensor.sizes.capacity() * sizeof(int32_t) +
             value.items.capacity() * sizeof(int64_t) + value.text.capacity();
  }
  for (const PlannedCall& call : calls) total += call.arguments.capacity() * sizeof(size_t);
  for (const std::string& name : operators) total += name.capacity();
  return total;
}

bool Plan::stock() const {
  return std::any_of(operators.begin(), operators.end(),
                     [](const std::string& name) {
                       return name.rfind("flexmoe::", 0) != 0 &&
                              name.rfind("executorch_prim::", 0) != 0;
                     });
}

}  // namespace flexmoe
