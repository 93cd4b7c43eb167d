// The table's methods in Python: normalization, pointwise functions and pools.
#pragma once

#include <tuple>

#include "bindings/arrays.h"
#include "bindings/geometry.h"
#include "bindings/kernel_table.h"

namespace flexmoe::bindings {

inline std::tuple<FloatArray, FloatArray, FloatArray> group_norm(KernelTable& table, const Array& x,
                                                                 const MaybeArray& weight,
                                                                 const MaybeArray& bias,
                                                                 int64_t groups, float epsilon,
                                                                 bool relu) {
  const auto in = floats("x", x, 4);
  const GroupNorm g = norm_geometry(in.sizes, groups, epsilon, relu);
  const float* scale = sized_floats("weight", weight, {g.channels});
  const float* shift = sized_floats("bias", bias, {g.channels});
  const auto y = make_array(in.sizes);
  const auto mean = make_array({g.batch, groups});
  const auto rstd = make_array({g.batch, groups});
  table.run([&](const Kernels& k, const Context& context) {
    k.group_norm(context, g, in.data, scale, shift, y.data, mean.data, rstd.data);
  });
  return {y.array, mean.array, rstd.array};
}

inline std::tuple<FloatArray, FloatArray, FloatArray> group_norm_backward(
    KernelTable& table, const Array& dy, const Array& x, const Array& mean, const Array& rstd,
    const MaybeArray& weight, const MaybeArray& y, int64_t groups) {
  const auto in = floats("x", x, 4);
  const GroupNorm g = norm_geometry(in.sizes, groups, 0.0f, y.has_value());
  const float* gradient = sized_floats("dy", dy, in.sizes);
  const float* means = sized_floats("mean", mean, {g.batch, groups});
  const float* rstds = sized_floats("rstd", rstd, {g.batch, groups});
  const float* scale = sized_floats("weight", weight, {g.channels});
  const float* mask = sized_floats("y", y, in.sizes);
  const auto dx = make_array(in.sizes);
  const auto dweight = make_array({g.channels});
  const auto dbias = make_array({g.channels});
  table.run([&](const Kernels& k, const Context& context) {
    return k.group_norm_backward(context, g, gradient, in.data, means, rstds, scale, mask, dx.data,
                                 dweight.data, dbias.data);
  });
  return {dx.array, dweight.array, dbias.array};
}

inline FloatArray relu(KernelTable& table, const Array& x) {
  const auto in = floats("x", x);
  const auto y = make_array(in.sizes);
  table.run([&](const Kernels& k, const Context&) { k.relu(in.count, in.data, y.data); });
  return y.array;
}

inline FloatArray relu_backward(KernelTable& table, const Array& dy, const Array& y) {
  const auto gradient = floats("dy", dy);
  const float* mask = sized_floats("y", y, gradient.sizes);
  const auto dx = make_array(gradient.sizes);
  table.run([&](const Kernels& k, const Context&) {
    k.relu_backward(gradient.count, gradient.data, mask, dx.data);
  });
  return dx.array;
}

inline FloatArray add(KernelTable& table, const Array& a, const Array& b) {
  const auto left = floats("a", a);
  const float* right = sized_floats("b", b, left.sizes);
  const auto sum = make_array(left.sizes);
  table.run(
      [&](const Kernels& k, const Context&) { k.add(left.count, left.data, right, sum.data); });
  return sum.array;
}

inline FloatArray mean_pool(KernelTable& table, const Array& x) {
  const auto in = floats("x", x, 4);
  const auto y = make_array({in[0], in[1]});
  table.run([&](const Kernels& k, const Context&) {
    k.mean_pool(in[0] * in[1], in[2] * in[3], in.data, y.data);
  });
  return y.array;
}

inline FloatArray mean_pool_backward(KernelTable& table, const Array& dy, const Sizes& input_size) {
  expect_four("input_size", input_size);
  const float* gradient = sized_floats("dy", dy, {input_size[0], input_size[1]});
  const auto dx = make_array(input_size);
  table.run([&](const Kernels& k, const Context&) {
    k.mean_pool_backward(input_size[0] * input_size[1], input_size[2] * input_size[3], gradient,
                         dx.data);
  });
  return dx.array;
}

inline FloatArray avg_pool2d(KernelTable& table, const Array& x, Pair kernel, Pair stride,
                             Pair padding) {
  const auto in = floats("x", x, 4);
  const Pool2d g = pool_geometry(in.sizes, kernel, stride, padding, {1, 1});
  const auto y = make_array({g.batch, g.channels, g.out_h, g.out_w});
  table.run([&](const Kernels& k, const Context&) { k.avg_pool2d(g, in.data, y.data); });
  return y.array;
}

inline FloatArray avg_pool2d_backward(KernelTable& table, const Array& dy, const Sizes& input_size,
                                      Pair kernel, Pair stride, Pair padding) {
  const Pool2d g = pool_geometry(input_size, kernel, stride, padding, {1, 1});
  const float* gradient = sized_floats("dy", dy, {g.batch, g.channels, g.out_h, g.out_w});
  const auto dx = make_array(input_size);
  table.run([&](const Kernels& k, const Context&) { k.avg_pool2d_backward(g, gradient, dx.data); });
  return dx.array;
}

inline std::tuple<FloatArray, IntegerArray> max_pool2d(KernelTable& table, const Array& x,
                                                       Pair kernel, Pair stride, Pair padding,
                                                       Pair dilation) {
  const auto in = floats("x", x, 4);
  const Pool2d g = pool_geometry(in.sizes, kernel, stride, padding, dilation);
  const auto y = make_array({g.batch, g.channels, g.out_h, g.out_w});
  const auto indices = make_array<int64_t>({g.batch, g.channels, g.out_h, g.out_w});
  table.run(
      [&](const Kernels& k, const Context&) { k.max_pool2d(g, in.data, y.data, indices.data); });
  return {y.array, indices.array};
}

inline FloatArray max_pool2d_backward(KernelTable& table, const Array& dy, const Array& indices,
                                      const Sizes& input_size) {
  const auto gradient = floats("dy", dy, 4);
  const auto places = integers("indices", indices, 4);
  expect_four("input_size", input_size);
  expect_sizes("indices", places.sizes, gradient.sizes);
  expect_sizes("input_size (batch, channels)", {input_size[0], input_size[1]},
               {gradient[0], gradient[1]});
  Pool2d g{};
  g.batch = input_size[0];
  g.channels = input_size[1];
  g.height = input_size[2];
  g.width = input_size[3];
  g.out_h = gradient[2];
  g.out_w = gradient[3];
  const auto dx = make_array(input_size);
  table.run([&](const Kernels& k, const Context&) {
    k.max_pool2d_backward(g, gradient.data, places.data, dx.data);
  });
  return dx.array;
}

inline void bind_layers(nb::class_<KernelTable>& table) {
  using namespace nb::literals;
  const Pair ones{1, 1};
  const Pair none{0, 0};
  table
      .def("group_norm", &group_norm, "x"_a, "weight"_a.none(), "bias"_a.none(), "groups"_a,
           "eps"_a = 1e-5f, "relu"_a = false)
      .def("group_norm_backward", &group_norm_backward, "dy"_a, "x"_a, "mean"_a, "rstd"_a,
           "weight"_a.none(), "y"_a.none(), "groups"_a)
      .def("relu", &relu, "x"_a)
      .def("relu_backward", &relu_backward, "dy"_a, "y"_a)
      .def("add", &add, "a"_a, "b"_a)
      .def("mean_pool", &mean_pool, "x"_a)
      .def("mean_pool_backward", &mean_pool_backward, "dy"_a, "input_size"_a)
      .def("avg_pool2d", &avg_pool2d, "x"_a, "kernel"_a, "stride"_a, "padding"_a = none)
      .def("avg_pool2d_backward", &avg_pool2d_backward, "dy"_a, "input_size"_a, "kernel"_a,
           "stride"_a, "padding"_a = none)
      .def("max_pool2d", &max_pool2d, "x"_a, "kernel"_a, "stride"_a, "padding"_a = none,
           "dilation"_a = ones)
      .def("max_pool2d_backward", &max_pool2d_backward, "dy"_a, "indices"_a, "input_size"_a);
}

}  // namespace flexmoe::bindings
