#include "operators/arguments.h"

#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/platform/log.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "align.h"

namespace flexmoe {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;

template <class T>
constexpr ScalarType scalar_type();
template <>
constexpr ScalarType scalar_type<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type<int64_t>() {
  return ScalarType::Long;
}

constexpr int kMaxRank = 16;  // of a tensor, to ExecuTorch

bool same_sizes(const TensorView<const float>& a, const TensorView<const float>& b) {
  return a.rank == b.rank && std::equal(a.sizes, a.sizes + a.rank, b.sizes);
}

// Axes of size 1 may stand anywhere in the order: no step along them is ever taken.
template <class Sizes, class Order>
bool contiguous(const Sizes& sizes, const Order& order) {
  if (order.size() != sizes.size()) return false;
  size_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t axis = order[i];
    if (axis >= sizes.size() || sizes[axis] < 1) return false;
    if (sizes[axis] == 1) continue;
    if (axis < last) return false;
    last = axis;
  }
  return true;
}

}  // namespace

bool Arguments::require(bool holds, const char* what) {
  if (!holds && !failed_) {
    failed_ = true;
    ET_LOG(Error, "%s, argument %zu: %s", name_, position_, what);
    context_.fail(Error::InvalidArgument);
  }
  return holds;
}

EValue* Arguments::next() {
  if (failed_ || !require(position_ < stack_.size(), "expected more arguments")) return nullptr;
  EValue* value = stack_[position_++];
  return require(value != nullptr, "expected a value") ? value : nullptr;
}

template <class T>
TensorView<T> Arguments::view(EValue* value, int rank) {
  using Element = std::remove_const_t<T>;
  if (value == nullptr || !require(value->isTensor(), "expected a tensor")) return {};
  const Tensor& tensor = value->toTensor();
  const auto sizes = tensor.sizes();
  const auto order = tensor.dim_order();
  const bool sound = tensor.scalar_type() == scalar_type<Element>() &&
                     (rank == kAnyRank || tensor.dim() == rank) && contiguous(sizes, order);
  if (!require(sound, "expected a contiguous tensor of another type or shape")) return {};
  Element* data = tensor.mutable_data_ptr<Element>();
  if (!require(data != nullptr, "expected a tensor with memory")) return {};
  return {data, sizes.data(), static_cast<int>(sizes.size())};
}

TensorView<const float> Arguments::floats(int rank) { return view<const float>(next(), rank); }

TensorView<const float> Arguments::optional_floats(int rank) {
  EValue* value = next();
  if (value == nullptr || value->isNone()) return {};
  return view<const float>(value, rank);
}

TensorView<const int64_t> Arguments::longs(int rank) { return view<const int64_t>(next(), rank); }

FloatList Arguments::float_list() {
  EValue* value = next();
  if (value == nullptr || !require(value->isTensorList(), "expected a list of tensors")) return {};
  const auto tensors = value->toTensorList();
  FloatList list{{}, tensors.data(), tensors.size()};
  require(list.count >= 1, "expected at least one tensor");
  for (size_t i = 0; i < list.count && !failed_; ++i) {
    EValue element(tensors[i]);
    const TensorView<const float> each = view<const float>(&element, kAnyRank);
    if (i == 0) list.first = each;
    if (!failed_) require(same_sizes(list.first, each), "expected equal shapes");
  }
  return list;
}

bool Arguments::boolean() {
  EValue* value = next();
  return value != nullptr && require(value->isBool(), "expected a bool") && value->toBool();
}

int64_t Arguments::integer(int64_t low, int64_t high) {
  EValue* value = next();
  if (value == nullptr || !require(value->isInt(), "expected an int")) return low;
  const int64_t number = value->toInt();
  return require(low <= number && number <= high, "a number out of range") ? number : low;
}

double Arguments::real() {
  EValue* value = next();
  if (value == nullptr || !require(value->isDouble(), "expected a float")) return 0;
  const double number = value->toDouble();
  return require(std::isfinite(number), "expected a finite number") ? number : 0;
}

void Arguments::read_integers(int64_t* numbers, size_t count, int64_t low, int64_t high) {
  std::fill_n(numbers, count, low);
  EValue* value = next();
  if (value == nullptr || !require(value->isIntList(), "expected a list of ints")) return;
  const auto list = value->toIntList();
  if (!require(list.size() == count, "expected a list of another length")) return;
  for (size_t i = 0; i < count; ++i) {
    if (!require(low <= list[i] && list[i] <= high, "a number out of range")) return;
    numbers[i] = list[i];
  }
}

template <class T>
T* Arguments::output_of(const int64_t* sizes, size_t rank) {
  const TensorView<T> out = view<T>(next(), static_cast<int>(rank));
  if (failed_) return nullptr;
  for (size_t i = 0; i < rank; ++i) {
    if (!require(out.sizes[i] == sizes[i], "an output of another shape")) return nullptr;
  }
  return out.data;
}

float* Arguments::output(std::initializer_list<int64_t> sizes) {
  return output_of<float>(sizes.begin(), sizes.size());
}

float* Arguments::output_like(const TensorView<const float>& other) {
  std::array<int64_t, kMaxRank> sizes{};
  if (failed_) return nullptr;
  std::copy_n(other.sizes, other.rank, sizes.begin());
  return output_of<float>(sizes.data(), static_cast<size_t>(other.rank));
}

float* Arguments::output_stacked(const FloatList& list) {
  std::array<int64_t, kMaxRank> sizes{static_cast<int64_t>(list.count)};
  if (failed_ || !require(list.first.rank < kMaxRank, "too many dimensions")) return nullptr;
  std::copy_n(list.first.sizes, list.first.rank, sizes.begin() + 1);
  return output_of<float>(sizes.data(), static_cast<size_t>(list.first.rank) + 1);
}

int64_t* Arguments::long_output(std::initializer_list<int64_t> sizes) {
  return output_of<int64_t>(sizes.begin(), sizes.size());
}

void KernelCall::check(bool done) {
  if (!done) context_.fail(Error::MemoryAllocationFailed);
}

void* KernelCall::Scratch::take(size_t bytes) {
  auto memory = context_.allocate_temp(bytes, kAlignment);
  return memory.ok() ? *memory : nullptr;
}

}  // namespace flexmoe
