// The table's methods in Python: products and their sums.
#pragma once

#include "bindings/arrays.h"
#include "bindings/geometry.h"
#include "bindings/kernel_table.h"

namespace flexmoe::bindings {

inline FloatArray gemm(KernelTable& table, const Array& a, const Array& b, const MaybeArray& bias,
                       bool transpose_a, bool transpose_b, bool relu) {
  const auto left = floats("a", a, 2);
  const auto right = floats("b", b, 2);
  const Gemm g{left[transpose_a ? 1 : 0],
               right[transpose_b ? 0 : 1],
               left[transpose_a ? 0 : 1],
               transpose_a,
               transpose_b,
               relu};
  expect(right[transpose_b ? 1 : 0] == g.k,
         "inner sizes differ: a " + show(left.sizes) + ", b " + show(right.sizes));
  const float* added = sized_floats("bias", bias, {g.n});
  const auto c = make_array({g.m, g.n});
  table.run([&](const Kernels& k, const Context& context) {
    return k.gemm(context, g, left.data, right.data, added, c.data);
  });
  return c.array;
}

inline FloatArray sum_rows(KernelTable& table, const Array& x) {
  const auto in = floats("x", x, 2);
  const auto sums = make_array({in[1]});
  table.run(
      [&](const Kernels& k, const Context&) { k.sum_rows(in[0], in[1], in.data, sums.data); });
  return sums.array;
}

inline FloatArray sum_channels(KernelTable& table, const Array& x) {
  const auto in = floats("x", x, 4);
  const auto sums = make_array({in[1]});
  table.run([&](const Kernels& k, const Context&) {
    k.sum_channels(in[0], in[1], in[2] * in[3], in.data, sums.data);
  });
  return sums.array;
}

inline FloatArray conv2d(KernelTable& table, const Array& x, const Array& weight,
                         const MaybeArray& bias, Pair stride, Pair padding, Pair dilation,
                         int64_t groups, bool relu) {
  const auto in = floats("x", x, 4);
  const auto w = floats("weight", weight, 4);
  const Conv2d g = conv_geometry(in.sizes, w.sizes, stride, padding, dilation, groups, relu);
  const float* added = sized_floats("bias", bias, {g.out_channels});
  const auto y = make_array({g.batch, g.out_channels, g.out_h, g.out_w});
  table.run([&](const Kernels& k, const Context& context) {
    return k.conv2d(context, g, in.data, w.data, added, y.data);
  });
  return y.array;
}

inline FloatArray conv2d_backward_input(KernelTable& table, const Array& dy, const Array& weight,
                                        const Sizes& input_size, Pair stride, Pair padding,
                                        Pair dilation, int64_t groups) {
  const auto gradient = floats("dy", dy, 4);
  const auto w = floats("weight", weight, 4);
  const Conv2d g = conv_geometry(input_size, w.sizes, stride, padding, dilation, groups, false);
  expect_sizes("dy", gradient.sizes, {g.batch, g.out_channels, g.out_h, g.out_w});
  const auto dx = make_array(input_size);
  table.run([&](const Kernels& k, const Context& context) {
    return k.conv2d_backward_input(context, g, gradient.data, w.data, dx.data);
  });
  return dx.array;
}

inline FloatArray conv2d_backward_weight(KernelTable& table, const Array& dy, const Array& x,
                                         const Sizes& weight_size, Pair stride, Pair padding,
                                         Pair dilation, int64_t groups) {
  const auto gradient = floats("dy", dy, 4);
  const auto in = floats("x", x, 4);
  const Conv2d g = conv_geometry(in.sizes, weight_size, stride, padding, dilation, groups, false);
  expect_sizes("dy", gradient.sizes, {g.batch, g.out_channels, g.out_h, g.out_w});
  const auto dweight = make_array(weight_size);
  table.run([&](const Kernels& k, const Context& context) {
    return k.conv2d_backward_weight(context, g, gradient.data, in.data, dweight.data);
  });
  return dweight.array;
}

inline void bind_products(nb::class_<KernelTable>& table) {
  using namespace nb::literals;
  const Pair ones{1, 1};
  const Pair none{0, 0};
  table
      .def("gemm", &gemm, "a"_a, "b"_a, "bias"_a = nb::none(), "transpose_a"_a = false,
           "transpose_b"_a = false, "relu"_a = false)
      .def("sum_rows", &sum_rows, "x"_a)
      .def("sum_channels", &sum_channels, "x"_a)
      .def("conv2d", &conv2d, "x"_a, "weight"_a, "bias"_a = nb::none(), "stride"_a = ones,
           "padding"_a = none, "dilation"_a = ones, "groups"_a = 1, "relu"_a = false)
      .def("conv2d_backward_input", &conv2d_backward_input, "dy"_a, "weight"_a, "input_size"_a,
           "stride"_a = ones, "padding"_a = none, "dilation"_a = ones, "groups"_a = 1)
      .def("conv2d_backward_weight", &conv2d_backward_weight, "dy"_a, "x"_a, "weight_size"_a,
           "stride"_a = ones, "padding"_a = none, "dilation"_a = ones, "groups"_a = 1);
}

}  // namespace flexmoe::bindings
