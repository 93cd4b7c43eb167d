// Checked numpy arrays at the kernels' border: C-contiguous views in, new aligned arrays out.
// Every complaint is a ValueError (nb::value_error) that names the argument.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "align.h"

namespace flexmoe::bindings {

namespace nb = nanobind;

using Array = nb::ndarray<nb::ro>;
using MaybeArray = std::optional<Array>;
using MutableArray = nb::ndarray<>;
using FloatArray = nb::ndarray<nb::numpy, float>;
using IntegerArray = nb::ndarray<nb::numpy, int64_t>;
using Sizes = std::vector<int64_t>;
using Pair = std::array<int64_t, 2>;  // height, width

inline std::string show(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  return text + "]";
}

[[noreturn]] inline void refuse(const std::string& message) {
  throw nb::value_error(message.c_str());
}

inline void expect(bool condition, const std::string& message) {
  if (!condition) refuse(message);
}

// The number of elements; refuses negative sizes and more than any machine could hold.
inline int64_t count(const char* name, const Sizes& sizes) {
  constexpr int64_t kMost = int64_t{1} << 40;
  int64_t total = 1;
  bool empty = false;
  for (int64_t size : sizes) {
    empty = empty || size == 0;
    if (size < 0 || (size > 0 && total > kMost / size)) {
      refuse(std::string(name) + ": no array has the sizes " + show(sizes));
    }
    total *= size > 0 ? size : 1;
  }
  return empty ? 0 : total;
}

// An array that was checked: its memory and sizes. Valid as long as the array that it views.
template <class T>
struct ArrayView {
  T* data;
  Sizes sizes;
  int64_t count;

  int64_t operator[](size_t axis) const { return sizes[axis]; }
};

template <class T, class Source>
ArrayView<T> view(const char* name, const Source& array, std::optional<size_t> rank = {}) {
  using Element = std::remove_const_t<T>;
  if (array.dtype() != nb::dtype<Element>() || array.device_type() != nb::device::cpu::value) {
    const std::string type = std::is_same_v<Element, float> ? "float32" : "int64";
    refuse(std::string(name) + " must be a numpy array of " + type);
  }
  Sizes sizes;
  for (size_t i = 0; i < array.ndim(); ++i) sizes.push_back(static_cast<int64_t>(array.shape(i)));
  if (rank && sizes.size() != *rank) {
    refuse(std::string(name) + " must have " + std::to_string(*rank) +
           " dimensions, not the sizes " + show(sizes));
  }
  int64_t stride = 1;
  bool contiguous = true;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) {
    contiguous = contiguous && (sizes[i] == 1 || array.stride(i) == stride);
  }
  const int64_t elements = count(name, sizes);
  if (elements > 0 && reinterpret_cast<uintptr_t>(array.data()) % alignof(Element) != 0) {
    refuse(std::string(name) + " is not aligned");
  }
  if (!contiguous && elements > 0) refuse(std::string(name) + " must be C-contiguous");
  return {static_cast<T*>(array.data()), sizes, elements};
}

inline ArrayView<const float> floats(const char* name, const Array& array,
                                std::optional<size_t> rank = {}) {
  return view<const float>(name, array, rank);
}

inline ArrayView<const int64_t> integers(const char* name, const Array& array, size_t rank) {
  return view<const int64_t>(name, array, rank);
}

inline void expect_sizes(const char* name, const Sizes& sizes, const Sizes& wanted) {
  if (sizes == wanted) return;
  refuse(std::string(name) + " must have the sizes " + show(wanted) + ", not " + show(sizes));
}

// The memory of an array of exactly these sizes; null for no array.
inline const float* sized_floats(const char* name, const MaybeArray& array, const Sizes& wanted) {
  if (!array) return nullptr;
  const ArrayView<const float> checked = floats(name, *array);
  expect_sizes(name, checked.sizes, wanted);
  return checked.data;
}

// A new numpy array, aligned and not initialized; numpy owns the memory.
template <class T>
struct NewArray {
  T* data;
  nb::ndarray<nb::numpy, T> array;
};

template <class T = float>
NewArray<T> make_array(const Sizes& sizes) {
  constexpr std::align_val_t kAligned{kAlignment};
  const size_t bytes = sizeof(T) * static_cast<size_t>(count("result", sizes));
  T* data = static_cast<T*>(::operator new(bytes, kAligned));
  nb::capsule owner(data, [](void* memory) noexcept { ::operator delete(memory, kAligned); });
  const std::vector<size_t> shape(sizes.begin(), sizes.end());
  return {data, nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner)};
}

}  // namespace flexmoe::bindings
