#include "file/tensor_reader.h"

#include <algorithm>

#include "align.h"

namespace flexmoe {
namespace {

constexpr size_t kMaxRank = 16;
constexpr uint64_t kMaxTensorBytes = uint64_t{1} << 40;
constexpr uint64_t kTensorAlignment = 16;

// The fields of ExecuTorch's schema (schema/program.fbs of 1.5) that are read here.
namespace field {
enum Program { kSegments = 4, kConstants };
enum Tensor { kDtype, kOffset, kShape, kOrder, kData = 5, kAllocation, kDynamism = 8, kExtra };
enum Extra { kLocation = 2, kDevice };
enum Allocation { kMemory, kLow, kHigh };
enum Segment { kStart, kSize };
enum Constants { kSegment, kOffsets };
}  // namespace field

uint64_t element_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kUint8:
    case Dtype::kBool:
      return 1;
    case Dtype::kInt32:
    case Dtype::kFloat32:
      return 4;
    case Dtype::kInt64:
    case Dtype::kFloat64:
      return 8;
  }
  fail("the program has a tensor of type %d, which this runtime does not know",
       static_cast<int>(dtype));
}

}  // namespace

TensorReader::TensorReader(const Table& program) {
  if (!program.has(field::kConstants)) return;
  const Table constants = program.table(field::kConstants);
  const Vector offsets = constants.vector(field::kOffsets, 8);
  if (offsets.size() < 2) return;  // the first one stands for "no constant"
  const Vector segments = program.vector(field::kSegments, 4);
  const uint32_t index = constants.scalar<uint32_t>(field::kSegment, 0);
  if (index >= segments.size()) fail("the program is damaged: it has no constants");
  const uint64_t size = segments.table(index).scalar<uint64_t>(field::kSize, 0);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const uint64_t offset = offsets.at<uint64_t>(i);
    if (offset > size || offset % kTensorAlignment != 0) {
      fail("the program is damaged: constant %zu lies outside of it", i);
    }
    constant_room_.push_back(size - offset);
  }
}

void TensorReader::begin(const std::vector<uint64_t>& buffers) {
  buffers_ = buffers;
  used_.assign(buffers.size(), 0);
}

void TensorReader::end() const {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    // More than its tensors use would be allocated for nothing.
    if (buffers_[i] > aligned_size(used_[i]) + kAlignment) {
      fail("the program is damaged: it plans %llu bytes and uses %llu",
           static_cast<unsigned long long>(buffers_[i]),
           static_cast<unsigned long long>(used_[i]));
    }
  }
}

TensorFacts TensorReader::read(const Table& table) {
  TensorFacts tensor;
  tensor.dtype = static_cast<Dtype>(table.scalar<int8_t>(field::kDtype, 0));
  tensor.bytes = element_size(tensor.dtype);
  const Vector sizes = table.vector(field::kShape, 4);
  const Vector order = table.vector(field::kOrder, 1);
  if (!table.has(field::kShape) || !table.has(field::kOrder) || sizes.size() > kMaxRank ||
      order.size() != sizes.size() || table.scalar<int32_t>(field::kOffset, 0) != 0 ||
      table.scalar<int8_t>(field::kDynamism, 0) != 0) {
    fail("the program is damaged: a tensor without a fixed shape");
  }
  uint32_t seen = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int32_t size = sizes.at<int32_t>(i);
    const uint8_t dimension = order.at<uint8_t>(i);
    if (size < 0 || (size > 0 && tensor.bytes > kMaxTensorBytes / uint64_t(size))) {
      fail("the program is damaged: a tensor of impossible size");
    }
    if (dimension >= sizes.size() || (seen >> dimension & 1) != 0) {
      fail("the program is damaged: a tensor's dimensions are not in order");
    }
    tensor.sizes.push_back(size);
    tensor.bytes *= uint64_t(size);
    seen |= 1u << dimension;
  }
  int last = 0;  // an axis of size 1 may stand anywhere in the order: no step is taken along it
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int dimension = order.at<uint8_t>(i);
    if (tensor.sizes[dimension] == 1) continue;
    tensor.contiguous = tensor.contiguous && dimension >= last;
    last = dimension;
  }
  if (table.has(field::kExtra)) {
    const Table extra = table.table(field::kExtra);
    if (extra.scalar<int8_t>(field::kLocation, 0) != 0 ||
        extra.scalar<int8_t>(field::kDevice, 0) != 0) {
      fail("the program has a tensor outside of the file or of the CPU's memory");
    }
  }
  place(table, tensor);
  return tensor;
}

void TensorReader::place(const Table& table, TensorFacts& tensor) {
  const uint32_t constant = table.scalar<uint32_t>(field::kData, 0);
  if (table.has(field::kAllocation)) {
    const Table allocation = table.table(field::kAllocation);
    // Parts are counted from 1.
    tensor.buffer = uint64_t{allocation.scalar<uint32_t>(field::kMemory, 0)} - 1;
    tensor.offset = uint64_t{allocation.scalar<uint32_t>(field::kHigh, 0)} << 32 |
                    allocation.scalar<uint32_t>(field::kLow, 0);
    tensor.place = Place::kPlanned;
    if (constant != 0 || tensor.buffer >= buffers_.size() ||
        tensor.offset % kTensorAlignment != 0 || tensor.offset > buffers_[tensor.buffer] ||
        tensor.bytes > buffers_[tensor.buffer] - tensor.offset) {
      fail("the program is damaged: a tensor lies outside of the arena");
    }
    uint64_t& used = used_[tensor.buffer];
    used = std::max(used, tensor.offset + tensor.bytes);
  } else if (constant != 0) {
    if (constant >= constant_room_.size() || tensor.bytes > constant_room_[constant]) {
      fail("the program is damaged: a constant lies outside of it");
    }
    tensor.place = Place::kConstant;
  }
}

}  // namespace flexmoe
