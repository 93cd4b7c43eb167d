// Scratch memory that grows to what the calls need.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "../kernels/kernels.h"

namespace flexmoe::bindings {

// After a call that did not fit, the next one finds a single block that is large enough.
class GrowingWorkspace final : public Workspace {
 public:
  void* take(size_t bytes) override {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (blocks_.empty() || used_ + bytes > blocks_.back().bytes) {
      void* memory = ::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow);
      if (!memory) return nullptr;
      blocks_.push_back({bytes, Memory(static_cast<char*>(memory))});
      used_ = 0;
    }
    used_ += bytes;
    return blocks_.back().memory.get() + used_ - bytes;
  }

  void reset() {
    used_ = 0;
    if (blocks_.size() < 2) return;
    size_t total = 0;
    for (const Block& block : blocks_) total += block.bytes;
    blocks_.clear();
    take(total);
    used_ = 0;
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  using Memory = std::unique_ptr<char[], Free>;
  struct Block {
    size_t bytes;
    Memory memory;
  };
  std::vector<Block> blocks_;
  size_t used_ = 0;  // of the last block
};

}  // namespace flexmoe::bindings
