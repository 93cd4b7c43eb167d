// A Python object's memory through the buffer protocol: numpy arrays, bytes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <string>

#include "failure.h"
#include "session/session.h"

namespace flexmoe {

class Buffer {
 public:
  // Failure names the argument if the object has no memory in one piece.
  Buffer(const char* name, nanobind::handle object) : name_(name) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_RECORDS_RO) != 0) {
      PyErr_Clear();
      fail("%s: expected an array, got %s", name, Py_TYPE(object.ptr())->tp_name);
    }
    if (PyBuffer_IsContiguous(&view_, 'C') == 0) {
      PyBuffer_Release(&view_);
      fail("%s: expected a C-contiguous array; use numpy.ascontiguousarray", name);
    }
    if (view_.len > 0 && !aligned()) {
      PyBuffer_Release(&view_);
      fail("%s: the array is not aligned; use numpy.require with requirements='A'", name);
    }
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const uint8_t* bytes() const { return static_cast<const uint8_t*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }

  Array array() const {
    Array array;
    array.data = view_.buf;
    array.dtype = dtype();
    array.sizes.assign(view_.shape, view_.shape + view_.ndim);
    return array;
  }

 private:
  bool aligned() const {
    return reinterpret_cast<uintptr_t>(view_.buf) % static_cast<uintptr_t>(view_.itemsize) == 0;
  }

  Dtype dtype() const {
    const char* format = view_.format == nullptr ? "B" : view_.format;
    const struct {
      const char* format;
      Py_ssize_t size;
      Dtype dtype;
    } known[] = {{"f", 4, Dtype::kFloat32}, {"d", 8, Dtype::kFloat64}, {"l", 8, Dtype::kInt64},
                 {"q", 8, Dtype::kInt64},   {"i", 4, Dtype::kInt32},   {"B", 1, Dtype::kUint8},
                 {"?", 1, Dtype::kBool}};
    for (const auto& each : known) {
      if (std::strcmp(format, each.format) == 0 && view_.itemsize == each.size) return each.dtype;
    }
    fail("%s: expected float32 or int64, got an array of type '%.20s'", name_, format);
  }

  const char* name_;
  Py_buffer view_;
};

}  // namespace flexmoe
