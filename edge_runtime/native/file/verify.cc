#include "file/verify.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "failure.h"
#include "file/signatures.h"

namespace flexmoe {
namespace {

constexpr char kView[] = "executorch_prim::et_view.default";  // gives another shape, not a copy

// Stock kernels that abort the process for numbers that only a damaged program has: the arguments
// that must be at least 1, and those of a range, which must not be huge.
struct Limit {
  const char* name;
  std::array<size_t, 4> positive;  // 0: none
};
constexpr Limit kLimits[] = {
    {"aten::convolution.out", {3, 5, 8}},           // stride, dilation, groups
    {"aten::convolution_backward.out", {4, 6, 9}},  // the same
    {"aten::native_group_norm.out", {3, 4, 5, 6}},  // N, C, HxW, group
};
constexpr char kRange[] = "aten::arange";
constexpr double kMaxRange = 1 << 30;

// A value of `kind` as an argument of the letter `expected` (see signatures.h).
bool fits(char expected, Kind kind) {
  switch (expected) {
    case 'T':
    case 'O':
      return kind == Kind::kTensor;
    case 't':
      return kind == Kind::kTensor || kind == Kind::kNone;
    case 'i':
      return kind == Kind::kInt;
    case 'j':
      return kind == Kind::kInt || kind == Kind::kNone;
    case 'b':
      return kind == Kind::kBool;
    case 'c':
      return kind == Kind::kBool || kind == Kind::kNone;
    case 'd':
      return kind == Kind::kDouble;
    case 'e':
      return kind == Kind::kDouble || kind == Kind::kNone;
    case 's':
      return kind == Kind::kInt || kind == Kind::kDouble || kind == Kind::kBool;
    case 'q':
      return kind == Kind::kNone || fits('s', kind);
    case 'I':
      return kind == Kind::kInts;
    case 'J':
      return kind == Kind::kInts || kind == Kind::kNone;
    case 'B':
      return kind == Kind::kBools;
    case 'D':
      return kind == Kind::kDoubles || kind == Kind::kNone;
    case 'L':
      return kind == Kind::kTensors;
    case 'l':
      return kind == Kind::kOptionalTensors;
    default:
      return false;
  }
}

class Verifier {
 public:
  explicit Verifier(const Plan& plan)
      : plan_(plan),
        has_memory_(plan.values.size()),
        read_only_(plan.values.size()),
        output_(plan.values.size()),
        used_(plan.values.size()),
        written_(plan.values.size()),
        memory_(plan.values.size()) {
    std::iota(memory_.begin(), memory_.end(), size_t{0});
  }

  void run() {
    for (size_t i : plan_.inputs) {
      const Value& value = plan_.values[i];
      if (value.kind != Kind::kTensor || value.tensor.place == Place::kConstant || read_only_[i]) {
        fail("the program is damaged: its inputs are not different tensors");
      }
      has_memory_[i] = read_only_[i] = true;
    }
    for (size_t i : plan_.outputs) {
      const Value& value = plan_.values[i];
      // The caller says where an output lies; planned ones are copied, as often as they appear.
      if (value.kind != Kind::kTensor || (output_[i] && value.tensor.place != Place::kPlanned)) {
        fail("the program is damaged: its outputs are not different tensors");
      }
      has_memory_[i] = output_[i] = true;
    }
    for (size_t i = 0; i < plan_.values.size(); ++i) {
      const TensorFacts& tensor = plan_.values[i].tensor;
      if (plan_.values[i].kind != Kind::kTensor) continue;
      if (tensor.place == Place::kConstant) read_only_[i] = true;
      // Some operators have outputs that nobody wants: tensors without elements.
      if (tensor.place != Place::kCaller || tensor.bytes == 0) has_memory_[i] = true;
    }
    for (const PlannedCall& call : plan_.calls) check(call);
    for (size_t i : plan_.outputs) {
      // What is planned may be another tensor's memory in another shape.
      if (!written_[i] && plan_.values[i].tensor.place != Place::kPlanned) {
        fail("the program is damaged: an output is not computed");
      }
    }
  }

 private:
  void check(const PlannedCall& call) {
    const char* name = plan_.operators[call.operation].c_str();
    const char* letters = find_signature(name);
    if (letters == nullptr) {
      fail("the program uses operator %.60s, which this runtime does not have; "
           "export it with the same flexmoe release",
           name);
    }
    const size_t count = std::strlen(letters);
    // After the schema's arguments comes what the operator returns: its outputs once more.
    if (call.arguments.size() < count || call.arguments.size() > count + 1) {
      fail("the program is damaged: %.60s has %zu arguments", name, call.arguments.size());
    }
    reads_.clear();
    writes_.clear();
    for (size_t i = 0; i < count; ++i) {
      const size_t argument = call.arguments[i];
      if (!fits(letters[i], plan_.values[argument].kind)) {
        fail("the program is damaged: argument %zu of %.60s is of another kind", i, name);
      }
      collect(letters[i], argument);
    }
    check_numbers(call, name, letters);
    const bool view = plan_.operators[call.operation] == kView;
    for (size_t read : reads_) {
      if (!has_memory_[read]) fail("the program is damaged: %.60s reads what nobody wrote", name);
      used_[read] = true;
    }
    for (size_t write : writes_) check_write(write, view, name);
    for (size_t write : writes_) {
      written_[write] = used_[write] = has_memory_[write] = true;
      if (view) {
        read_only_[write] = read_only_[reads_[0]];
        memory_[write] = memory_[reads_[0]];
      }
    }
  }

  void check_numbers(const PlannedCall& call, const char* name, const char* letters) const {
    const bool range = std::strncmp(name, kRange, std::strlen(kRange)) == 0;
    for (size_t i = 0; range && letters[i] == 's'; ++i) {
      if (!(std::fabs(plan_.values[call.arguments[i]].number) < kMaxRange)) {
        fail("the program is damaged: %.60s of too many numbers", name);
      }
    }
    for (const Limit& limit : kLimits) {
      if (std::strcmp(name, limit.name) != 0) continue;
      for (size_t position : limit.positive) {
        if (position > 0 && !positive(plan_.values[call.arguments[position]])) {
          fail("the program is damaged: argument %zu of %.60s is below 1", position, name);
        }
      }
    }
  }

  // Whether an int, or all of a list, is at least 1.
  bool positive(const Value& value) const {
    if (value.kind == Kind::kInt) return value.number >= 1;
    return std::all_of(value.items.begin(), value.items.end(), [this](int64_t item) {
      return plan_.values[static_cast<size_t>(item)].number >= 1;
    });
  }

  void collect(char letter, size_t argument) {
    const Value& value = plan_.values[argument];
    if (letter == 'O') {
      writes_.push_back(argument);
    } else if (value.kind == Kind::kTensor) {
      reads_.push_back(argument);
    } else if (value.kind == Kind::kTensors || value.kind == Kind::kOptionalTensors) {
      for (int64_t item : value.items) {
        if (item >= 0 && plan_.values[size_t(item)].kind == Kind::kTensor) {
          reads_.push_back(size_t(item));
        }
      }
    }
  }

  void check_write(size_t write, bool view, const char* name) const {
    const TensorFacts& tensor = plan_.values[write].tensor;
    if (tensor.bytes == 0) return;
    if (written_[write] || read_only_[write]) {
      fail("the program is damaged: %.60s writes what must stay as it is", name);
    }
    if (view) {
      // The runtime points the output at its input, now and for the next run.
      const TensorFacts& base = plan_.values[reads_[0]].tensor;
      if (output_[write] || used_[write] || base.bytes != tensor.bytes ||
          base.dtype != tensor.dtype) {
        fail("the program is damaged: a view does not fit");
      }
      return;
    }
    if (!has_memory_[write]) {
      fail("the program is damaged: %.60s writes where there is no memory", name);
    }
    for (size_t other : reads_) check_apart(write, other, name);
    for (size_t other : writes_) {
      if (other != write) check_apart(write, other, name);
    }
    if (std::count(writes_.begin(), writes_.end(), write) > 1) {
      fail("the program is damaged: %.60s writes a value twice", name);
    }
  }

  void check_apart(size_t a, size_t b, const char* name) const {
    const TensorFacts& x = plan_.values[memory_[a]].tensor;
    const TensorFacts& y = plan_.values[memory_[b]].tensor;
    if (x.place == Place::kPlanned && y.place == Place::kPlanned && x.buffer == y.buffer &&
        x.offset < y.offset + y.bytes && y.offset < x.offset + x.bytes) {
      fail("the program is damaged: %.60s writes where it reads", name);
    }
  }

  const Plan& plan_;
  std::vector<bool> has_memory_;
  std::vector<bool> read_only_;  // inputs, constants, and views of them
  std::vector<bool> output_;     // of the program
  std::vector<bool> used_;       // by a call so far
  std::vector<bool> written_;    // by a call so far
  std::vector<size_t> memory_;   // whose memory a value has: a view's is that of another one
  std::vector<size_t> reads_, writes_;  // of one call
};

}  // namespace

void verify(const Plan& plan) { Verifier(plan).run(); }

}  // namespace flexmoe
