#include "runtime/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "failure.h"

namespace flexmoe {

Block::Block(size_t bytes) {
  *this = try_make(bytes);
  if (!data_) {
    fail("no memory for %zu bytes; use a smaller batch or train.micro_batch, or fewer experts",
         bytes);
  }
}

Block Block::try_make(size_t bytes) {
  Block block;
  if (bytes > SIZE_MAX / 2) return block;
  const size_t rounded = std::max(aligned_size(bytes), kAlignment);
  block.data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded)));
  block.size_ = block.data_ ? bytes : 0;
  return block;
}

void Block::zero() {
  if (size_ > 0) std::memset(data_.get(), 0, size_);
}

void Block::Free::operator()(uint8_t* data) const { std::free(data); }

GrowingMemory::GrowingMemory(size_t first_bytes)
    : MemoryAllocator(0, nullptr), next_(first_bytes) {}

void* GrowingMemory::allocate(size_t size, size_t alignment) {
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || size > SIZE_MAX / 4) return nullptr;
  if (alignment > kAlignment) return nullptr;
  if (!blocks_.empty()) {
    const size_t start = (used_ + alignment - 1) / alignment * alignment;
    if (start <= blocks_.back().size() && size <= blocks_.back().size() - start) {
      used_ = start + size;
      return blocks_.back().data() + start;
    }
  }
  Block block = Block::try_make(std::max(size, next_));
  if (block.data() == nullptr) return nullptr;
  next_ = std::max(next_, block.size()) * 2;
  try {
    blocks_.push_back(std::move(block));
  } catch (const std::bad_alloc&) {  // which must not pass through ExecuTorch's frames
    return nullptr;
  }
  used_ = size;
  return blocks_.back().data();
}

void GrowingMemory::reset() {
  used_ = 0;
  if (blocks_.size() < 2) return;
  next_ = bytes();
  blocks_.clear();  // which keeps the room for the next one's entry
  Block joined = Block::try_make(next_);
  if (joined.data() != nullptr) blocks_.push_back(std::move(joined));
}

uint8_t* GrowingMemory::base_address() const {
  return blocks_.empty() ? nullptr : blocks_.back().data();
}

size_t GrowingMemory::free_size() const {
  return blocks_.empty() ? 0 : blocks_.back().size() - used_;
}

size_t GrowingMemory::bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size();
  return total;
}

}  // namespace flexmoe
