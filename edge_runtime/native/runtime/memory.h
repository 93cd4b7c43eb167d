// Memory that is counted: aligned blocks, and what ExecuTorch and kernels allocate from.
#pragma once

#include <executorch/runtime/core/memory_allocator.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "align.h"

namespace flexmoe {

// A block of aligned memory. Its pages cost nothing until they are touched.
class Block {
 public:
  Block() = default;
  // `bytes` of memory, not initialized; Failure if there is not so much.
  explicit Block(size_t bytes);

  // The same, but without memory if there is none: `data()` is null.
  static Block try_make(size_t bytes);

  uint8_t* data() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }
  size_t size() const { return size_; }
  void zero();

 private:
  struct Free {
    void operator()(uint8_t* data) const;
  };
  std::unique_ptr<uint8_t[], Free> data_;
  size_t size_ = 0;
};

// Bump memory that takes another block when it is full. What it gave stays valid until `reset`,
// which joins the blocks: in the steady state nothing is allocated.
class GrowingMemory final : public executorch::runtime::MemoryAllocator {
 public:
  // The first block has at least `first_bytes`; it is taken when it is needed.
  explicit GrowingMemory(size_t first_bytes);

  void* allocate(size_t size, size_t alignment = kDefaultAlignment) override;
  void reset() override;
  uint8_t* base_address() const override;
  // ExecuTorch takes other memory if this is 0.
  uint32_t size() const override { return UINT32_MAX; }
  size_t used_size() const override { return used_; }
  size_t free_size() const override;

  size_t bytes() const;  // in all blocks

 private:
  std::vector<Block> blocks_;
  size_t used_ = 0;  // of the last block
  size_t next_;
};

}  // namespace flexmoe
