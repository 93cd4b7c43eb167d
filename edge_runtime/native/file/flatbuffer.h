// Reading a FlatBuffer that nobody has checked: every access is, and a wrong one is a Failure.
//
// The format: https://flatbuffers.dev/internals. Only what ExecuTorch's schema uses.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "failure.h"

namespace flexmoe {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  size_t size() const { return size_; }
  const uint8_t* data() const { return data_; }

  template <class T>
  T read(size_t at) const {
    check(at, sizeof(T));
    T value;
    std::memcpy(&value, data_ + at, sizeof(T));
    return value;
  }

  void check(size_t at, uint64_t size) const {
    if (at > size_ || size > size_ - at) fail("the program is damaged: it points past its end");
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

class Vector;

class Table {
 public:
  Table(const Bytes& bytes, size_t at) : bytes_(bytes), at_(at) {
    const int64_t vtable = static_cast<int64_t>(at) - bytes.read<int32_t>(at);
    if (vtable < 0) fail("the program is damaged: a table without a description");
    vtable_ = static_cast<size_t>(vtable);
    vtable_size_ = bytes.read<uint16_t>(vtable_);
    bytes.check(vtable_, vtable_size_);
  }

  // The root of a whole buffer.
  static Table root(const Bytes& bytes) { return Table(bytes, bytes.read<uint32_t>(0)); }

  bool has(int field) const { return position(field) != 0; }

  template <class T>
  T scalar(int field, T otherwise) const {
    const size_t at = position(field);
    return at == 0 ? otherwise : bytes_.read<T>(at);
  }

  Table table(int field) const { return Table(bytes_, target(field)); }

  // Printable ASCII; empty if the field is not there.
  std::string text(int field) const;
  // Of elements of `width` bytes; empty if the field is not there.
  Vector vector(int field, size_t width) const;

 private:
  // Where a field's value is; 0 if it is not there.
  size_t position(int field) const {
    const size_t entry = 4 + 2 * static_cast<size_t>(field);
    if (entry + 2 > vtable_size_) return 0;
    const uint16_t offset = bytes_.read<uint16_t>(vtable_ + entry);
    return offset == 0 ? 0 : at_ + offset;
  }

  size_t target(int field) const {
    const size_t at = position(field);
    if (at == 0) fail("the program is damaged: a part of it is missing");
    return at + bytes_.read<uint32_t>(at);
  }

  Bytes bytes_;
  size_t at_;
  size_t vtable_;
  size_t vtable_size_;
};

class Vector {
 public:
  explicit Vector(const Bytes& bytes) : bytes_(bytes) {}
  Vector(const Bytes& bytes, size_t at, size_t width)
      : bytes_(bytes), start_(at + 4), width_(width), size_(bytes.read<uint32_t>(at)) {
    bytes.check(start_, static_cast<uint64_t>(size_) * width);
  }

  size_t size() const { return size_; }

  template <class T>
  T at(size_t index) const {
    return bytes_.read<T>(element(index));
  }

  Table table(size_t index) const {
    const size_t at = element(index);
    return Table(bytes_, at + bytes_.read<uint32_t>(at));
  }

 private:
  size_t element(size_t index) const {
    if (index >= size_) fail("the program is damaged: it counts past the end of a list");
    return start_ + index * width_;
  }

  Bytes bytes_;
  size_t start_ = 0;
  size_t width_ = 1;
  size_t size_ = 0;
};

inline Vector Table::vector(int field, size_t width) const {
  return has(field) ? Vector(bytes_, target(field), width) : Vector(bytes_);
}

inline std::string Table::text(int field) const {
  if (!has(field)) return {};
  const size_t at = target(field);
  const size_t size = bytes_.read<uint32_t>(at);
  bytes_.check(at + 4, size);
  const std::string text(reinterpret_cast<const char*>(bytes_.data()) + at + 4, size);
  for (char c : text) {
    if (c < ' ' || c > '~') fail("the program is damaged: a text in it is none");
  }
  return text;
}

}  // namespace flexmoe
