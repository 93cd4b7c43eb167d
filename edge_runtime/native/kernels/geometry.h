// The kernels' geometries, from sizes that nobody has checked.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace flexmoe {

// Of a stride, padding or dilation, and of a pool's kernel: far beyond any use, and products of
// them with a tensor's sizes stay numbers.
constexpr int64_t kMaxStep = int64_t{1} << 16;
// Of the taps of all pixels along one axis, for which convolutions keep a table.
constexpr int64_t kMaxTaps = int64_t{1} << 24;

// Each is (height, width).
struct Window {
  int64_t kernel[2];
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];
};

// Both fill in the geometry and return null, or say why there is none. Batches may be empty.
//
// x [N,C,H,W] * weight [O,C/groups,KH,KW]; the window's kernel is the weight's.
const char* make_conv2d(const int64_t (&x)[4], const int64_t (&weight)[4], Window window,
                        int64_t groups, Conv2d* conv);
const char* make_pool2d(const int64_t (&x)[4], const Window& window, Pool2d* pool);

}  // namespace flexmoe
