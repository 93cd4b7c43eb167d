// The kernels' geometries from checked sizes; what does not fit together is a ValueError.
#pragma once

#include <string>

#include "bindings/arrays.h"
#include "kernels/geometry.h"

namespace flexmoe::bindings {

inline void expect_four(const char* name, const Sizes& sizes) {
  count(name, sizes);
  expect(sizes.size() == 4, std::string(name) + " must have 4 dimensions, not the sizes " +
                                show(sizes));
}

inline Window make_window(Pair kernel, Pair stride, Pair padding, Pair dilation) {
  return {{kernel[0], kernel[1]},
          {stride[0], stride[1]},
          {padding[0], padding[1]},
          {dilation[0], dilation[1]}};
}

inline Conv2d conv_geometry(const Sizes& input, const Sizes& weight, Pair stride, Pair padding,
                            Pair dilation, int64_t groups, bool relu) {
  expect_four("the input", input);
  expect_four("the weight", weight);
  Conv2d conv{};
  const char* reason = make_conv2d({input[0], input[1], input[2], input[3]},
                                   {weight[0], weight[1], weight[2], weight[3]},
                                   make_window({}, stride, padding, dilation), groups, &conv);
  if (reason) refuse(std::string(reason) + ": input " + show(input) + ", weight " + show(weight));
  conv.relu = relu;
  return conv;
}

inline Pool2d pool_geometry(const Sizes& input, Pair kernel, Pair stride, Pair padding,
                            Pair dilation) {
  expect_four("the input", input);
  Pool2d pool{};
  const char* reason = make_pool2d({input[0], input[1], input[2], input[3]},
                                   make_window(kernel, stride, padding, dilation), &pool);
  if (reason) refuse(std::string(reason) + ": input " + show(input));
  return pool;
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
