// Reading a .pte: `read_plan` of plan.h.

#include "file/flatbuffer.h"
#include "file/plan.h"
#include "file/tensor_reader.h"

namespace flexmoe {
namespace {

constexpr char kIdentifier[] = "ET12";  // the schema that this runtime was built for
constexpr char kForward[] = "forward";
constexpr char kLayout[] = "flexmoe_layout";

// The fields of ExecuTorch's schema (schema/program.fbs of 1.5) that are read here.
namespace field {
enum Program { kPlans = 1, kBuffers, kDelegateData, kMutable = 6, kNamed };
enum ExecutionPlan {
  kName,
  kValues = 2,
  kInputs,
  kOutputs,
  kChains,
  kOperators,
  kDelegates,
  kSizes
};
enum Operator { kOperatorName, kOverload };
enum Instruction { kType, kArguments };
constexpr int kInstructions = 2;  // of a chain
}  // namespace field
constexpr uint8_t kKernelCall = 1;  // of the union `InstructionArguments`

class Reader {
 public:
  explicit Reader(const Bytes& bytes)
      : bytes_(bytes), program_(Table::root(bytes)), tensors_(program_) {}

  Plan read() {
    for (int part : {field::kBuffers, field::kDelegateData, field::kMutable, field::kNamed}) {
      if (program_.vector(part, 4).size() > 0) fail("the program holds data; it must not");
    }
    const Vector plans = program_.vector(field::kPlans, 4);
    bool found = false;
    for (size_t i = 0; i < plans.size(); ++i) {
      const Table plan = plans.table(i);
      const std::string name = plan.text(field::kName);
      if (name == kForward && !found) {
        read_forward(plan);
        found = true;
      } else if (name == kLayout && plan_.layout.empty()) {
        read_layout(plan);
      } else {
        fail("not a flexmoe program: it has the method '%.40s'; export it again", name.c_str());
      }
    }
    if (!found || plan_.layout.empty()) {
      fail("not a flexmoe program: it has no method '%s'; export it again",
           found ? kLayout : kForward);
    }
    return std::move(plan_);
  }

 private:
  void read_forward(const Table& plan) {
    const Vector sizes = plan.vector(field::kSizes, 8);
    for (size_t i = 1; i < sizes.size(); ++i) {  // number 0 is reserved
      plan_.buffers.push_back(sizes.at<uint64_t>(i));
    }
    tensors_.begin(plan_.buffers);
    const Vector values = plan.vector(field::kValues, 4);
    spend(values.size());
    plan_.values.reserve(values.size());
    for (size_t i = 0; i < values.size(); ++i) plan_.values.push_back(read_value(values.table(i)));
    for (size_t i = 0; i < plan_.values.size(); ++i) check_items(i);
    plan_.inputs = read_indices(plan.vector(field::kInputs, 4), plan_.values.size());
    plan_.outputs = read_indices(plan.vector(field::kOutputs, 4), plan_.values.size());
    if (plan.vector(field::kDelegates, 4).size() > 0) {
      fail("the program has delegates, which this runtime cannot run");
    }
    read_operators(plan.vector(field::kOperators, 4));
    const Vector chains = plan.vector(field::kChains, 4);
    if (chains.size() != 1) fail("the program has %zu chains, expected 1", chains.size());
    read_calls(chains.table(0).vector(field::kInstructions, 4));
    tensors_.end();
  }

  void read_layout(const Table& plan) {
    tensors_.begin({});
    const Vector values = plan.vector(field::kValues, 4);
    const Vector outputs = plan.vector(field::kOutputs, 4);
    const uint32_t index = outputs.size() == 1 ? outputs.at<uint32_t>(0) : UINT32_MAX;
    if (index >= values.size()) fail("the program's layout cannot be read; export it again");
    plan_.layout = read_value(values.table(index)).text;
    if (plan_.layout.empty()) fail("the program's layout cannot be read: expected text");
  }

  Value read_value(const Table& table) {
    Value value;
    const uint8_t kind = table.scalar<uint8_t>(0, 0);
    if (kind < uint8_t(Kind::kNone) || kind > uint8_t(Kind::kOptionalTensors)) {
      fail("the program is damaged: a value of kind %d", kind);
    }
    value.kind = static_cast<Kind>(kind);
    if (value.kind == Kind::kNone) return value;
    const Table content = table.table(1);
    switch (value.kind) {
      case Kind::kTensor:
        value.tensor = tensors_.read(content);
        break;
      case Kind::kInt:
        value.number = static_cast<double>(content.scalar<int64_t>(0, 0));
        break;
      case Kind::kBool:
        value.number = content.scalar<uint8_t>(0, 0);
        break;
      case Kind::kDouble:
        value.number = content.scalar<double>(0, 0);
        break;
      case Kind::kString:
        value.text = content.text(0);
        break;
      case Kind::kInts:
        value.items = read_items<int64_t>(content);
        break;
      case Kind::kTensors:
      case Kind::kOptionalTensors:
        value.items = read_items<int32_t>(content);
        break;
      case Kind::kDoubles:
      case Kind::kBools:
        if (!content.has(0)) fail("the program is damaged: a list without items");
        break;
      default:
        break;
    }
    return value;
  }

  template <class T>
  std::vector<int64_t> read_items(const Table& table) {
    if (!table.has(0)) fail("the program is damaged: a list without items");
    const Vector items = table.vector(0, sizeof(T));
    spend(items.size());
    std::vector<int64_t> result(items.size());
    for (size_t i = 0; i < items.size(); ++i) result[i] = items.at<T>(i);
    return result;
  }

  // A list may only name values of its kind, and tensors that come before it.
  void check_items(size_t index) {
    const Value& list = plan_.values[index];
    for (int64_t item : list.items) {
      if (item == -1 && list.kind == Kind::kOptionalTensors) continue;
      if (item < 0 || uint64_t(item) >= plan_.values.size()) {
        fail("the program is damaged: a list names a value that does not exist");
      }
      const Kind kind = plan_.values[size_t(item)].kind;
      const bool right =
          list.kind == Kind::kInts
              ? kind == Kind::kInt
              : (kind == Kind::kTensor ||
                 (kind == Kind::kNone && list.kind == Kind::kOptionalTensors)) &&
                    size_t(item) < index;
      if (!right) fail("the program is damaged: a list names a value of another kind");
    }
  }

  void read_operators(const Vector& operators) {
    spend(operators.size());
    for (size_t i = 0; i < operators.size(); ++i) {
      const Table operation = operators.table(i);
      const std::string overload = operation.text(field::kOverload);
      // ExecuTorch's error messages read it.
      if (!operation.has(field::kOverload)) fail("the program is damaged: an operator has no name");
      plan_.operators.push_back(operation.text(field::kOperatorName) +
                                (overload.empty() ? "" : "." + overload));
    }
  }

  void read_calls(const Vector& instructions) {
    spend(instructions.size());
    plan_.calls.reserve(instructions.size());
    for (size_t i = 0; i < instructions.size(); ++i) {
      const Table instruction = instructions.table(i);
      if (instruction.scalar<uint8_t>(field::kType, 0) != kKernelCall) {
        fail("the program has jumps or moves, which this runtime does not run");
      }
      const Table call = instruction.table(field::kArguments);
      const uint32_t operation = call.scalar<uint32_t>(0, 0);
      if (operation >= plan_.operators.size()) {
        fail("the program is damaged: instruction %zu has no operator", i);
      }
      plan_.calls.push_back({operation, read_indices(call.vector(1, 4), plan_.values.size())});
    }
  }

  std::vector<size_t> read_indices(const Vector& numbers, size_t limit) {
    spend(numbers.size());
    std::vector<size_t> indices(numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      indices[i] = numbers.at<uint32_t>(i);
      if (indices[i] >= limit) fail("the program is damaged: it names a value that does not exist");
    }
    return indices;
  }

  // A damaged file can name the same bytes again and again: reading must end all the same.
  void spend(size_t items) {
    spent_ += items;
    if (spent_ > bytes_.size()) fail("the program is damaged: its parts overlap");
  }

  Bytes bytes_;
  Table program_;
  Plan plan_;
  TensorReader tensors_;
  size_t spent_ = 0;
};

}  // namespace

Plan read_plan(const uint8_t* data, size_t size) {
  if (size < 64 || std::memcmp(data + 4, "ET", 2) != 0) {
    fail("not an ExecuTorch program; export it again");
  }
  if (std::memcmp(data + 4, kIdentifier, 4) != 0) {
    fail("the program has ExecuTorch's format '%.4s', this runtime reads '%s'; export it again "
         "with the same flexmoe release",
         data + 4, kIdentifier);
  }
  return Reader(Bytes(data, size)).read();
}

}  // namespace flexmoe
