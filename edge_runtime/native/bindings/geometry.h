// The kernels' geometries from checked sizes; what does not fit together is a ValueError.
#pragma once

#include <string>

#include "../kernels/kernels.h"
#include "arrays.h"

namespace flexmoe::bindings {

constexpr int64_t kLargestOption = int64_t{1} << 30;

inline int64_t window_count(const char* axis, int64_t size, int64_t kernel, int64_t stride,
                            int64_t padding, int64_t dilation) {
  expect(kernel >= 1 && stride >= 1 && padding >= 0 && dilation >= 1 && kernel < kLargestOption &&
             stride < kLargestOption && padding < kLargestOption && dilation < kLargestOption,
         std::string(axis) + ": kernel, stride and dilation must be 1 or more, padding 0 or more");
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  expect(room >= 0, std::string(axis) + ": the kernel is larger than the padded input of " +
                        std::to_string(size + 2 * padding));
  return room / stride + 1;
}

inline Conv2d conv_geometry(const Sizes& input, const Sizes& weight, Pair stride, Pair padding,
                            Pair dilation, int64_t groups, bool relu) {
  count("the input", input);
  count("the weight", weight);
  expect(input.size() == 4 && weight.size() == 4,
         "a convolution's input and weight must have 4 dimensions, not the sizes " + show(input) +
             " and " + show(weight));
  expect(groups >= 1 && groups <= kLargestOption && input[1] == weight[1] * groups &&
             weight[0] % groups == 0 && input[1] >= 1 && weight[0] >= 1,
         "channels do not fit: input " + show(input) + ", weight " + show(weight) + ", groups " +
             std::to_string(groups));
  const int64_t out_h =
      window_count("height", input[2], weight[2], stride[0], padding[0], dilation[0]);
  const int64_t out_w =
      window_count("width", input[3], weight[3], stride[1], padding[1], dilation[1]);
  return {input[0],    input[1],  input[2],  input[3],   weight[0],  weight[2],
          weight[3],   stride[0], stride[1], padding[0], padding[1], dilation[0],
          dilation[1], groups,    out_h,     out_w,      relu};
}

inline Pool2d pool_geometry(const Sizes& input, Pair kernel, Pair stride, Pair padding,
                            Pair dilation) {
  count("the input", input);
  expect(input.size() == 4, "a pool's input must have 4 dimensions, not the sizes " + show(input));
  const int64_t out_h =
      window_count("height", input[2], kernel[0], stride[0], padding[0], dilation[0]);
  const int64_t out_w =
      window_count("width", input[3], kernel[1], stride[1], padding[1], dilation[1]);
  expect(2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1],
         "a pool's padding must be at most half of its kernel");
  return {input[0],  input[1],   input[2],   input[3],    kernel[0],   kernel[1], stride[0],
          stride[1], padding[0], padding[1], dilation[0], dilation[1], out_h,     out_w};
}

inline GroupNorm norm_geometry(const Sizes& x, int64_t groups, float epsilon, bool relu) {
  expect(x.size() == 4, "x must have 4 dimensions, not the sizes " + show(x));
  expect(
      groups >= 1 && x[1] >= 1 && x[1] % groups == 0,
      std::to_string(x[1]) + " channels do not split into " + std::to_string(groups) + " groups");
  expect(x[2] * x[3] >= 1, "x must have planes of one element or more, not " + show(x));
  return {x[0], x[1], x[2] * x[3], groups, epsilon, relu};
}

}  // namespace flexmoe::bindings
